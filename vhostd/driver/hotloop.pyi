from typing import NamedTuple

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
    latency: list[int]

def block_load(
    queue: Virtqueue,
    *,
    depth: int,
    block_len: int,
    disk_len: int,
    write_percent: int = 0,
    sequential: bool = False,
    poll: bool = False,
    duration_ns: int,
    seed: int = 1,
    first_block: int = 0,
) -> Counters: ...
def bucket_bounds(index: int) -> tuple[int, int]: ...
