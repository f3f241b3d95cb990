"""A payload as words: what the document names is named, addresses are hex, lengths have units.

The layouts are those of protocol/messages; here is what the numbers in them mean. Whatever the bytes, there is an
answer: fields, or the reason why there are none.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vhostd.errors import RemoteProtocolError
from vhostd.protocol import messages as m
from vhostd.protocol import wire
from vhostd.protocol.rules import BACKEND_RULES, RULES, ReplyKind, Rule
from vhostd.proxy import config_space
from vhostd.proxy.record import Channel, Fields
from vhostd.spec import render
from vhostd.spec import vhost_user as spec
from vhostd.spec.vhost_user import BackendRequest, FrontendRequest
from vhostd.spec.virtio import DeviceId, Feature, Status

_R = FrontendRequest
SHOWN_LEN = 64  # bytes of what has no layout


@dataclass(frozen=True)
class View:
    """What of a connection decides how its payloads read."""

    device: DeviceId | None = None
    features: int = 0  # as the front-end acknowledged them


def request(channel: Channel, code: int, payload: bytes, view: View = View()) -> tuple[Fields, str]:
    """Return a request's fields, and why they are missing where they are."""
    try:
        if channel is Channel.BACKEND:
            return _backend_fields(wire.decode_backend(code, payload)), ""
        message = wire.decode(code, payload)
        return _fields(FrontendRequest(code), message, view, is_reply=False), ""
    except RemoteProtocolError as error:
        return {}, str(error)


def reply(channel: Channel, code: int, payload: bytes, view: View = View()) -> tuple[Fields, str]:
    """Return a reply's fields, and why they are missing where they are."""
    if rule_of(channel, code) is None:
        return request(channel, code, payload, view)  # which says so
    try:
        if channel is Channel.BACKEND:
            name = f"BACKEND_{BackendRequest(code).name}"
            return _ack(wire.decode_ack(name, payload)), ""
        kind = FrontendRequest(code)
        if kind is _R.SET_MEM_TABLE and len(payload) > 8:  # post-copy: where the back-end has mapped the regions
            return _fields(kind, wire.decode(code, payload), view, is_reply=False), ""
        if kind in ACKS or RULES[kind].reply is ReplyKind.ACK:
            return _ack(wire.decode_ack(kind.name, payload)), ""
        return _fields(kind, wire.decode_reply(kind, payload), view, is_reply=True), ""
    except RemoteProtocolError as error:
        return {}, str(error)


# Own replies that only say whether it was done.
ACKS = frozenset({_R.SET_LOG_BASE, _R.POSTCOPY_END, _R.CHECK_DEVICE_STATE})


def rule_of(channel: Channel, code: int) -> Rule | None:
    """Return the row of the document for a request, None when there is no such request."""
    rules: Mapping[Any, Rule] = RULES if channel is Channel.MAIN else BACKEND_RULES
    return rules.get(code)


def _ack(value: int) -> Fields:
    return {"result": "ok" if value == 0 else f"failed ({value:#x})"}


def _u64(kind: FrontendRequest, value: int, view: View) -> Fields:
    match kind:
        case _R.GET_FEATURES | _R.SET_FEATURES:
            return {"features": render.features(value, view.device)}
        case _R.GET_PROTOCOL_FEATURES | _R.SET_PROTOCOL_FEATURES:
            return {"protocol_features": render.flags(value, spec.ProtocolFeature)}
        case _R.GET_STATUS | _R.SET_STATUS:
            return {"status": render.flags(value, Status)}
        case _R.GET_QUEUE_NUM:
            return {"queues": value}
        case _R.GET_MAX_MEM_SLOTS:
            return {"slots": value}
        case _R.NET_SET_MTU:
            return {"mtu": value}
        case _R.SEND_RARP:
            return {"mac": value.to_bytes(8, "little")[:6].hex(":")}
        case _R.SET_DEVICE_STATE_FD:
            error = value & 0xFF
            rest = value & ~(0xFF | spec.DEVICE_STATE_NO_FD)
            fields: Fields = {"result": "ok" if not error else f"failed ({error:#x})"}
            fields["fd"] = "none: use yours" if value & spec.DEVICE_STATE_NO_FD else "the one with this reply"
            return fields | ({"unknown": f"{rest:#x}"} if rest else {})
        case _:
            return {"value": f"{value:#x}"}


def _vring_state(kind: FrontendRequest, state: m.VringState, view: View, *, is_reply: bool) -> Fields:
    fields: Fields = {"vring": state.index}
    match kind:
        case _R.SET_VRING_NUM:
            fields["num"] = state.num
        case _R.SET_VRING_ENABLE:
            fields["enable"] = {0: "off", 1: "on"}.get(state.num, f"{state.num:#x}")
        case _R.SET_VRING_ENDIAN:
            fields["endian"] = {0: "little", 1: "big"}.get(state.num, f"{state.num:#x}")
        case _R.SET_VRING_BASE | _R.GET_VRING_BASE if kind is _R.SET_VRING_BASE or is_reply:
            fields |= _base(state.num, view)
        case _:
            if state.num:
                fields["num"] = state.num
    return fields


def _base(num: int, view: View) -> Fields:
    if not view.features & Feature.RING_PACKED:
        return {"base": num}
    # "A vring descriptor index for packed virtqueues": 15 bits of index and a wrap counter, avail below used.
    return {
        "avail_idx": num & 0x7FFF,
        "avail_wrap": num >> 15 & 1,
        "used_idx": num >> 16 & 0x7FFF,
        "used_wrap": num >> 31,
    }


def _region(region: m.MemRegion) -> Fields:
    return {
        "gpa": f"{region.gpa:#x}",
        "length": render.size(region.length),
        "uva": f"{region.uva:#x}",
        "offset": f"{region.mmap_offset:#x}",
    }


def _config(config: m.Config, view: View, *, shown: bool) -> Fields:
    fields: Fields = {
        "offset": config.offset,
        "size": config.size,
        "flags": render.name(config.flags, spec.ConfigFlag),
    }
    if shown:
        fields["config"] = config_space.fields(view.device, config.offset, config.payload)
    return fields


def _iotlb(message: m.Iotlb) -> Fields:
    return {
        "type": render.name(message.type, spec.IotlbType),
        "iova": f"{message.iova:#x}",
        "length": render.size(message.size),
        "uva": f"{message.uva:#x}",
        "permissions": render.flags(message.permissions, spec.IotlbAccess),
    }


def _opaque(payload: bytes) -> str:
    more = f" and {len(payload) - SHOWN_LEN} bytes more" if len(payload) > SHOWN_LEN else ""
    return payload[:SHOWN_LEN].hex() + more


# A message's type says how it reads, where the request itself does not matter.
_BY_TYPE: dict[type[m.Message], Callable[[Any], Fields]] = {
    m.Empty: lambda _: {},
    m.VringAddr: lambda a: {
        "vring": a.index,
        "flags": render.flags(a.flags, spec.VringAddrFlag),
        "desc": f"{a.desc_uva:#x}",
        "used": f"{a.used_uva:#x}",
        "avail": f"{a.avail_uva:#x}",
        "log": f"{a.log_gpa:#x}",
    },
    m.VringFd: lambda v: {"vring": v.index, "fd": "none: to be polled" if v.no_fd else "with this message"},
    m.MemTable: lambda t: {"regions": [_region(region) for region in t.regions]},
    m.SingleRegion: lambda s: _region(s.region),
    m.Log: lambda g: {"length": render.size(g.size), "offset": f"{g.offset:#x}"},
    m.Iotlb: _iotlb,
    m.VringArea: lambda a: {
        "vring": a.vring & spec.VRING_INDEX_MASK,
        "flags": render.flags(a.vring & ~spec.VRING_INDEX_MASK, spec.VringAreaFlag),
        "length": render.size(a.size),
        "offset": f"{a.offset:#x}",
    },
    m.Inflight: lambda i: {
        "length": render.size(i.mmap_size),
        "offset": f"{i.mmap_offset:#x}",
        "queues": i.num_queues,
        "num": i.queue_size,
    },
    m.SharedObject: lambda s: {"uuid": str(uuid.UUID(bytes=s.uuid))},
    m.DeviceStateTransfer: lambda d: {
        "direction": render.name(d.direction, spec.TransferDirection),
        "phase": render.name(d.phase, spec.TransferPhase),
    },
    m.ShmemConfig: lambda s: {
        "count": s.num_regions,
        "regions": [{"shmid": n, "length": render.size(size)} for n, size in enumerate(s.sizes) if size],
    },
    m.ShmemMap: lambda s: {
        "shmid": s.shmid,
        "fd_offset": f"{s.fd_offset:#x}",
        "shm_offset": f"{s.shm_offset:#x}",
        "length": render.size(s.length),
        "flags": render.flags(s.flags, spec.ShmemFlag),
    },
    m.Opaque: lambda o: {"bytes": _opaque(o.payload)},
}


def _fields(kind: FrontendRequest, message: m.Message, view: View, *, is_reply: bool) -> Fields:
    if isinstance(message, m.U64):
        return _u64(kind, message.value, view)
    if isinstance(message, m.VringState):
        return _vring_state(kind, message, view, is_reply=is_reply)
    if isinstance(message, m.Config):
        return _config(message, view, shown=is_reply or kind is _R.SET_CONFIG)
    if isinstance(message, m.Empty) and is_reply and kind is _R.GET_CONFIG:
        return {"result": "failed (no payload)"}
    return _BY_TYPE[type(message)](message)


def _backend_fields(message: m.Message) -> Fields:
    if isinstance(message, m.VringState):
        return {"vring": message.index} | ({"num": message.num} if message.num else {})
    return _BY_TYPE[type(message)](message)
