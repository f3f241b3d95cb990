"""One device's life: where socket, session, queues and workers meet.

LIFE      listening -> in session -> draining -> listening ... -> closed. One front-end at a time; another is turned
          away while the first is there.
OWNERS    Everything here runs on the control thread, in one coroutine for each connection: it reads a message, has the
          session check it, performs it, replies, and only then reads the next.
TRUST     The session has checked a message against the document; perform.py checks it against memory and descriptors,
          all of it before the first change, so that a refused message changes nothing.
TIME      Every wait is bounded: half a message 5 s, an unread reply 5 s, a drain by DRAIN_S (END_S
          when the front-end has gone) and then by cancelling.
FAILURE   An error that a message causes is that message's reply, or ends the connection; a ring that breaks is
          reported to the front-end and stops; nothing ends the device but its operator.
NOT HERE  What a message means (protocol/), what a chain means (backends/).
"""
