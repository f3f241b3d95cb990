"""What the drivers of every device type do to a buffer before a device gets it."""

from collections.abc import Iterable

from vhostd.errors import LocalProtocolError

POISON = 0xFF  # what a device must overwrite: no status byte has this value
GUARD = b"\xa5" * 16  # behind each buffer: what no device may touch


def cut(length: int, pieces: Iterable[int]) -> list[int]:
    """Return piece lengths that sum up to `length`: those given, then one with the rest.

    Raises LocalProtocolError when the given ones are longer. A list [1] * n cuts n single bytes off the front.
    """
    lengths = list(pieces)
    left = length - sum(lengths)
    if left < 0:
        raise LocalProtocolError(f"pieces {lengths} are longer than {length} bytes")
    return [*lengths, left] if left else lengths
