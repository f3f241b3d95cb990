"""vhost-user without I/O: bytes and descriptors in, actions and bytes out.

LIFE      A session is made for a connection and dropped with it. It takes one frame at a time: `receive` checks all
          of it and says what is to be done, the host does it, `done` (or `refuse`) changes the session's state and
          makes the reply.
OWNERS    A session belongs to the control thread of its device. A Frame owns the descriptors it came with; the host
          takes those that an action names, and closes the rest when the message is over.
TRUST     Nothing of what a front-end sends. Every request is legal or refused in every state, and a refused one has
          changed nothing. The numbers in a header are compared before anything is read or allocated for them.
FAILURE   RemoteProtocolError says who, what, and which rule; `fatal` when the stream cannot be trusted any more.
          LocalProtocolError is a mistake of the caller's.
NOT HERE  Sockets (devices/channel), maps of guest memory (queues/memory), what is offered (backends/).
"""
