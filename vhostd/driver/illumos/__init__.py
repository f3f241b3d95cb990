"""A demanding guest, imitated to the byte: the block and network drivers of the illumos kernel.

LIFE      `IllumosGuest(device, generation, transport, indirect)` says who; `boot` attaches it to a back-end's socket.
          Its rings, requests and frames are then in guest memory as the kernel's would be; `reset` ends it, and looks
          whether its memory is left alone.
OWNERS    One thread drives a guest. Pools are fixed when it attaches: min(queue size, 256) requests or buffers.
TRUST     None, and yet as little care as the real drivers take: whatever would panic, hang or corrupt the kernel is
          raised, typed, with the row of the contract that was broken.
FAILURE   GuestPanics, GuestHangs, GuestCorrupted, NoAttach; IoError for what the kernel itself reports upward.
NOT HERE  The PCI bus: a front-end keeps it, with status, interrupt vectors, a card's address and control queue. The
          compiled ring of driver/virtqueue: numbering of heads, chains and flush are this guest's own.

Two generations differ: 2019 makes a chain for each block request and never looks at a ring again after it asked for an
interrupt; 2026 keeps chains for life, has DISCARD, a control queue and several pairs. Memory of a block request:

    ring descriptor h ── indirect ──> [ header R | data ... | status W ]     header and status share 17 bytes
    avail.ring[n % q] = h, avail.idx = n + 1, a kick unless used.flags says no
"""

from vhostd.driver.illumos.block import BlockDriver, IoError
from vhostd.driver.illumos.control import Control
from vhostd.driver.illumos.failures import GuestCorrupted, GuestFailure, GuestHangs, GuestPanics, NoAttach
from vhostd.driver.illumos.guest import Attached, attach, boot
from vhostd.driver.illumos.memory import GuestMemory, Layout
from vhostd.driver.illumos.net import Frame, NetDriver, Offload
from vhostd.driver.illumos.startup import IllumosGuest, Platform

__all__ = [
    "Attached",
    "BlockDriver",
    "Control",
    "Frame",
    "GuestCorrupted",
    "GuestFailure",
    "GuestHangs",
    "GuestMemory",
    "GuestPanics",
    "IllumosGuest",
    "IoError",
    "Layout",
    "NetDriver",
    "NoAttach",
    "Offload",
    "Platform",
    "attach",
    "boot",
]
