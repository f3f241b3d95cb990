"""The host's side of a tap: namespaces of our own, raw frames on the wire."""

import ctypes
import os
import select
import socket
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
SO_RCVBUFFORCE = 33
ETHERTYPE = b"\x88\xb5"  # IEEE local experimental: no stack answers
HOST = b"\x02\x00\x00\x00\x00\x01"
GUEST = b"\x02\x00\x00\x00\x00\x02"


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


class Wire:
    """The host's end of the tap: raw frames, with the kernel's virtio_net_hdr in front if `vnet`."""

    def __init__(self, netns, name, *, vnet=False, timeout=5.0):
        self.socket = netns.call(self._open, name, vnet)
        self.socket.settimeout(timeout)

    @staticmethod
    def _open(name, vnet):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        opened.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        if vnet:
            opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        opened.bind((name, ETH_P_ALL))
        return opened

    def send(self, data):
        self.socket.send(data)

    def receive(self, timeout=None):
        """The next frame from the guest."""
        if timeout is not None:
            self.socket.settimeout(timeout)
        return self.socket.recv(70000)

    def silent(self, seconds=0.05):
        """Whether nothing comes for a while."""
        return not select.select([self.socket], [], [], seconds)[0]

    def close(self):
        self.socket.close()


def frame(payload=b"", *, to=GUEST, source=HOST, length=None):
    """An Ethernet frame of a type that nobody answers, filled up to `length` bytes."""
    data = to + source + ETHERTYPE + payload
    if length is not None:
        block = bytes(range(1, 252))
        data += (block * (length // 251 + 1))[: length - len(data)]
    return data


def tcp_segment(length, *, mss=1448, to=GUEST, source=HOST):
    """A TCP frame of `length` payload bytes whose checksum is left to others, and its virtio_net_hdr of 10 bytes."""
    payload = (bytes(range(256)) * (length // 256 + 1))[:length]
    ip_len = 20 + 20 + length
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, ip_len, 1, 0, 64, 6, 0, bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]))
    ip = ip[:10] + struct.pack("!H", _ones(ip)) + ip[12:]
    pseudo = ip[12:20] + struct.pack("!BBH", 0, 6, 20 + length)
    tcp = struct.pack("!HHIIBBHHH", 1000, 2000, 1, 1, 0x50, 0x10, 65535, ~_ones(pseudo) & 0xFFFF, 0)
    data = to + source + b"\x08\x00" + ip + tcp + payload
    gso = (1, mss) if length > mss else (0, 0)
    return struct.pack("<BBHHHH", 1, gso[0], 54, gso[1], 34, 16), data


def udp_frame(port, payload=b""):
    """A small UDP frame from `port`, one flow for each."""
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 1, 0, 64, 17, 0, bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])
    )
    ip = ip[:10] + struct.pack("!H", _ones(ip)) + ip[12:]
    data = GUEST + HOST + b"\x08\x00" + ip + struct.pack("!HHHH", port, 2000, 8 + len(payload), 0) + payload
    return data.ljust(60, b"\0")


def udp_port(data):
    """The port a UDP frame comes from."""
    return int.from_bytes(data[34:36])


def _ones(data):
    """The Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


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
