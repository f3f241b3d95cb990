"""What a case is, and the register of all of them.

    @case("VU-MEM-03", 'vhost-user, "Memory region description"', rows={"4k": 4096, "1m": 1 << 20})
    def a_region_has_an_offset(check: Check, offset: int) -> None:
        \"\"\"A region begins `mmap offset` bytes into its file.\"\"\"

The docstring is the rule, in one sentence. With `rows` there is a case for each, `VU-MEM-03.4k`, whose function takes
the row's value.
"""

import enum
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vhostd.errors import LocalProtocolError
from vhostd.spec import blk, net, render, virtio
from vhostd.spec.vhost_user import ProtocolFeature
from vhostd.spec.virtio import DeviceId

if TYPE_CHECKING:
    from vhostd.driver.conformance.check import Check

Kind = Literal["block", "net"]
Function = Callable[..., None]

BLOCK: tuple[Kind, ...] = ("block",)
NET: tuple[Kind, ...] = ("net",)
BOTH: tuple[Kind, ...] = ("block", "net")
NONE = ProtocolFeature(0)
DEVICE_IDS: dict[Kind, DeviceId] = {"block": DeviceId.BLOCK, "net": DeviceId.NET}


class Level(enum.StrEnum):
    """How strongly the document speaks (RFC 2119)."""

    MUST = "MUST"
    SHOULD = "SHOULD"


class Mark(enum.StrEnum):
    """What a case does or takes beside the socket."""

    WRITES = "writes"  # it changes the scratch area of the disk
    WIRE = "needs_wire"  # it takes the host's interface behind the card
    HOSTILE = "hostile"  # it sends what no front-end and no driver may send
    PROC = "needs_proc"  # it looks at the back-end's process


@dataclass(frozen=True)
class Needs:
    """What must have been offered: feature bits, protocol features, so many rings of a disk or pairs of a card.

    `lacks` and `lacks_protocol` must not have been offered; `any_of` at least one.
    """

    features: int = 0
    protocol: ProtocolFeature = NONE
    lacks: int = 0
    lacks_protocol: ProtocolFeature = NONE
    any_of: int = 0
    queues: int = 1

    def missing(self, kind: Kind, features: int, protocol: ProtocolFeature, queues: int) -> str:
        """Return in words why a back-end that offers these is not held to the case; empty when it is."""
        device = DEVICE_IDS[kind]
        if self.features & ~features:
            return render.features(self.features & ~features, device)
        if self.protocol & ~protocol:
            return render.flags(self.protocol & ~protocol, ProtocolFeature)
        if self.any_of and not self.any_of & features:
            return "any of " + render.features(self.any_of, device)
        if self.lacks & features:
            return f"it offers {render.features(self.lacks & features, device)}"
        if self.lacks_protocol & protocol:
            return f"it offers {render.flags(self.lacks_protocol & protocol, ProtocolFeature)}"
        if queues < self.queues:
            unit = "queues" if kind == "block" else "queue pairs"
            return f"{self.queues} {unit} (it has {queues})"
        return ""


@dataclass(frozen=True)
class Row:
    """A row's value with needs of its own, added to those of the case."""

    value: Any
    features: int = 0
    protocol: ProtocolFeature = NONE
    lacks: int = 0


@dataclass(frozen=True)
class Case:
    """One rule that a front-end can observe, and how to see whether it holds.

    `section` is document and heading. `chapter` is the module it stands in. `timeout` in seconds, for the whole case.
    """

    id: str
    section: str
    rule: str
    level: Level
    kinds: tuple[Kind, ...]
    needs: Needs
    marks: frozenset[Mark]
    chapter: str
    run: Callable[["Check"], None] = field(repr=False, compare=False)
    timeout: float = 15.0

    @property
    def words(self) -> str:
        """What `-k` looks at: id, chapter, marks, level and kinds."""
        return " ".join((self.id, self.chapter, *self.marks, self.level, *self.kinds))


REGISTRY: dict[str, Case] = {}


def case(
    id: str,  # noqa: A002 - as a reader calls it
    section: str,
    *,
    level: Level = Level.MUST,
    kinds: tuple[Kind, ...] = BOTH,
    features: int = 0,
    protocol: ProtocolFeature = NONE,
    lacks: int = 0,
    lacks_protocol: ProtocolFeature = NONE,
    any_of: int = 0,
    queues: int = 1,
    marks: Iterable[Mark] = (),
    rows: Mapping[str, Any] | None = None,
    timeout: float = 15.0,
) -> Callable[[Function], Function]:
    """Register a case, or one for each of `rows`. Raises LocalProtocolError for an id that is taken or has no rule."""

    def register(function: Function) -> Function:
        rule = " ".join((inspect.getdoc(function) or "").split())
        if not rule:
            raise LocalProtocolError(f"{id}: a case states its rule in a docstring")
        for name, value in (rows or {"": None}).items():
            row = value if isinstance(value, Row) else Row(value)
            full = f"{id}.{name}" if name else id
            if full in REGISTRY:
                raise LocalProtocolError(f"{full}: there is such a case already")
            REGISTRY[full] = Case(
                id=full,
                section=section,
                rule=rule,
                level=level,
                kinds=kinds,
                needs=Needs(
                    features | row.features, protocol | row.protocol, lacks | row.lacks, lacks_protocol, any_of, queues
                ),
                marks=frozenset(marks),
                chapter=function.__module__.rpartition(".")[2],
                run=_bound(function, row.value) if rows else function,
                timeout=timeout,
            )
        return function

    return register


def _bound(function: Function, value: Any) -> Callable[["Check"], None]:
    return lambda check: function(check, value)


# Names that the chapters use all the time.
BlkFeature = blk.Feature
NetFeature = net.Feature
RingFeature = virtio.Feature
