"""blk, net, serve: runs devices."""

import argparse
import json
import logging
import os
import socket
import sys
from pathlib import Path

from vhostd import config, logs
from vhostd.cli.flags import Parser, UsageError, add_settings, chosen, make
from vhostd.cli.main import CAPABILITIES
from vhostd.config import Disk, Net
from vhostd.errors import ConfigError


def block(words: list[str]) -> int:
    """Serve one disk: `vhostd blk IMAGE`."""
    if "--print-capabilities" in words:
        print(json.dumps(CAPABILITIES["block"]))
        return 0
    parser = Parser(prog="vhostd blk", description="Serve one disk over vhost-user.")
    add_settings(parser, Disk, "image")
    add_doors(parser)
    found = parser.parse_args(words)
    given = chosen(found, Disk)
    given.setdefault("name", _name(found, Path(given["image"]).stem))
    return run(make(Disk, given), found)


def net(words: list[str]) -> int:
    """Serve one network card: `vhostd net TAP`."""
    if "--print-capabilities" in words:
        print(json.dumps(CAPABILITIES["net"]))
        return 0
    parser = Parser(prog="vhostd net", description="Serve one network card over vhost-user.")
    add_settings(parser, Net, "tap")
    add_doors(parser)
    found = parser.parse_args(words)
    given = chosen(found, Net)
    if "tap_fds" in given:
        given.setdefault("queues", str(len(given["tap_fds"])))
    given.setdefault("name", _name(found, given.get("tap", "net")))
    return run(make(Net, given), found)


def file(words: list[str]) -> int:
    """Serve every device of a file, each in a process of its own: `vhostd serve FILE`."""
    parser = Parser(prog="vhostd serve", description="Serve every device of a TOML file, each in its own process.")
    parser.add_argument("file", metavar="FILE", type=Path, help="the operator's file")
    parser.add_argument("--control", metavar="PATH", type=Path, help="control socket instead of the file's own")
    parser.add_argument("--check", action="store_true", help="only check the file")
    parser.add_argument("--debug", action="store_true", help="log every message")
    found = parser.parse_args(words)
    settings = config.load(found.file)
    if found.check:
        print(f"{found.file}: {len(settings.devices)} devices")
        return 0
    logs.set_up(logging.DEBUG if found.debug else logging.INFO)
    # Forked while this process is small and has no event loop; it imports what devices need meanwhile.
    from vhostd.supervisor.zygote import fork_zygote

    pid, zygote = fork_zygote({config.kind_of(device) for device in settings.devices})
    import asyncio

    from vhostd.control.systemd import Notifier, activated
    from vhostd.devices.listen import Listener, adopt, make_runtime_dir
    from vhostd.sandbox import stages
    from vhostd.supervisor.supervisor import Supervisor, share_out

    stages.limit()
    adopted = {name: [adopt(fd)[0] for fd in fds] for name, fds in activated().items()}
    given = adopted.pop("control", [])
    listening = share_out(settings, adopted)
    if any(device.socket_path is None for device in settings.devices):
        make_runtime_dir(config.runtime_dir())
    door: Listener | socket.socket
    if len(given) > 1:
        raise ConfigError(f"the service manager passed {len(given)} sockets named 'control': there is one")
    if given:
        door = given[0]
    else:
        path = found.control or Path(settings.control or config.runtime_dir() / f"{found.file.stem}.control")
        for device in settings.devices:
            if device.connect is None and device.name not in listening and _same(path, device.listen_path()):
                raise ConfigError(f"control: {path} is the socket of {device.name}: operators need another")
        door = Listener(path)

    async def serve() -> int:
        return await Supervisor(settings, zygote, door, Notifier()).run(listening)

    try:
        return asyncio.run(serve())
    finally:
        os.waitpid(pid, 0)


def add_doors(parser: argparse.ArgumentParser) -> None:
    """Add the flags of one device's process that are no settings of the device."""
    parser.add_argument("--fd", type=int, metavar="N", help="inherited socket, listening or connected")
    parser.add_argument("--control", metavar="PATH", type=Path, help="control socket (default: beside the device's)")
    parser.add_argument(
        "--run",
        metavar="COMMAND",
        help="run this in a shell once the device is ready, and end with it; has $qemu_args, $qemu_memory, $socket",
    )
    parser.add_argument("--print-capabilities", action="store_true", help="print what this program can do, as JSON")
    parser.add_argument("--debug", action="store_true", help="log every message")


def run(device: Disk | Net, found: argparse.Namespace, *, control: bool = True) -> int:
    """Serve one device as the flags say; return its exit code. Raises VhostdError for what cannot be served."""
    logs.set_up(logging.DEBUG if found.debug else logging.INFO)
    from vhostd.control.systemd import Notifier, activated
    from vhostd.daemon import Doors, run_device
    from vhostd.devices.listen import absolute, adopt, make_runtime_dir

    if found.run is not None and found.fd is not None:
        raise UsageError("--run: the command needs a path to connect to: leave --fd away")
    if found.fd is not None and (device.socket_path is not None or device.connect is not None):
        raise UsageError("--fd: the socket is there already: leave --socket-path and --connect away")
    fds = [fd for fds in activated().values() for fd in fds] if found.fd is None else [found.fd]
    if len(fds) > 1:
        raise ConfigError(f"the service manager passed {len(fds)} sockets for one device: `vhostd serve` takes several")
    adopted = connection = None
    if fds:
        taken, connected = adopt(fds[0])
        adopted, connection = (None, taken) if connected else (taken, None)
    by_path = not fds and device.connect is None
    if by_path and device.socket_path is None:
        make_runtime_dir(config.runtime_dir())
    if found.control is not None and by_path and _same(found.control, device.listen_path()):
        raise UsageError(f"--control: {found.control} is the device's own socket: operators need another")
    operators = found.control or (_control_path(device, by_path=by_path) if control else None)
    place = None if connection is not None else device.connect or _listens_at(device, adopted)
    attach = None if place is None else _attach(device, absolute(str(place)))
    if found.run is not None and attach is not None:
        from vhostd.cli.alongside import MEMORY_SIZE, run_alongside
        from vhostd.cli.attach import memory

        words = {
            "qemu_args": attach,
            "qemu_memory": f"-m {MEMORY_SIZE} {memory(MEMORY_SIZE)}",
            "socket": absolute(str(place)),
        }

        def serve(link: socket.socket, parent: int) -> int:
            doors = Doors(adopted=adopted, control=operators, parent=parent, link=link)
            return run_device(device, doors, Notifier())

        return run_alongside(found.run, words, serve)
    if sys.stdout.isatty() and attach is not None:
        print(f"# attach it to QEMU with {attach}", flush=True)
    return run_device(device, Doors(adopted=adopted, connection=connection, control=operators), Notifier())


def _listens_at(device: Disk | Net, adopted: socket.socket | None) -> Path | str | None:
    from vhostd.devices.listen import place_of

    return place_of(adopted) if adopted is not None else device.listen_path()


def _attach(device: Disk | Net, path: str) -> str:
    from vhostd.cli.attach import qemu

    return qemu(config.kind_of(device), device.name, path, device.queues, connects=device.connect is not None)


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _name(found: argparse.Namespace, otherwise: str) -> str:
    """Return a name for a device that was given none: its socket's, else what it serves."""
    stem = Path(found.socket_path).stem if getattr(found, "socket_path", None) else otherwise
    word = "".join(c if (c.isalnum() and c.isascii()) or c in "._-" else "-" for c in stem)
    return word.strip("._-")[:64] or "device"


def _control_path(device: Disk | Net, *, by_path: bool) -> Path | None:
    """Return where the control socket belongs when nobody said: beside the device's, else in the runtime directory."""
    if by_path:
        path = config.control_path(device.listen_path())
        return path if len(os.fsencode(path)) <= config.SOCKET_PATH_LIMIT else None
    try:
        directory = config.runtime_dir()
    except ConfigError:
        return None
    return directory / f"{device.name}.control" if directory.is_dir() and os.access(directory, os.W_OK) else None
