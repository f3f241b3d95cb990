"""What each device type does with a chain.

LIFE      A Backend is opened from the operator's options before anything is given up, and closed with its device. It
          makes one handler for each ring (block) or pair of rings (net), which lives as long and is lent to one worker.
OWNERS    Backends and their config space belong to the control thread. A handler's rings, requests and engine belong
          to its worker; the control thread reaches them by mail alone (ringset.pyx).
TRUST     A chain is bytes, wherever they lie: framing is not looked at (virtio 2.7.4). A header is copied once,
          checked, used.
FAILURE   A bad request is answered with its status; one that cannot be answered breaks its ring; a host that fails
          (disk, tap) is an I/O error to the guest and a counter to the operator.
NOT HERE  Sockets and messages (devices/), when a ring starts (protocol/vring), the walk of a chain (queues/chain).
"""
