"""A whole guest's side in one `with`: memory, connection, queues, started and enabled."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vhostd.driver.arena import Arena
from vhostd.driver.blk import BlockDriver
from vhostd.driver.frontend import DEVICE_BITS, PROTOCOL_FEATURES, RING_FEATURES, Frontend
from vhostd.driver.layout import legacy_layout
from vhostd.driver.net import NetDriver
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import LocalProtocolError
from vhostd.spec.vhost_user import ProtocolFeature
from vhostd.spec.virtio import Feature


@dataclass
class Session:
    """What one guest has; the fields may be used directly."""

    frontend: Frontend
    arena: Arena
    queues: list[Virtqueue]
    timeout: float

    def block(self, index: int = 0, *, poll: bool = False) -> BlockDriver:
        """Return a block driver of one queue."""
        return BlockDriver(self.queues[index], timeout=self.timeout, poll=poll)

    def net(self, pair: int = 0) -> NetDriver:
        """Return a network driver of one queue pair (5.1.2: receiveq is 2n, transmitq 2n + 1)."""
        rx, tx = self.queues[2 * pair : 2 * pair + 2]
        return NetDriver(rx, tx, self.frontend.features, timeout=self.timeout)

    def start(self, *, enable: int | None = None) -> None:
        """Start, or start again after `stop`."""
        self.frontend.start(self.arena, self.queues, enable=enable)

    def stop(self) -> list[int]:
        """Stop all rings; return their bases."""
        return self.frontend.stop()


@contextlib.contextmanager
def open_session(
    path: str | os.PathLike[str],
    *,
    queues: int = 1,
    size: int = 128,
    features: int = DEVICE_BITS | RING_FEATURES,
    protocol_features: ProtocolFeature = PROTOCOL_FEATURES,
    indirect: bool = True,
    legacy: bool = False,
    base: int | None = None,
    packed: bool = False,
    arena: Arena | None = None,
    memory_len: int = 32 << 20,
    timeout: float = 5.0,
    start: bool = True,
    connect: Callable[..., Frontend] = Frontend.connect,
) -> Iterator[Session]:
    """Connect to a back-end and start `queues` rings of `size` entries; stop and close at the end.

    `features` bounds what is acknowledged; EVENT_IDX and indirect chains are used where they were. `legacy` is a
    driver before 1.0: no VERSION_1, contiguous rings. `packed` are packed rings. `base` is where both sides of a ring
    begin. `arena` (the caller's, left open) or `memory_len` bytes of memory. `timeout` in seconds, for each message and
    request. `connect` is another way to connect, called with `path` and `timeout`.
    Raises LocalProtocolError for packed rings where RING_PACKED is not offered.
    """
    with contextlib.ExitStack() as stack:
        memory = arena if arena is not None else stack.enter_context(Arena.of(memory_len))
        frontend = stack.enter_context(connect(path, timeout=timeout))
        wanted = features & ~Feature.VERSION_1 if legacy else features
        agreed = frontend.negotiate(wanted | (Feature.RING_PACKED if packed else 0), protocol_features)
        if packed and not agreed & Feature.RING_PACKED:
            raise LocalProtocolError("the back-end does not offer RING_PACKED (virtio 2.8)")
        rings: list[Virtqueue] = []
        for _ in range(queues):
            ring = Virtqueue(
                memory,
                size,
                event_idx=bool(agreed & Feature.EVENT_IDX),
                indirect=indirect and bool(agreed & Feature.INDIRECT_DESC),
                layout=legacy_layout(size) if legacy else None,
                base=base,
                packed=packed,
            )
            rings.append(ring)
            stack.callback(ring.close)
        # The socket goes before the rings' memory does: a back-end may use a ring until it is stopped.
        stack.callback(frontend.close)
        session = Session(frontend, memory, rings, timeout)
        if start:
            session.start()
        yield session
