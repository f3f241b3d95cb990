"""proxy: stands between a front-end and a back-end, and says what passes."""

import argparse
import asyncio
import contextlib
import io
import os
import signal
import sys
from pathlib import Path

from vhostd.cli.flags import Parser
from vhostd.errors import ConfigError, VhostdError
from vhostd.proxy.faults import FORM, Faults, parse
from vhostd.proxy.record import Event, Seen, Sink
from vhostd.spec.virtio import DeviceId

DEVICES = {"block": DeviceId.BLOCK, "net": DeviceId.NET}
WAIT_MAX_S = 3600.0
ENDS = (signal.SIGINT, signal.SIGTERM)


def main(words: list[str]) -> int:
    """Pass messages on and print them until told to end: `vhostd proxy LISTEN CONNECT`."""
    from vhostd.proxy.output import JsonLines, Lines
    from vhostd.proxy.summary import Summary

    found = _parser().parse_args(words)
    rules = Faults(tuple(parse(text) for text in found.fault))
    summary = Summary()
    as_json, as_lines = JsonLines(sys.stdout), Lines(sys.stdout, colour=_colour(found.colour))
    try:
        with contextlib.ExitStack() as stack:
            sinks: list[Sink] = [summary]
            if not found.quiet:
                sinks.append(as_json if found.json else as_lines)
            if found.pcap is not None:
                from vhostd.proxy.capture import Capture

                sinks.append(Capture(stack.enter_context(_open(found.pcap))))
            asyncio.run(_run(found, _Tee(sinks), rules))
    except BaseExceptionGroup as group:
        raise _first(group) from None
    if found.json:
        as_json.object(summary.as_object())
    else:
        as_lines.text(summary.lines())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vhostd proxy",
        description="Stand between a front-end and a back-end of vhost-user: pass everything on, print each message "
        "decoded. Ends on SIGINT or SIGTERM, with a summary.",
        epilog=f"RULE is {FORM}, where ACTION is drop, delay or disconnect, and MESSAGE a request's name (and which "
        "one of them), its number as printed, or *: 'delay SET_VRING_KICK 200ms', 'drop reply 7', "
        "'disconnect at GET_CONFIG 2 once', 'drop backend CONFIG_CHANGE_MSG'.",
    )
    parser.add_argument("listen", metavar="LISTEN", type=Path, help="the socket to make, for the front-end")
    parser.add_argument("connect", metavar="CONNECT", type=Path, help="the socket on which the back-end listens")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="an object of JSON a line")
    form.add_argument("--colour", choices=("auto", "always", "never"), default="auto", help="[auto: on a terminal]")
    parser.add_argument("--quiet", action="store_true", help="no line for a message; the summary only")
    parser.add_argument("--pcap", metavar="FILE", type=Path, help="also write a pcapng capture, for Wireshark")
    parser.add_argument(
        "--device",
        choices=sorted(DEVICES),
        help="what the device is, to name its features [found out from what it offers]",
    )
    parser.add_argument("--fault", metavar="RULE", action="append", default=[], help="break it on purpose; repeatable")
    parser.add_argument(
        "--wait", metavar="SECONDS", type=_seconds, default=5.0, help="how long to wait for a back-end [%(default)g]"
    )
    parser.add_argument("--socket-group", metavar="GROUP", help="group that may connect to LISTEN, by name or number")
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= WAIT_MAX_S:
        raise argparse.ArgumentTypeError(f"{text} is not a time from 0 to {WAIT_MAX_S:g} seconds")
    return seconds


def _colour(choice: str) -> bool:
    return choice == "always" or (choice == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ)


def _open(path: Path) -> io.FileIO:
    try:
        return path.open("wb", buffering=0)
    except OSError as error:
        raise ConfigError(f"--pcap {path}: {error.strerror}: give a path that can be written") from None


async def _run(found: argparse.Namespace, sink: Sink, rules: Faults) -> None:
    from vhostd.devices.listen import Listener
    from vhostd.proxy.server import Proxy

    group = found.socket_group
    listener = Listener(found.listen, mode=0o600 if group is None else 0o660, group=group)
    loop = asyncio.get_running_loop()
    try:
        proxy = Proxy(
            listener.socket, found.connect, sink, faults=rules, device=DEVICES.get(found.device), wait_s=found.wait
        )
        task = asyncio.ensure_future(proxy.run())
        for number in ENDS:
            loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        listener.close()


class _Tee:
    """Tells each."""

    def __init__(self, sinks: list[Sink]) -> None:
        self._sinks = sinks

    def seen(self, record: Seen) -> None:
        """Tell of a message."""
        for sink in self._sinks:
            sink.seen(record)

    def event(self, event: Event) -> None:
        """Tell of an event."""
        for sink in self._sinks:
            sink.event(event)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what a group of exceptions is about: the first that the user has words for, or else the first."""
    found: list[BaseException] = []
    inner: list[BaseException] = [group]
    while inner:
        one = inner.pop(0)
        if isinstance(one, BaseExceptionGroup):
            inner += one.exceptions
        else:
            found.append(one)
    return next((one for one in found if isinstance(one, VhostdError | BrokenPipeError)), found[0])
