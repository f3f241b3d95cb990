"""The host's side of a tap: namespaces of our own, raw frames on the wire."""

import ctypes
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vhostd.driver import wire
from vhostd.driver.frames import GUEST, HOST, frame, tcp_segment, udp_frame, udp_port

__all__ = ["GUEST", "HOST", "Netns", "Wire", "exchange", "frame", "tcp_segment", "udp_frame", "udp_port"]

CLONE_NEWNET = 0x40000000


class Netns:
    """A network namespace that lives as long as its descriptor; IPv6, which talks unasked, is off in it."""

    def __init__(self):
        self.fd = self._made()

    def _made(self):
        def make():
            _libc("unshare", CLONE_NEWNET)
            for which in ("default", "all"):
                Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        return _on_new_thread(make)

    @property
    def path(self):
        """A path that leads to it, from this process."""
        return f"/proc/self/fd/{self.fd}"

    def call(self, function, *args):
        """Call a function inside."""

        def inside():
            _libc("setns", self.fd, CLONE_NEWNET)
            return function(*args)

        return _on_new_thread(inside)

    def ip(self, *words):
        """Run `ip words` inside; return what it printed."""
        return self.call(
            lambda: subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=10).stdout
        )

    def close(self):
        os.close(self.fd)


def _libc(name, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _on_new_thread(function):
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()


class Wire(wire.Wire):
    """The host's end of a tap in a namespace."""

    def __init__(self, netns, name, **options):
        self.socket = netns.call(lambda: wire.Wire(name, **options)).socket


def exchange(guest, host, count=20, length=1000):
    """Frames both ways, whole and in order."""
    guest.post(count, 2048)
    for n in range(count):
        data = frame(n.to_bytes(2) + os.urandom(8), length=length)
        host.send(data)
        assert guest.receive().frame == data
        data = frame(n.to_bytes(2) + os.urandom(8), to=HOST, source=GUEST, length=length)
        guest.send(data)
        assert host.receive() == data
    guest.drain()
