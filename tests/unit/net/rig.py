"""A card without a socket: back-end, worker and rings of ours, and a guest of driver/."""

import threading
import time
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
    async def open(cls, where, *, poll_ns=0, workers=1, uring=None, **options):
        options = {"tap": "tap0", "create": True, "netns": where.path, "name": "net0"} | options
        backend = await NetBackend.open(NetOptions(**options))
        pool = WorkerPool(workers, uring=uring, poll_ns=poll_ns)
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
