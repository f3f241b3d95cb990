"""What a bare chroot lacks, and a test that runs as root can make."""

import os
import stat
from pathlib import Path


def propagation():
    """What unshare --propagation takes here: in a chroot the root is no mount, and has none to change."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return "private" if "/" in mounts else "unchanged"


def ensure_fuse():
    """Make the FUSE device's node where /dev has none."""
    node = Path("/dev/fuse")
    if not node.exists():
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(10, 229))
