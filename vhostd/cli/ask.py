"""status, stats: asks running daemons."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from vhostd import config
from vhostd.cli import attach
from vhostd.cli.flags import Parser
from vhostd.cli.main import NO_DAEMON, NOT_PERMITTED
from vhostd.control.client import ControlClient
from vhostd.errors import ConfigError, ControlError

Rows = list[tuple[str, ...]]

_NO_PATH = "{}: its socket was inherited and has no path that could be shown"


class NoDaemonError(ControlError):
    """Nobody answers."""

    exit_code = NO_DAEMON


class RefusedError(ControlError):
    """Somebody answers, and not to us."""

    exit_code = NOT_PERMITTED


def status(words: list[str]) -> int:
    """Print what devices there are and how they do: `vhostd status [DEV]`."""
    parser = _parser("vhostd status", "Show devices, their guests and queues.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything, as JSON")
    form.add_argument("--qemu", action="store_true", help="flags that attach the devices to QEMU")
    form.add_argument("--libvirt", action="store_true", help="elements that attach the devices to a libvirt domain")
    found = parser.parse_args(words)
    devices = _ask("query-devices", found.device, found.control)
    if found.json:
        print(json.dumps(devices, indent=2))
    elif found.qemu:
        print(attach.memory("$SIZE"))
        for device in devices:
            path = _path(device)
            if path is None:
                print(f"# {_NO_PATH.format(_plain(device['name']))}")
                continue
            print(attach.qemu(_kind(device), device["name"], path, _queues(device), connects=_connects(device)))
    elif found.libvirt:
        print(attach.LIBVIRT_MEMORY)
        disks = 0
        for device in devices:
            path, kind = _path(device), _kind(device)
            if path is None:
                name = re.sub("-(?=-)", "- ", _plain(device["name"]))  # XML has no -- in a comment
                print(f"<!-- {_NO_PATH.format(name)} -->")
                continue
            print(attach.libvirt(kind, path, _queues(device), connects=_connects(device), number=disks))
            disks += kind == "disk"
    else:
        rows: Rows = [("NAME", "TYPE", "STATE", "QUEUES", "FRONT-END", "SOCKET", "SERVES")]
        rows += [_row(device) for device in devices]
        _print_table(rows)
    return 0


def stats(words: list[str]) -> int:
    """Print counters: `vhostd stats [DEV]`."""
    parser = _parser("vhostd stats", "Show counters, which grow from the start of the daemon on.")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")
    found = parser.parse_args(words)
    devices = _ask("query-stats", found.device, found.control)
    if found.json:
        print(json.dumps(devices, indent=2))
        return 0
    rows: Rows = [("NAME", "COUNTER", "VALUE")]
    for device in devices:
        rows += [(_plain(device["name"]), key, str(value)) for key, value in _leaves(device) if key != "name" and value]
    _print_table(rows)
    return 0


def _parser(prog: str, description: str) -> Parser:
    parser = Parser(prog=prog, description=description)
    parser.add_argument("device", metavar="DEV", nargs="?", help="a device's name, or its socket's path (default: all)")
    parser.add_argument(
        "--control",
        metavar="PATH",
        type=Path,
        default=os.environ.get("VHOSTD_CONTROL"),
        help="control socket of the daemon (default: VHOSTD_CONTROL, else every one in the runtime directory)",
    )
    return parser


def _ask(command: str, device: str | None, control: Path | None) -> list[dict[str, Any]]:
    """Ask each daemon; return the devices, or the one that was named.

    Raises NoDaemonError, RefusedError, and ControlError when no daemon knows the device.
    """
    by_path = device is not None and "/" in device
    paths = [Path(control)] if control is not None else _doors(Path(device) if device and by_path else None)
    found: list[dict[str, Any]] = []
    answered, refusal = False, ""
    for path in paths:
        try:
            with ControlClient(path) as client:
                answer = client.execute(command)
                if device is not None:
                    # Counters carry no path, so the name that is there is asked for.
                    known = client.execute("query-devices") if by_path else answer
                    names = {d["name"] for d in known if (_is_at(d, device) if by_path else d["name"] == device)}
                    answer = [d for d in answer if d["name"] in names]
                found += answer
                answered = True
        except PermissionError:
            refusal = f"{path}: not permitted: ask as root, or as the daemon's own user"
        except OSError:
            continue  # a daemon that was killed leaves its socket behind
        if found and by_path:
            break
    if refusal and not (found if device is not None else answered):
        raise RefusedError(refusal)
    if not answered:
        where = ", ".join(map(str, paths)) if paths else config.runtime_dir()
        raise NoDaemonError(f"no daemon answers at {where}: start one with vhostd blk, net or serve, or say --control")
    if device is not None and not found:
        raise ControlError(f"no daemon has a device {device!r}: `vhostd status` shows those there are")
    return found


def _doors(socket_path: Path | None) -> list[Path]:
    """Return the control sockets to ask: the one beside the device's socket first, then all of the runtime directory.

    A device of `vhostd serve` has none beside its socket: its supervisor's is somewhere among the others.
    """
    if socket_path is None:
        return sorted(config.runtime_dir().glob("*.control"))
    beside = config.control_path(socket_path)
    try:
        return list(dict.fromkeys([beside, *sorted(config.runtime_dir().glob("*.control"))]))
    except ConfigError:  # a plain user without one
        return [beside]


def _is_at(device: dict[str, Any], path: str) -> bool:
    place = _path(device)
    return place is not None and os.path.realpath(place) == os.path.realpath(path)


def _kind(device: dict[str, Any]) -> Any:
    return "disk" if device.get("type") == "block" else "net"


def _connects(device: dict[str, Any]) -> bool:
    return device.get("connect") is not None


def _path(device: dict[str, Any]) -> str | None:
    path = device.get("connect") or device.get("socket")
    return str(path) if path else None


def _queues(device: dict[str, Any]) -> int:
    """Return what a front-end should be told: nothing, when the device offers as many as can be."""
    queues = int(device.get("queues") or 0)
    return 0 if queues >= 256 else queues


def _row(device: dict[str, Any]) -> tuple[str, ...]:
    front_end = device.get("frontend") or {}
    return tuple(
        _plain(value)
        for value in (
            device["name"],
            device.get("type"),
            device.get("state"),
            device.get("queues"),
            front_end.get("pid") and f"process {front_end['pid']}",
            device.get("connect") or device.get("socket"),
            device.get("source"),
        )
    )


def _leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{prefix}.{key}" if prefix else key)]
    if isinstance(value, list):
        return [leaf for number, inner in enumerate(value) for leaf in _leaves(inner, f"{prefix}[{number}]")]
    return [(prefix, value)]


def _plain(value: object) -> str:
    """Return a word for a table: nothing in it may steer the terminal."""
    text = "-" if value is None else str(value)
    return "".join(c if c.isprintable() else "?" for c in text)


def _print_table(rows: Rows) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(f"{word:{width}}" for word, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
