"""What only our own back-end is asked for."""

import pytest

from tests.guest.peers import PEER

ours = pytest.mark.skipif(PEER != "vhostd", reason="qemu-storage-daemon does otherwise")
both = pytest.mark.parametrize("legacy", [False, pytest.param(True, marks=ours)], ids=["modern", "legacy"])
