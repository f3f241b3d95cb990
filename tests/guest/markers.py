"""What every disk is tried with: the modern interface and the legacy one."""

import pytest

LEGACY = pytest.mark.ours("it says so itself: 'virtio legacy devices aren't supported by libvhost-user'")
both = pytest.mark.parametrize("legacy", [False, pytest.param(True, marks=LEGACY)], ids=["modern", "legacy"])
