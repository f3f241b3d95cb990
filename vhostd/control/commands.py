"""The commands as a table: name, arguments, what it does."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from vhostd import __version__
from vhostd.errors import ControlError

Answer = dict[str, Any] | list[dict[str, Any]]


class Host(Protocol):
    """What a command may ask of the process that serves it."""

    async def devices(self) -> list[dict[str, Any]]:
        """Return each device: name, type, state, queues, features, connection, rings."""

    async def stats(self) -> list[dict[str, Any]]:
        """Return each device's counters, with its name."""

    def stop(self) -> None:
        """Begin a clean end of the process; return at once."""


class NoArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For commands that take none."""


class OneDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For commands that may be told which device."""

    device: str | None = None


class Capabilities(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client asks to be enabled; we announce nothing, so nothing can be."""

    enable: list[str] = []


class Command(msgspec.Struct, frozen=True):
    """A row of the table. `run` gets the host and decoded arguments of the type `arguments`."""

    arguments: type[msgspec.Struct]
    run: Callable[[Host, Any], Awaitable[Answer]]


def version() -> dict[str, Any]:
    """Return our version in the form that clients written for QEMU read."""
    major, minor, micro = (int(part) for part in __version__.split("."))
    return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": f"vhostd {__version__}"}


def _chosen(devices: list[dict[str, Any]], name: str | None) -> list[dict[str, Any]]:
    chosen = [d for d in devices if name is None or d["name"] == name]
    if name is not None and not chosen:
        raise ControlError(f"there is no device {name!r}", "DeviceNotFound")
    return chosen


async def _query_devices(host: Host, arguments: OneDevice) -> Answer:
    return _chosen(await host.devices(), arguments.device)


async def _query_stats(host: Host, arguments: OneDevice) -> Answer:
    return _chosen(await host.stats(), arguments.device)


async def _query_version(host: Host, arguments: NoArguments) -> Answer:
    del host, arguments
    return version()


async def _query_commands(host: Host, arguments: NoArguments) -> Answer:
    del host, arguments
    return [{"name": name} for name in sorted(COMMANDS)]


async def _qmp_capabilities(host: Host, arguments: Capabilities) -> Answer:
    del host
    if arguments.enable:
        raise ControlError(f"capability {arguments.enable[0]!r} was not announced")
    return {}


async def _quit(host: Host, arguments: NoArguments) -> Answer:
    del arguments
    host.stop()
    return {}


NEGOTIATION = "qmp_capabilities"  # the one command before negotiation, and none after

COMMANDS: dict[str, Command] = {
    NEGOTIATION: Command(Capabilities, _qmp_capabilities),
    "query-commands": Command(NoArguments, _query_commands),
    "query-devices": Command(OneDevice, _query_devices),
    "query-stats": Command(OneDevice, _query_stats),
    "query-version": Command(NoArguments, _query_version),
    "quit": Command(NoArguments, _quit),
}

EVENTS = frozenset({"FRONTEND_CONNECTED", "FRONTEND_DISCONNECTED", "RING_STARTED", "RING_STOPPED", "RING_BROKEN"})
