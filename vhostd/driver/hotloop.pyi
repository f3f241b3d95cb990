import builtins
from typing import NamedTuple

from vhostd.driver.gauge import Gauge
from vhostd.driver.stamp import Ledger
from vhostd.driver.virtqueue import Virtqueue

class Counters(NamedTuple):
    ios: int
    bytes: int
    errors: int
    short: int
    elapsed_ns: int
    kicks: int
    publishes: int
    sleeps: int
    calls: int
    latency: tuple[tuple[tuple[int, ...], int, int, int], ...]
    flushes: int
    unsent: int
    failed: tuple[int, int, int] | None
    wrong: tuple[int, int, builtins.bytes] | None

def block_load(
    queue: Virtqueue,
    *,
    depth: int,
    block_len: int,
    disk_len: int,
    write_percent: int = 0,
    discard_percent: int = 0,
    flush_every: int = 0,
    segments: int = 1,
    sequential: bool = False,
    poll: bool = False,
    batch: int = 0,
    duration_ns: int,
    seed: int = 1,
    range_first: int = 0,
    range_blocks: int | None = None,
    first_block: int = 0,
    rate: int = 0,
    share: int = 1,
    turn: int = 0,
    ledger: Ledger | None = None,
    sweep: bool = False,
    gauge: Gauge | None = None,
) -> Counters: ...
