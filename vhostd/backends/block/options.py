"""What an operator may say of a disk. The names are those of the configuration file and the flags."""

import dataclasses
from typing import Literal

QUEUES_MAX = 256


@dataclasses.dataclass(frozen=True, slots=True)
class BlockOptions:
    """One disk.

    queues: request queues on offer, 0: as many as can be (QEMU asks for one per vCPU and fails when there are fewer).
    block_size, physical_block_size: bytes, 0: as the host says. seg_max: data segments in one request.
    """

    image: str
    name: str = "disk"
    serial: str | None = None
    read_only: bool = False
    queues: int = 0
    aio: Literal["auto", "mapped", "io_uring", "sync"] = "auto"
    direct: bool = False
    format: Literal["raw"] | None = None
    block_size: int = 512
    physical_block_size: int = 0
    seg_max: int = 126
    discard: bool = True
    write_zeroes: bool = True
    write_cache: bool = True
