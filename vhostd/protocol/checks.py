"""Checks of one payload that ask nothing of the session.

Each raises RemoteProtocolError; `name` is the request's, for its text.
"""

from vhostd.errors import RemoteProtocolError
from vhostd.protocol.framing import Frame
from vhostd.protocol.messages import Config, MemRegion, VringFd
from vhostd.protocol.vring import ADDRESS_END
from vhostd.spec import vhost_user as spec

# Front-ends of the rust-vmm family (Cloud Hypervisor, Firecracker) count configuration space from where virtio-mmio
# puts it (4.2.2). The space itself has 256 bytes at most, so that the two ways of counting cannot be confused.
_CONFIG_BASE = 0x100


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def span(counts: range) -> str:
    """Return a row's fd counts as a sentence has them."""
    if len(counts) == 1:
        return str(counts[0]) if counts[0] else "none"
    return f"{counts[0]} to {counts[-1]}"


def identity(region: MemRegion) -> tuple[int, int, int]:
    """Return what makes a region the same: not its mmap offset ("REM_MEM_REG")."""
    return region.gpa, region.length, region.uva


def check_region(name: str, region: MemRegion, others: tuple[MemRegion, ...]) -> None:
    """Raise RemoteProtocolError for a region that is empty, passes 64 bits, or overlaps one of `others`."""
    rule = '(vhost-user, "Memory region description")'
    if region.length == 0:
        raise RemoteProtocolError(f"{name}: a region of 0 bytes at gpa {region.gpa:#x} {rule}")
    for what, start in (("gpa", region.gpa), ("user address", region.uva), ("mmap offset", region.mmap_offset)):
        if start + region.length > ADDRESS_END:
            raise RemoteProtocolError(f"{name}: {what} {start:#x} and size {region.length:#x} pass 64 bits {rule}")
    for other in others:
        for what, start, other_start in (("gpa", region.gpa, other.gpa), ("user address", region.uva, other.uva)):
            if start < other_start + other.length and other_start < start + region.length:
                raise RemoteProtocolError(
                    f"{name}: the region at {what} {start:#x} overlaps the one at {other_start:#x} {rule}"
                )


def check_vring_fd(name: str, frame: Frame, message: VringFd) -> None:
    """Raise RemoteProtocolError when bit 8 and the descriptors contradict each other."""
    if message.no_fd and frame.fds:
        raise RemoteProtocolError(f'{name}: bit 8 says no fd, and there is one (vhost-user, "SET_VRING_KICK")')
    if not message.no_fd and not frame.fds:
        raise RemoteProtocolError(f'{name}: no fd, and bit 8 does not say so (vhost-user, "SET_VRING_KICK")')


def check_config(name: str, message: Config, limit: int) -> int:
    """Return the offset from the start of configuration space, which has `limit` bytes.

    Raises RemoteProtocolError for no bytes, for bytes beyond the limit, and for unknown flags.
    """
    rule = '(vhost-user, "Virtio device config space")'
    offset = message.offset - _CONFIG_BASE if message.offset >= _CONFIG_BASE else message.offset
    if message.size == 0:
        raise RemoteProtocolError(f"{name}: 0 bytes {rule}")
    if offset + message.size > limit:
        raise RemoteProtocolError(
            f"{name}: {message.size} bytes at {message.offset}, the configuration space ends at {limit} {rule}"
        )
    if message.flags > spec.ConfigFlag.MIGRATION:
        raise RemoteProtocolError(f"{name}: flags {message.flags:#x} are not known {rule}")
    return offset
