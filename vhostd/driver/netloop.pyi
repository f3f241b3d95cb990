from typing import NamedTuple

from vhostd.driver.gauge import Gauge
from vhostd.driver.virtqueue import Virtqueue

class Counters(NamedTuple):
    frames: int
    bytes: int
    elapsed_ns: int
    kicks: int
    publishes: int
    sleeps: int
    calls: int
    latency: tuple[tuple[int, ...], int, int, int]

def tx_load(
    queue: Virtqueue,
    *,
    frame: bytes,
    header: bytes,
    depth: int,
    poll: bool = False,
    duration_ns: int,
    gauge: Gauge | None = None,
) -> Counters: ...
def rx_load(
    queue: Virtqueue,
    *,
    wire_fd: int,
    frame: bytes,
    header_len: int,
    depth: int,
    buffer_len: int,
    window: int,
    poll: bool = False,
    duration_ns: int,
    gauge: Gauge | None = None,
) -> Counters: ...
def echo_load(
    rx: Virtqueue,
    tx: Virtqueue,
    *,
    wire_fd: int,
    frame: bytes,
    reply: bytes,
    header: bytes,
    poll: bool = False,
    duration_ns: int,
    gauge: Gauge | None = None,
) -> Counters: ...
