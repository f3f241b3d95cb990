"""The tables in data/wireshark/vhost-user.lua, out of vhostd/spec and protocol/rules.

`python -m tests.support.lua_tables` writes them anew, and a test compares them.
"""

import enum
import struct
from pathlib import Path

from vhostd.protocol import messages
from vhostd.protocol.rules import BACKEND_RULES, RULES, ReplyKind
from vhostd.proxy import capture, config_space, decode
from vhostd.proxy.record import Fault
from vhostd.spec import blk, net, vhost_user, virtio
from vhostd.spec.virtio import DeviceId

LUA = Path(__file__).parents[2] / "data" / "wireshark" / "vhost-user.lua"
BEGIN, END = "-- tables: begin\n", "-- tables: end\n"

FLAGS = {
    "protocol_features": [vhost_user.ProtocolFeature],
    "features_0": [virtio.Feature],
    f"features_{int(DeviceId.NET)}": [net.Feature, virtio.Feature],
    f"features_{int(DeviceId.BLOCK)}": [blk.Feature, virtio.Feature],
    "header": [vhost_user.HeaderFlag],
    "status": [virtio.Status],
    "vring_addr": [vhost_user.VringAddrFlag],
    "vring_area": [vhost_user.VringAreaFlag],
    "iotlb_access": [vhost_user.IotlbAccess],
    "shmem": [vhost_user.ShmemFlag],
    "link": [net.Status],
}
NAMES = {
    "requests": vhost_user.FrontendRequest,
    "backend_requests": vhost_user.BackendRequest,
    "iotlb_types": vhost_user.IotlbType,
    "config_flags": vhost_user.ConfigFlag,
    "directions": vhost_user.TransferDirection,
    "phases": vhost_user.TransferPhase,
    "devices": DeviceId,
    "faults": Fault,
}


def tables() -> str:
    """The Lua text of all of them."""
    lines = [f"local LINKTYPE = wtap.USER{capture.LINKTYPE - 147}", f"local PSEUDO_LEN = {capture.PSEUDO.size}"]
    lines += ["local flag_names = {"]
    for name, kinds in FLAGS.items():
        bits = sorted((int(member).bit_length() - 1, member.name) for kind in kinds for member in kind)
        lines.append(f"  {name} = {{ " + ", ".join(f'{{ {bit}, "{word}" }}' for bit, word in bits) + " },")
    lines += ["}", "local value_names = {"]
    for name, kind in NAMES.items():
        lines.append(f"  {name} = {{ " + ", ".join(f'[{int(one)}] = "{one.name}"' for one in kind) + " },")
    lines += ["}", "-- what a request carries, and what its reply"]
    for name, rules in (("payloads", RULES), ("backend_payloads", BACKEND_RULES)):
        lines.append(f"local {name} = {{")
        lines += [
            f'  [{int(code)}] = {{ "{rule.payload.__name__}", "{_answer(code, rule)}" }},'
            for code, rule in rules.items()
        ]
        lines.append("}")
    lines.append("local lengths = { -- bytes of a payload, at least and at most")
    kinds = sorted({k for k in vars(messages).values() if _is_payload(k)}, key=lambda kind: kind.__name__)
    lines += [f"  {kind.__name__} = {{ {kind.LENGTHS[0]}, {kind.LENGTHS[-1]} }}," for kind in kinds]
    lines += ["}", "local config_fields = { -- offset, length, name"]
    for device, rows in config_space.LAYOUTS.items():
        lines.append(f"  [{int(device)}] = {{")
        lines += [f'    {{ {int(at)}, {struct.calcsize("<" + form)}, "{name}" }},' for at, form, name, _ in rows]
        lines.append("  },")
    return "\n".join([*lines, "}", ""])


def _answer(code: enum.IntEnum, rule) -> str:
    if isinstance(code, vhost_user.BackendRequest) or code in decode.ACKS or rule.reply is ReplyKind.ACK:
        return "Ack"
    return rule.answer.__name__


def _is_payload(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, messages.Message) and hasattr(kind, "LENGTHS")


def with_tables(text: str) -> str:
    """The file's text with the tables as they should be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + tables() + END + after


if __name__ == "__main__":
    LUA.write_text(with_tables(LUA.read_text()))
