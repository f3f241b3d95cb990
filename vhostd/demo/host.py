"""The host's end of a guest's network: a private namespace with a tap, and the two ends of a bulk transfer.

Nothing of the machine's own network is touched: the namespace is nameless and goes with the last who holds it.
"""

import asyncio
import ctypes
import hashlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vhostd.demo.errors import DemoError
from vhostd.demo.programs import find, output_of

_CLONE_NEWNET = 0x40000000
_TUN = Path("/dev/net/tun")
_TUN_NUMBER = os.makedev(10, 200)  # kernel: Documentation/admin-guide/devices.txt
_CHUNK = 1 << 18

T = TypeVar("T")


def _libc_call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _in_thread(function: Callable[[], T]) -> T:
    """Run `function` in a thread that is used once: what it does to its namespaces ends with it."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 handed to the caller
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class Namespace:
    """A network namespace of our own, there while this object is open."""

    def __init__(self) -> None:
        """Make one. Raises DemoError when we may not (it takes CAP_SYS_ADMIN, if only in a user namespace)."""

        def make() -> int:
            _libc_call("unshare", _CLONE_NEWNET)
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        try:
            self.fd = _in_thread(make)
        except OSError as error:
            raise DemoError(f"no network namespace of our own: {error}") from None

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` inside; a socket that it makes stays inside."""

        def enter() -> T:
            _libc_call("setns", self.fd, _CLONE_NEWNET)
            return function()

        return _in_thread(enter)

    def command(self, *argv: str | Path) -> list[str]:
        """Return the command line that runs a program inside; it must inherit `fd` (pass_fds)."""
        return [
            "nsenter",
            f"--net=/proc/self/fd/{self.fd}",
            "--",
            find(str(argv[0])),
            *(str(word) for word in argv[1:]),
        ]

    async def output_of(self, *argv: str | Path, deadline: float = 30) -> str:
        """Run a program inside and return what it printed."""
        return await output_of(*self.command(*argv), deadline=deadline, pass_fds=[self.fd])

    async def tap(self, name: str, address: str, *, mtu: int = 1500, multi_queue: bool = False) -> None:
        """Make a persistent tap with an address ("192.0.2.1/24"), ready for vnet headers, and bring it up."""
        await asyncio.to_thread(_ensure_tun)
        words = ["ip", "tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"]
        await self.output_of(*words, *(["multi_queue"] if multi_queue else []))
        await self.output_of("ip", "address", "add", address, "dev", name)
        await self.output_of("ip", "link", "set", "dev", name, "mtu", str(mtu), "up")
        await self.output_of("ip", "link", "set", "dev", "lo", "up")

    def listen(self, address: str, port: int = 0) -> socket.socket:
        """Return a TCP socket that listens inside."""
        listener = self.call(lambda: socket.create_server((address, port)))
        listener.setblocking(False)
        return listener

    def close(self) -> None:
        """Let it go."""
        os.close(self.fd)


def _ensure_tun() -> None:
    """Make the tun device's node where a bare /dev lacks it (a fresh chroot); root may."""
    if _TUN.exists():
        if not os.access(_TUN, os.R_OK | os.W_OK):
            raise DemoError(f"{_TUN}: only root may open it here (udev lets everyone: mode 0666): no tap for us")
        return
    try:
        _TUN.parent.mkdir(exist_ok=True)
        os.mknod(_TUN, stat.S_IFCHR | 0o600, _TUN_NUMBER)
    except OSError as error:
        raise DemoError(f"{_TUN}: not there and cannot be made ({error.strerror}): no tap here") from None


@dataclass(frozen=True)
class Transfer:
    """What went over a connection."""

    length: int
    """In bytes."""
    digest: str
    """SHA-256, in hexadecimal."""
    seconds: float

    @property
    def mib_per_second(self) -> float:
        """Return the throughput in MiB/s."""
        return self.length / (1 << 20) / max(self.seconds, 1e-9)


async def sink(listener: socket.socket, deadline: float = 60) -> Transfer:
    """Accept one connection and take all that it sends. Raises TimeoutError after `deadline` seconds."""
    loop = asyncio.get_running_loop()
    digest, length = hashlib.sha256(), 0
    async with asyncio.timeout(deadline):
        connection, _ = await loop.sock_accept(listener)
        with connection:
            connection.setblocking(False)
            start = time.monotonic()
            while data := await loop.sock_recv(connection, _CHUNK):
                digest.update(data)
                length += len(data)
    return Transfer(length, digest.hexdigest(), time.monotonic() - start)


async def source(listener: socket.socket, chunks: Iterable[bytes], deadline: float = 60) -> Transfer:
    """Accept one connection, send `chunks`, and wait until the other end has closed it: it has all of them then."""
    loop = asyncio.get_running_loop()
    digest, length = hashlib.sha256(), 0
    async with asyncio.timeout(deadline):
        connection, _ = await loop.sock_accept(listener)
        with connection:
            connection.setblocking(False)
            start = time.monotonic()
            for chunk in chunks:
                digest.update(chunk)
                length += len(chunk)
                await loop.sock_sendall(connection, chunk)
            connection.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(connection, _CHUNK):
                pass
    return Transfer(length, digest.hexdigest(), time.monotonic() - start)
