"""A virtio framework in user space: what is the same for all drivers, and a block and a net driver on top.

LIFE      `Device.attach` connects, negotiates, makes memory and rings, and starts them; a step that fails undoes those
          before it. A driver (vioblk, vioif) attaches its Device, makes its pools once, and closes in reverse order,
          each any number of times. `reset` stops every ring and gives all chains back; `start` goes on after it.
MEMORY    Pools are made at attach, zeroed in one place (Arena), and never grow: no allocation of shared memory later.
CHAINS    One interface over direct and indirect, split and packed, legacy and modern. ALLOCATED, appended to, submitted
          (IN_FLIGHT, not yet visible), shown by `flush`, COMPLETE. Whoever waits for a chain frees it, else its
          completion does.
WAITING   Each wait has a deadline. After a DeviceTimeout the device is reset and its chains are evacuated, and only
          then is memory handed out again; a device that cannot be reset is broken and keeps it.
TRUST     Used ids and lengths, configuration and identity come from a device that may be wrong: each is checked, and
          what is wrong raises or is counted, and never crashes.
OWNERS    One thread drives a device. Callbacks run without any state half changed.
NOT HERE  Requests and frames in odd shapes for tests (driver/blk.py, driver/net.py), raw access (driver/virtqueue.pyx).
"""
