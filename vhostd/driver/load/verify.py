"""What was read and is not what was written, in words."""

import dataclasses

from vhostd.driver.stamp import read_stamp, stamped
from vhostd.errors import DeviceError
from vhostd.spec.blk import SECTOR_LEN


@dataclasses.dataclass(frozen=True)
class Corruption:
    """The first wrong byte: `offset` in its sector, what should be there and what is; `holds` says what lies there."""

    sector: int
    offset: int
    expected: int
    seen: int
    generation: int
    holds: str

    def __str__(self) -> str:
        """Name the byte as somebody finds it on the disk."""
        at = self.sector * SECTOR_LEN + self.offset
        return (
            f"sector {self.sector}, byte {self.offset} (byte {at} of the disk): expected {self.expected:#04x} of "
            f"generation {self.generation}, seen {self.seen:#04x}; {self.holds}"
        )


class VerifyError(DeviceError):
    """The back-end returned something that was not written there, or not last."""

    def __init__(self, corruption: Corruption) -> None:
        super().__init__(str(corruption))
        self.corruption = corruption


def examine(sector: int, generation: int, data: bytes, run: int, *, any_run: bool) -> Corruption:
    """Return what is wrong with the 512 bytes that were read from `sector`."""
    found = read_stamp(data)
    if any_run:
        run, generation = found.run, found.generation
    should = stamped(SECTOR_LEN, sector, generation, run)
    offset = next(i for i in range(SECTOR_LEN) if data[i] != should[i])
    return Corruption(sector, offset, should[offset], data[offset], generation, _holds(sector, generation, data, run))


def _holds(sector: int, generation: int, data: bytes, run: int) -> str:
    found = read_stamp(data)
    if data == bytes(SECTOR_LEN):
        return "the sector is all zeroes"
    if found.intact:
        whose = "" if found.run == run else " of another run"
        if found.sector != sector:
            return f"the sector holds what was written to sector {found.sector}, generation {found.generation}{whose}"
        return f"the sector holds generation {found.generation}{whose}: an old content"
    should = stamped(SECTOR_LEN, sector, generation, run)
    wrong = sum(a != b for a, b in zip(data, should, strict=True))
    return f"{wrong} of the sector's {SECTOR_LEN} bytes differ, and it is no stamp of anybody"
