"""virtio-net over a tap (5.1).

LIFE      A NetBackend opens its tap, a descriptor for each pair of queues, before anything is given up. A pair's
          handler reads and writes the tap while its rings are started and enabled; between sessions nobody does.
OWNERS    The control thread owns the tap and its offloads; a pair's worker owns the pair's descriptor, its rings, the
          frame set aside and the chains held. What was negotiated reaches the worker as one word, read once a turn.
TRUST     The header before a frame is ours on both sides of the tap: a guest's is copied once, checked, cleaned of what
          was not negotiated; the kernel's is copied into the guest's buffers after the frame. Payload is not looked at.
FAILURE   A frame that cannot be passed on is dropped and counted, its buffers returned; a chain that cannot hold one
          is returned with length 0. A tap that fails is counted and looked at again when it says something new.
WAITING   The tap is edge-triggered and read until it is empty. Without buffers it is not even watched: the kernel's
          queue fills, then drops, at no cost to us, until the driver kicks.
NOT HERE  Filters and switching: the tap's bridge does that. The control queue: front-ends keep it to themselves.
"""
