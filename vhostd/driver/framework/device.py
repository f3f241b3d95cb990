"""A virtio device behind a vhost-user socket: attached, reset, evacuated, closed.

A driver says what it wants; what it gets is the device's. The front-end's part (memory, rings, status) is QEMU's order.
"""

import contextlib
import enum
import logging
import os
import select
import time
from collections import Counter
from collections.abc import Callable
from typing import Self

from vhostd.driver.arena import Arena
from vhostd.driver.framework.chain import Chain, ChainQueue, drain
from vhostd.driver.frontend import PROTOCOL_FEATURES, Frontend
from vhostd.driver.layout import legacy_layout
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceError, DeviceTimeout, LocalProtocolError, VhostdError
from vhostd.fds import Fd
from vhostd.protocol.messages import U64
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Feature

log = logging.getLogger(__name__)

CONFIG_TRIES = 8  # reads of one field until two of them agree


class Notify(enum.Enum):
    """How the device tells us of used chains."""

    OWN = "a call descriptor for each ring"
    SHARED = "one call descriptor for all rings"
    POLL = "none: we look"


class Device:
    """One attached device. Made by `attach`; every wait is bounded by `timeout` seconds.

    counters: what went wrong, by name. broken: why the device is of no use any more, or None.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 5.0, notify: Notify = Notify.OWN) -> None:
        self.path = os.fspath(path)
        self.timeout = timeout
        self.notify = notify
        self.counters: Counter[str] = Counter()
        self.broken: str | None = None
        self.features = 0
        self.queues: list[ChainQueue] = []
        self.running = False
        self._undo = contextlib.ExitStack()
        self._closed = False

    @classmethod
    def attach(
        cls,
        path: str | os.PathLike[str],
        *,
        wanted: int,
        queues: int = 1,
        size: int = 128,
        memory_len: int = 64 << 20,
        legacy: bool = False,
        packed: bool = False,
        indirect: bool = True,
        timeout: float = 5.0,
        notify: Notify = Notify.OWN,
    ) -> "Device":
        """Connect and negotiate, make memory and rings. The rings start with `start`, once the driver has its chains.

        wanted: the features a driver knows what to do with; never is more acknowledged than was offered of them. A step
        that fails leaves nothing behind: no descriptor, no mapping, no allocation.
        Raises DeviceError, DeviceTimeout, LocalProtocolError.
        """
        device = cls(path, timeout=timeout, notify=notify)
        try:
            device.connect()
            ring_bits = Feature.PROTOCOL_FEATURES | Feature.EVENT_IDX
            ring_bits |= Feature.INDIRECT_DESC if indirect else Feature(0)
            ring_bits |= Feature(0) if legacy else Feature.VERSION_1
            ring_bits |= Feature.RING_PACKED if packed else Feature(0)
            device.negotiate(wanted | ring_bits)
            device.make_memory(memory_len)
            device.make_rings(queues, size, legacy=legacy, packed=packed)
        except BaseException:
            device.close()
            raise
        return device

    # The steps of an attach, in their order. Each pushes what undoes it.

    def connect(self) -> None:
        """Connect to the back-end."""
        self.frontend = Frontend.connect(self.path, timeout=self.timeout, wait=self.timeout)
        self._undo.callback(self.frontend.close)

    def negotiate(self, wanted: int) -> None:
        """Agree on features; the result is the contract, not the offer.

        Raises LocalProtocolError where packed rings are wanted and not offered.
        """
        self.features = self.frontend.negotiate(wanted, PROTOCOL_FEATURES)
        if wanted & Feature.RING_PACKED & ~self.features:
            raise LocalProtocolError("the device does not offer RING_PACKED (virtio 2.8)")

    def make_memory(self, length: int) -> None:
        """Make the memory that the device will see, all of it zero."""
        self.arena = Arena.of(length)
        self._undo.callback(self.arena.close)

    def make_rings(self, count: int, size: int, *, legacy: bool, packed: bool) -> None:
        """Make rings and their descriptors."""
        self.shared_call: Fd | None = None
        if self.notify is Notify.SHARED:
            self.shared_call = Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self._undo.callback(self.shared_call.close)
        self.rings: list[Virtqueue] = []
        for _ in range(count):
            ring = Virtqueue(
                self.arena,
                size,
                event_idx=bool(self.features & Feature.EVENT_IDX),
                indirect=bool(self.features & Feature.INDIRECT_DESC),
                layout=legacy_layout(size) if legacy else None,
                packed=packed,
                call_fd=self.shared_call,
            )
            self.rings.append(ring)
            self._undo.callback(ring.close)

    # What a driver does with it.

    def has(self, feature: int) -> bool:
        """Whether a feature was agreed upon."""
        return bool(self.features & feature)

    def make_queue(self, index: int, *, chains: int, capacity: int) -> ChainQueue:
        """Make the chains of ring `index`, before `start`. Raises LocalProtocolError when the arena has no room."""
        queue = ChainQueue(self.rings[index], chains=chains, capacity=capacity, poll=self.notify is Notify.POLL)
        self._undo.callback(queue.close)
        self.queues.append(queue)
        return queue

    def push_undo(self, function: Callable[[], None]) -> None:
        """Have something done at close, before what stands now."""
        self._undo.callback(function)

    def start(self) -> None:
        """Start every ring and set DRIVER_OK. Raises DeviceError; the rings are stopped then."""
        self._check()
        try:
            self.frontend.start(self.arena, self.rings)
            for index in range(len(self.rings)) if self.notify is Notify.POLL else ():
                self.frontend.set_call(index, None)
        except BaseException:
            self._stop_quietly()
            raise
        self.running = True

    def config(self, offset: int, length: int) -> bytes:
        """Return `length` bytes of configuration space that were the same in two reads one after the other.

        A field of several words may change between them (2.5.3). It is read from the start on, as QEMU does: there are
        back-ends that do not look at the offset. Raises DeviceError when it never stands still.
        """
        before = self.frontend.config(0, offset + length)
        for _ in range(CONFIG_TRIES):
            now = self.frontend.config(0, offset + length)
            if now[offset:] == before[offset:]:
                return now[offset:]
            before = now
        raise DeviceError(f"configuration space at {offset}: no two of {CONFIG_TRIES} reads agree (2.5.3)")

    def reset(self) -> list[Chain]:
        """End all of the device's access to memory, and take every chain back; return those it had.

        Within `timeout`: rings are stopped (GET_VRING_BASE), then the status is set to 0 and read back where STATUS was
        negotiated. A device that does not manage is broken, and what it had stays its own.
        Raises DeviceError, DeviceTimeout.
        """
        deadline = time.monotonic() + self.timeout
        try:
            for index in range(len(self.rings)):
                self.frontend.get_base(index)
            self.frontend.bases.clear()
            if self.frontend.protocol_features & ProtocolFeature.STATUS:
                self.frontend.tell(FrontendRequest.SET_STATUS, U64(0), ack=False)
                while self.frontend.ask_u64(FrontendRequest.GET_STATUS):
                    if time.monotonic() > deadline:
                        raise DeviceTimeout("the status does not become 0 (2.1.2)")
            elif self.frontend.protocol_features & ProtocolFeature.RESET_DEVICE:
                self.frontend.tell(FrontendRequest.RESET_DEVICE, ack=False)
        except VhostdError as error:
            self.broken = f"could not be reset: {error}"
            raise
        self.running = False
        chains: list[Chain] = []
        for queue in self.queues:
            chains += queue.evacuate()
        for ring in self.rings[len(self.queues) :]:
            ring.reset()
        return chains

    def give_up(self, error: DeviceError) -> list[Chain]:
        """After a deadline that passed, or a used element that cannot be: reset, and return what was in flight.

        A device that cannot be reset is broken. Never raises.
        """
        self.counters["timeouts" if isinstance(error, DeviceTimeout) else "broken_rings"] += 1
        try:
            return self.reset()
        except VhostdError as second:
            log.warning("device is broken", extra={"path": self.path, "why": second})
            return []

    def wait_any(self, timeout: float) -> bool:
        """Wait until some ring may have used chains, and reap them all; whether anything came.

        With one call descriptor for all rings each of them is looked at.
        """
        self._check()
        if self._reap_all():
            return True
        if self.notify is Notify.POLL:
            deadline = time.monotonic() + timeout
            while time.monotonic() < deadline:
                if self._reap_all():
                    return True
            return False
        if sum(queue.ring.arm() for queue in self.queues):  # each of them, not only up to the first
            return self._reap_all()
        calls = {queue.ring.call_fd.number for queue in self.queues}
        ready, _, _ = select.select(calls, (), (), timeout)
        for number in ready:
            drain(number)
        return self._reap_all()

    def close(self) -> None:
        """Stop the rings and give everything back; a second time, or half attached, it does what is left.

        It cannot fail: what does not go is logged and counted. The memory of a broken device goes with the connection.
        """
        if self._closed:
            return
        self._closed = True
        self._stop_quietly()
        while True:
            try:
                self._undo.close()
            except (OSError, VhostdError) as error:
                self.counters["close_errors"] += 1
                log.warning("close failed", extra={"path": self.path, "why": error})
                continue
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reap_all(self) -> bool:
        return sum(queue.reap() for queue in self.queues) > 0

    def _stop_quietly(self) -> None:
        if not self.running:
            return
        self.running = False
        try:
            for index in range(len(self.rings)):
                self.frontend.get_base(index)
        except (OSError, VhostdError) as error:
            self.counters["close_errors"] += 1
            log.info("rings were not stopped", extra={"path": self.path, "why": error})

    def _check(self) -> None:
        if self._closed:
            raise LocalProtocolError("device: used after close")
        if self.broken is not None:
            raise DeviceError(f"the device is broken: {self.broken}")


def plausible(value: int, bits: int, otherwise: int, *, zero: int | None = None) -> int:
    """Return a configuration value, or `otherwise` for all-ones, which is what an absent register reads as.

    zero: what stands for 0, `otherwise` when None.
    """
    if value == (1 << bits) - 1:
        return otherwise
    return value if value else (otherwise if zero is None else zero)
