"""Counters of one ring: written by its worker with relaxed stores, read by anyone, kept over reconnects."""

from collections.abc import Sequence
from typing import final

RING_NAMES: tuple[str, ...]

@final
class Counters:
    def snapshot(self, own: Sequence[str] = ()) -> dict[str, int]: ...
