"""The host's side of a card: raw frames on its tap, in whatever network namespace that is, and what the tap counted."""

import ctypes
import os
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from vhostd.driver.load.errors import BenchError

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3
_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_PACKET_QDISC_BYPASS = 20
_PACKET_IGNORE_OUTGOING = 23


def inside(netns: str | None, function: Callable[[], T]) -> T:
    """Call a function in the network namespace that a path leads to, or in ours. Raises BenchError when it cannot."""
    if netns is None:
        return function()

    def there() -> T:
        try:
            fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BenchError(f"--netns {netns}: {error.strerror}") from error
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(fd, _CLONE_NEWNET) < 0:
                raise BenchError(f"--netns {netns}: {os.strerror(ctypes.get_errno())}; it takes root")
        finally:
            os.close(fd)
        return function()

    with ThreadPoolExecutor(1) as executor:  # a thread that ends, since it does not come back from there
        return executor.submit(there).result()


def open_wire(interface: str, netns: str | None = None, *, vnet: bool = False) -> socket.socket:
    """Return a blocking raw socket on an interface, which sees only what the guest sends.

    vnet: the kernel's virtio_net_hdr of 10 bytes stands before each frame, so that it may be one to be cut up.
    Raises BenchError when there is no such interface, or it is not permitted.
    """

    def there() -> socket.socket:
        try:
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError as error:
            raise BenchError("raw frames take root, or CAP_NET_RAW") from error
        try:
            opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            opened.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            if vnet:
                opened.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            opened.bind((interface, _ETH_P_ALL))
        except OSError as error:
            opened.close()
            where = "in " + netns if netns else "here"
            raise BenchError(
                f"--interface {interface}: {error.strerror}, {where}; `ip link` shows those there are"
            ) from error
        return opened

    return inside(netns, there)


def arrived(interface: str, netns: str | None = None) -> int:
    """Return how many frames have come from the guest through a tap, by the kernel's count.

    Raises BenchError when there is no such interface.
    """
    text = inside(netns, Path("/proc/thread-self/net/dev").read_text)
    found = re.search(rf"^\s*{re.escape(interface)}:\s*\d+\s+(\d+)", text, re.M)
    if found is None:
        raise BenchError(f"--interface {interface}: there is no such interface; `ip link` shows those there are")
    return int(found[1])
