"""A queue as the control thread builds it and a back-end runs it: ring, call and break, in one place."""

import enum
from typing import final

from vhostd.queues.counters import Counters
from vhostd.queues.memory import GuestMemory

class Code(enum.IntEnum):
    EMPTY = 0
    CHAIN = 1
    E_BROKEN = -1
    E_AVAIL_IDX = -2
    E_HEAD = -3
    E_BUSY = -4
    E_NEXT = -5
    E_LOOP = -6
    E_ORDER = -7
    E_INDIRECT = -8
    E_TABLE = -9
    E_FRAMING = -10
    E_LENGTH = -11
    E_FAULT = -12
    E_GONE = -13

EXPLAIN: dict[Code, str]

@final
class Queue:
    index: int
    def __init__(
        self,
        index: int,
        size: int,
        desc_uva: int,
        avail_uva: int,
        used_uva: int,
        base: int,
        features: int,
        memory: GuestMemory,
        counters: Counters,
    ) -> None: ...
    def set_fds(self, call_fd: int, err_fd: int) -> None: ...
    def set_enabled(self, enabled: bool) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def base(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def broken(self) -> Code | None: ...
    @property
    def pending(self) -> int: ...
    def pop(self) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]] | Code: ...
    def push(self, head: int, written: int) -> None: ...
    def flush(self) -> None: ...
    def kicks_off(self) -> None: ...
    def kicks_on(self) -> bool: ...
    def adopt(self, old: Queue) -> None: ...
