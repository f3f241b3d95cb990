"""A card without a socket: back-end, worker and rings of ours, a guest of driver/, and the wire behind the tap."""

import ctypes
import os
import select
import socket
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vhostd.backends.net.backend import COUNTER_NAMES, NetBackend
from vhostd.backends.net.options import NetOptions
from vhostd.driver.arena import Arena
from vhostd.driver.net import NetDriver
from vhostd.driver.virtqueue import Virtqueue
from vhostd.queues.counters import Counters
from vhostd.queues.memory import Fault, GuestMemory, Region
from vhostd.queues.queue import Queue
from vhostd.spec import virtio
from vhostd.spec.net import Feature
from vhostd.workers.pool import WorkerPool

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
SIOCETHTOOL = 0x8946
ETHERTYPE = b"\x88\xb5"  # IEEE local experimental: no stack answers
HOST = b"\x02\x00\x00\x00\x00\x01"
GUEST = b"\x02\x00\x00\x00\x00\x02"

OFFLOADS = (
    Feature.CSUM
    | Feature.HOST_TSO4
    | Feature.HOST_TSO6
    | Feature.HOST_ECN
    | Feature.GUEST_CSUM
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.GUEST_ECN
)
RING = virtio.Feature.EVENT_IDX | virtio.Feature.INDIRECT_DESC | virtio.Feature.ANY_LAYOUT
MODERN = int(virtio.Feature.VERSION_1) | int(RING)
FULL = MODERN | int(Feature.MRG_RXBUF) | int(OFFLOADS)


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
        self._socket = netns.call(self._open, name, vnet)
        self._socket.settimeout(timeout)

    @staticmethod
    def _open(name, vnet):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        opened.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        if vnet:
            opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        opened.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUFFORCE if hasattr(socket, "SO_RCVBUFFORCE") else 33, 8 << 20
        )
        opened.bind((name, ETH_P_ALL))
        return opened

    def send(self, data):
        self._socket.send(data)

    def receive(self, timeout=None):
        """The next frame from the guest."""
        if timeout is not None:
            self._socket.settimeout(timeout)
        return self._socket.recv(70000)

    def silent(self, seconds=0.05):
        """Whether nothing comes for a while."""
        return not select.select([self._socket], [], [], seconds)[0]

    def close(self):
        self._socket.close()


def frame(payload=b"", *, to=GUEST, source=HOST, length=None):
    """An Ethernet frame of a type that nobody answers, filled up to `length` bytes."""
    data = to + source + ETHERTYPE + payload
    if length is not None:
        block = bytes(range(1, 252))
        data += (block * (length // 251 + 1))[: length - len(data)]
    return data


class Card:
    """A NetBackend in operation."""

    def __init__(self, backend, pool):
        self.backend = backend
        self.pool = pool
        self.features = 0
        self.handlers = []
        self.queues = {}
        self.counters = []
        self.reports = []
        self.arena = None
        self.memory = None
        self.virtqueues = []

    @classmethod
    async def open(cls, where, *, poll_ns=0, workers=1, **options):
        options = {"tap": "tap0", "create": True, "netns": where.path, "name": "net0"} | options
        backend = await NetBackend.open(NetOptions(**options))
        pool = WorkerPool(workers, uring=False, poll_ns=poll_ns)
        pool.start()
        card = cls(backend, pool)
        for number in range(backend.handler_count()):
            worker = pool.worker_for(number)
            card.handlers.append(backend.make_handler(number, worker.loop, number + 1))
            worker.subscribe(number + 1, lambda kind, result: card.reports.append((kind, result)))
        card.counters = [Counters() for _ in range(backend.rings)]
        return card

    async def start(self, features=FULL, *, size=256, pairs=1, arena=None, enable=True, base=0):
        """Be the guest's driver: negotiate, make rings, start and enable them. Return a NetDriver for each pair."""
        self.features = features & self.backend.features
        self.backend.set_features(self.features)
        self.arena = arena or Arena.of(8 << 20)
        self.fault = Fault()
        self.regions = [
            Region(self.arena.fd(r), r.gpa, r.length, r.front_uva, r.mmap_offset, self.fault)
            for r in self.arena.regions
        ]
        self.memory = GuestMemory(self.regions, self.fault)
        drivers = []
        for pair in range(pairs):
            both = [
                Virtqueue(
                    self.arena,
                    size,
                    event_idx=bool(self.features & virtio.Feature.EVENT_IDX),
                    indirect=False,
                    base=base,
                )
                for _ in range(2)
            ]
            for slot, virtqueue in enumerate(both):
                await self.start_ring(2 * pair + slot, virtqueue, base=base, enable=enable)
            self.virtqueues += both
            drivers.append(NetDriver(*both, self.features, timeout=3.0))
        return drivers

    async def start_ring(self, ring, virtqueue, *, base=0, enable=True):
        desc, avail, used = virtqueue.uvas
        queue = Queue(ring, virtqueue.size, desc, avail, used, base, self.features, self.memory, self.counters[ring])
        queue.set_fds(virtqueue.call_fd.number, virtqueue.err_fd.number)
        queue.set_enabled(enable)
        handler, slot = self.backend.place(ring)
        assert await self.send(handler, self.handlers[handler].start(slot, queue, virtqueue.kick_fd.number)) == 0
        self.queues[ring] = queue

    async def send(self, handler, mail):
        return await self.pool.worker_for(handler).send(mail)

    async def enable(self, ring, enabled):
        handler, slot = self.backend.place(ring)
        assert await self.send(handler, self.handlers[handler].enable(slot, enabled=enabled)) == 0

    async def stop(self):
        """Stop all rings; each must stop at once, with nothing in flight."""
        bases = []
        for ring, queue in self.queues.items():
            handler, slot = self.backend.place(ring)
            assert await self.send(handler, self.handlers[handler].stop(slot)) == 0
            assert queue.in_flight == 0
            bases.append(queue.base)
        self.queues.clear()
        self.backend.on_session_end()
        return bases

    def count(self, name, ring=None):
        """A counter of a ring, by default of pair 0's ring of that direction."""
        if ring is None:
            ring = 1 if name.startswith("tx_") else 0
        return self.counters[ring].snapshot(COUNTER_NAMES)[name]

    def wait_for(self, name, value, timeout=3.0, ring=None):
        """Wait until a counter has reached a value; return it."""
        deadline = time.monotonic() + timeout
        while (now := self.count(name, ring)) < value:
            assert time.monotonic() < deadline, f"{name} is {now}, not {value}"
            time.sleep(0.001)
        return now

    def wakeups(self):
        return sum(worker.loop.counters()["wakeups"] for worker in self.pool.workers)

    def worker_cpu_ns(self):
        """CPU time of the worker threads so far."""
        total = 0
        for worker in threading.enumerate():
            if worker.name.startswith("vhostd-worker"):
                text = Path(f"/proc/self/task/{worker.native_id}/schedstat").read_text()
                total += int(text.split()[0])
        return total

    async def close(self):
        if self.queues:
            await self.stop()
        await self.pool.close()
        self.backend.close()
        for virtqueue in self.virtqueues:
            virtqueue.close()
        if self.arena is not None:
            self.arena.close()
            self.memory = None
            for region in self.regions:
                region.close()


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
