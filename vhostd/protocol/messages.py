"""A frozen dataclass for each payload: a field and its width on one line.

A payload's class says how long it may be on the wire (`LENGTHS`, bytes). `PADDING` is how many bytes may follow the
last field: compilers round structures up, and front-ends send what the compiler made. Numbers are unsigned and
little-endian as our hosts are; addresses and lengths are in bytes.
Spec: vhost-user, "Payload".
"""

import dataclasses
from typing import Any, ClassVar, TypeVar, dataclass_transform

import construct
from construct import Adapter, Array, Bytes, FocusedSeq, Int8ul, Int16ul, Int32ul, Int64ul, Padding, PrefixedArray, this
from construct_typed import csfield

from vhostd.spec import vhost_user as spec

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(csfield,))
def payload(kind: type[_T]) -> type[_T]:
    """Make a frozen dataclass of a payload whose fields are `csfield`s."""
    return dataclasses.dataclass(frozen=True)(kind)


class Layout(Adapter):  # type: ignore[type-arg]  # generic in its stubs only
    """The codec of a payload's fields, one after the other."""

    def __init__(self, kind: type[Any]) -> None:
        super().__init__(construct.Struct(**{f.name: f.metadata["subcon"] for f in dataclasses.fields(kind)}))
        self._kind = kind

    def _decode(self, obj: Any, context: Any, path: Any) -> Any:
        return self._kind(**{f.name: obj[f.name] for f in dataclasses.fields(self._kind)})

    def _encode(self, obj: Any, context: Any, path: Any) -> dict[str, Any]:
        return {f.name: getattr(obj, f.name) for f in dataclasses.fields(self._kind)}


class _Tuple(Adapter):  # type: ignore[type-arg]
    """An array as a tuple: messages are values and cannot be edited."""

    def _decode(self, obj: Any, context: Any, path: Any) -> tuple[Any, ...]:
        return tuple(obj)

    def _encode(self, obj: Any, context: Any, path: Any) -> list[Any]:
        return list(obj)


def _exactly(length: int) -> range:
    return range(length, length + 1)


class Message:
    """The base of all payloads."""

    LENGTHS: ClassVar[range]
    PADDING: ClassVar[int] = 0


@payload
class Empty(Message):
    """No payload at all."""

    LENGTHS = _exactly(0)


@payload
class U64(Message):
    """Payload "A single 64-bit integer"."""

    LENGTHS = _exactly(8)
    value: int = csfield(Int64ul)


@payload
class VringState(Message):
    """Payload "A vring state description", and the two descriptions of a vring's base, which have the same form."""

    LENGTHS = _exactly(8)
    index: int = csfield(Int32ul)
    num: int = csfield(Int32ul)


@payload
class VringAddr(Message):
    """Payload "A vring address description"."""

    LENGTHS = _exactly(40)
    index: int = csfield(Int32ul)
    flags: int = csfield(Int32ul)
    desc_uva: int = csfield(Int64ul)
    used_uva: int = csfield(Int64ul)
    avail_uva: int = csfield(Int64ul)
    log_gpa: int = csfield(Int64ul)


@payload
class VringFd(Message):
    """The u64 of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR: bits 0-7 the vring, bit 8 "no descriptor".

    The one payload whose fields are not whole bytes: wire.py has its codec.
    """

    LENGTHS = _exactly(8)
    index: int
    no_fd: bool = False


@payload
class MemRegion(Message):
    """Payload "Memory region description"."""

    LENGTHS = _exactly(spec.MEM_REGION_LEN)
    gpa: int = csfield(Int64ul)
    length: int = csfield(Int64ul)
    uva: int = csfield(Int64ul)
    mmap_offset: int = csfield(Int64ul)


@payload
class MemTable(Message):
    """Payload "Multiple memory regions description".

    Places behind the last region are not looked at: User-Mode Linux always sends two, for one region or two.
    """

    LENGTHS = range(8, 8 + spec.MEM_REGION_LEN * spec.MEM_REGIONS_MAX + 1, spec.MEM_REGION_LEN)
    PADDING = spec.MEM_REGION_LEN * spec.MEM_REGIONS_MAX
    regions: tuple[MemRegion, ...] = csfield(_Tuple(PrefixedArray(construct.Padded(8, Int32ul), Layout(MemRegion))))


@payload
class SingleRegion(Message):
    """Payload "Single memory region description"."""

    LENGTHS = _exactly(8 + spec.MEM_REGION_LEN)
    region: MemRegion = csfield(FocusedSeq("region", Padding(8), "region" / Layout(MemRegion)))


@payload
class Log(Message):
    """Payload "Log description"."""

    LENGTHS = _exactly(16)
    size: int = csfield(Int64ul)
    offset: int = csfield(Int64ul)


@payload
class Iotlb(Message):
    """Payload "An IOTLB message": 26 bytes, and 32 from a compiler that rounds up."""

    LENGTHS = range(26, 33)
    PADDING = 6
    iova: int = csfield(Int64ul)
    size: int = csfield(Int64ul)
    uva: int = csfield(Int64ul)
    permissions: int = csfield(Int8ul)
    type: int = csfield(Int8ul)


@payload
class Config(Message):
    """Payload "Virtio device config space": `size` bytes follow the three words, in a request to read as well."""

    LENGTHS = range(spec.CONFIG_HEADER_LEN, spec.CONFIG_HEADER_LEN + spec.CONFIG_LEN_MAX + 1)
    offset: int = csfield(Int32ul)
    size: int = csfield(Int32ul)
    flags: int = csfield(Int32ul)
    payload: bytes = csfield(Bytes(this.size))


@payload
class VringArea(Message):
    """Payload "Vring area description": `vring` is the index with flags above it."""

    LENGTHS = _exactly(24)
    vring: int = csfield(Int64ul)
    size: int = csfield(Int64ul)
    offset: int = csfield(Int64ul)


@payload
class Inflight(Message):
    """Payload "Inflight description": 20 bytes, 24 from a compiler that rounds up; its reply is as long."""

    LENGTHS = range(20, 25)
    PADDING = 4
    mmap_size: int = csfield(Int64ul)
    mmap_offset: int = csfield(Int64ul)
    num_queues: int = csfield(Int16ul)
    queue_size: int = csfield(Int16ul)


@payload
class SharedObject(Message):
    """Payload "VhostUserShared"."""

    LENGTHS = _exactly(16)
    uuid: bytes = csfield(Bytes(16))


@payload
class DeviceStateTransfer(Message):
    """Payload "Device state transfer parameters"."""

    LENGTHS = _exactly(8)
    direction: int = csfield(Int32ul)
    phase: int = csfield(Int32ul)


@payload
class ShmemConfig(Message):
    """Payload "VIRTIO Shared Memory Region configuration": always 256 sizes, 0 where there is no region."""

    LENGTHS = _exactly(spec.PAYLOAD_LEN_MAX)
    num_regions: int = csfield(construct.Padded(8, Int32ul))
    sizes: tuple[int, ...] = csfield(_Tuple(Array(spec.SHMEM_REGIONS_MAX, Int64ul)))


@payload
class ShmemMap(Message):
    """The structure VhostUserMMap of SHMEM_MAP and SHMEM_UNMAP ("Back-end message types")."""

    LENGTHS = _exactly(40)
    shmid: int = csfield(construct.Padded(8, Int8ul))
    fd_offset: int = csfield(Int64ul)
    shm_offset: int = csfield(Int64ul)
    length: int = csfield(Int64ul)
    flags: int = csfield(Int64ul)


@payload
class Opaque(Message):
    """A payload that the document names and does not lay out: a crypto session, what comes with a dma-buf."""

    LENGTHS = range(spec.PAYLOAD_LEN_MAX + 1)
    payload: bytes = csfield(construct.GreedyBytes)
