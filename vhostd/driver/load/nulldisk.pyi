from collections.abc import Collection
from types import TracebackType
from typing import Self, final

from vhostd.driver.virtqueue import Virtqueue

@final
class NullDisk:
    def __new__(cls, queue: Virtqueue, cpus: Collection[int] | None = None) -> Self: ...
    @property
    def served(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None: ...
