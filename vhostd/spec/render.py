"""Numbers as the documents' words, and back: what is named never goes to a reader as a bare number.

Flags are `NAME|NAME|0x40`: names in the order of their bits, then in hex, together, the bits that have none. Nothing
set is `0`. What `flags` writes `parse_flags` reads.
"""

import enum

from vhostd.spec import blk, net, virtio
from vhostd.spec.virtio import DeviceId

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")

# Which feature bits a device has: its own, and those of every device (virtio 6).
DEVICE_FEATURES: dict[DeviceId, type[enum.IntFlag]] = {DeviceId.BLOCK: blk.Feature, DeviceId.NET: net.Feature}


def flags(value: int, *kinds: type[enum.IntFlag]) -> str:
    """Return the bits of `value`, named by whichever of `kinds` has a name for them."""
    names = [name for mask, name in _names(kinds) if value & mask]
    for mask, _ in _names(kinds):
        value &= ~mask
    if value:
        names.append(f"{value:#x}")
    return "|".join(names) or "0"


def parse_flags(text: str, *kinds: type[enum.IntFlag]) -> int:
    """Return the value that `flags` writes as `text`; upper and lower case are one. Raises ValueError for others."""
    known = {name: mask for mask, name in _names(kinds)}
    value = 0
    for word in text.split("|"):
        name = word.strip()
        if name.upper() in known:
            value |= known[name.upper()]
            continue
        try:
            value |= int(name, 0)
        except ValueError:
            raise ValueError(f"there is no flag {name!r}; there are {', '.join(known)}, and numbers") from None
    return value


def features(value: int, device: DeviceId | None) -> str:
    """Return virtio feature bits by name; those of the device stay hex where it is not known which it is."""
    return flags(value, *feature_kinds(device))


def feature_kinds(device: DeviceId | None) -> tuple[type[enum.IntFlag], ...]:
    """Return the enums that name the feature bits of a device (virtio 6)."""
    return (virtio.Feature,) if device is None else (DEVICE_FEATURES[device], virtio.Feature)


def name(value: int, kind: type[enum.IntEnum]) -> str:
    """Return the name of an enumerated value, or hex when it has none."""
    try:
        return kind(value).name
    except ValueError:
        return f"{value:#x}"


def size(length: int) -> str:
    """Return a length in bytes in the largest unit that divides it: `64KiB`, `1023B`."""
    unit = 0
    while length and length % 1024 == 0 and unit < len(_UNITS) - 1:
        length //= 1024
        unit += 1
    return f"{length}{_UNITS[unit]}"


def _names(kinds: tuple[type[enum.IntFlag], ...]) -> list[tuple[int, str]]:
    return sorted((int(member), str(member.name)) for kind in kinds for member in kind)
