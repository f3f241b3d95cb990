"""vhostd: virtual disks and network cards for VM monitors, served over vhost-user.

The map of the package, room by room, and the order in which imports run is in docs/design.md.
"""

__version__ = "0.1.0"
