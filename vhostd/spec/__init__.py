"""Numbers and layouts out of the two documents, without behaviour.

WHAT      virtio (1.2 to 1.4, whose section numbers agree here) and the vhost-user document; each line bears its
          section.
FORM      Feature constants are masks (IntFlag); a bit number never leaves this room.
ORDER     Hosts are little-endian, and so are VERSION_1 guests and the legacy guests of such hosts: fields are plain
          integers. `layout.pxd` says so once for the compiled side.
NOT HERE  What is offered (backends/), which message may come when (protocol/).
"""
