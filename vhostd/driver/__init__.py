"""The other side: a front-end and a guest's driver, in user space, for any vhost-user back-end.

LIFE      An Arena is made, a Frontend connects and tells it to the back-end, Virtqueues are laid out in it, and
          drivers (blk, net) turn requests into chains. All four close in the reverse order, each any number of times.
OWNERS    One thread drives a queue. A buffer belongs to the back-end from publish until its head comes back used;
          after a DeviceTimeout it stays the back-end's, so its memory is not handed out again.
TRUST     The back-end is what is being tested: used rings and replies are checked, and a broken rule raises
          DeviceError with its section. Nothing waits without a deadline.
FAILURE   DeviceError for what the back-end did, LocalProtocolError for what our caller did. A queue that saw a wrong
          used element is broken for good, as a guest's would be.
NOT HERE  Code of queues/ or devices/: this side is written from the documents, so that each tests the other. Hostile
          input has no path of its own: raw_* and Frontend.send write any bytes, checked by nobody.
"""
