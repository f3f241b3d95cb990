"""Between a front-end and a back-end: passes everything, says what passes.

LIFE      A front-end connects, the proxy connects to the back-end, and four things end with that connection: two relays
          (one a direction), the conversation that numbers messages and matches replies, and the relays of each
          back-end channel that was passed on the way. Either end may come back: it is a new connection.
OWNERS    One thread, one event loop. A descriptor belongs to the relay that received it, until it was sent on or
          dropped; then it is closed. Only the socket of a back-end channel is kept, for as long as the channel lives.
ORDER     A piece is read, looked at, sent on, and only then the next is read: what waits here is one message a
          direction, and whoever does not read stops the other, as without the proxy.
TRUST     Neither end. What is passed is never checked, and decoding cannot fail: what is no message is passed as it
          came, and said to be none. Names that a peer chose are escaped.
FAILURE   A peer that goes ends its connection. Descriptors that the kernel could not give us end it, too, with a note.
NOT HERE  What a message means for a device (protocol/), words of the command line (cli/proxy).
"""
