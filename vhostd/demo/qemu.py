"""A QEMU process: its command line, its monitor, the guest in it, and vhost-user devices cold or hot."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vhostd.demo.errors import DemoError
from vhostd.demo.guest import Guest
from vhostd.demo.programs import Program, find, output_of
from vhostd.demo.qmp import Qmp

QEMU = "qemu-system-x86_64"

_KERNEL_WORDS = (
    "console=ttyS0 quiet loglevel=1 panic=-1 nokaslr no_timer_check random.trust_cpu=on mitigations=off "
    "cryptomgr.notests memhp_default_state=online_movable swiotlb=512"
)


@dataclass(frozen=True)
class Disk:
    """A vhost-user disk as the front-end attaches it."""

    socket: Path
    name: str = "disk0"
    queues: int = 1
    properties: dict[str, Any] = field(default_factory=dict)

    def device(self) -> dict[str, Any]:
        """Return the device as -device and device_add take it."""
        return {
            "driver": "vhost-user-blk-pci",
            "id": self.name,
            "chardev": f"{self.name}-socket",
            "num-queues": self.queues,
            **self.properties,
        }


@dataclass(frozen=True)
class Nic:
    """A vhost-user network card as the front-end attaches it. `pairs` counts receive and transmit queues as one."""

    socket: Path
    name: str = "net0"
    pairs: int = 1
    mac: str = "52:54:00:12:34:56"
    boot_rom: bool = False
    """With QEMU's own ROM (iPXE), which it fits to the device; one that is named is taken as it is."""
    properties: dict[str, Any] = field(default_factory=dict)

    def netdev(self) -> dict[str, Any]:
        """Return the back-end object as -netdev and netdev_add take it."""
        return {
            "type": "vhost-user",
            "id": f"{self.name}-netdev",
            "chardev": f"{self.name}-socket",
            "queues": self.pairs,
        }

    def device(self) -> dict[str, Any]:
        """Return the device as -device and device_add take it."""
        pairs = {"mq": True, "vectors": 0} if self.pairs > 1 else {}
        # Without its boot ROM a device is plugged faster, and a guest has no use for it after its firmware.
        rom: dict[str, Any] = {} if self.boot_rom else {"romfile": ""}
        return {
            "driver": "virtio-net-pci",
            "id": self.name,
            "netdev": f"{self.name}-netdev",
            "mac": self.mac,
            # INTx: where no KVM is, Debian 12's QEMU dies of a NIC with MSI-X when its driver starts it (it takes a
            # vector table that only KVM has, because vhost-user NICs do not mask their notifiers).
            "vectors": 0,
            **rom,
            **pairs,
            **self.properties,
        }


@dataclass(frozen=True)
class MachineConfig:
    """What a machine is made of. Memory is a memfd shared with the back-ends, in MiB."""

    kernel: Path | None = None
    initramfs: Path | None = None
    memory_mib: int = 128
    cpus: int = 1
    machine: str = "pc"
    accelerator: str = "tcg,thread=multi"
    memory_slots: int = 4
    memory_max_mib: int = 1024
    kernel_words: str = ""
    extra: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """Return QEMU's command line, without devices."""
        words = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-accel", self.accelerator]
        words += ["-machine", f"{self.machine},memory-backend=mem", "-smp", str(self.cpus)]
        words += ["-m", f"{self.memory_mib}M,slots={self.memory_slots},maxmem={self.memory_max_mib}M"]
        words += ["-object", f"memory-backend-memfd,id=mem,size={self.memory_mib}M,share=on"]
        if self.kernel is not None:
            words += ["-kernel", str(self.kernel), "-append", f"{_KERNEL_WORDS} {self.kernel_words}".strip()]
        if self.initramfs is not None:
            words += ["-initrd", str(self.initramfs)]
        return [*words, *self.extra]


class Machine:
    """A running QEMU."""

    def __init__(self, config: MachineConfig, program: Program, qmp: Qmp, guest: Guest) -> None:
        self.config = config
        self.program = program
        self.qmp = qmp
        self.guest = guest

    @classmethod
    async def start(
        cls,
        config: MachineConfig,
        *,
        log: Path,
        devices: Sequence[Disk | Nic] = (),
        state: Path | None = None,
        paused: bool = False,
    ) -> "Machine":
        """Start QEMU with `devices` plugged; with `state`, wait to be restored from that file (`restore`).

        Raises DemoError when QEMU does not start.
        """
        words = config.command()
        for device in devices:
            words += ["-chardev", f"socket,id={device.name}-socket,path={device.socket}"]
            if isinstance(device, Nic):
                words += ["-netdev", json.dumps(device.netdev())]
            words += ["-device", json.dumps(device.device())]
        if state is not None:
            words += ["-incoming", "defer"]
        if paused:
            words += ["-S"]
        async with AsyncExitStack() as undo:
            ours: list[socket.socket] = []
            theirs: list[socket.socket] = []
            for name in ("serial", "monitor"):
                near, far = socket.socketpair()
                undo.callback(far.close)
                undo.callback(near.close)
                ours.append(near)
                theirs.append(far)
                words += ["-chardev", f"socket,id={name},fd={far.fileno()}"]
            words += ["-serial", "chardev:serial", "-mon", "chardev=monitor,mode=control"]
            program = await Program.start(*words, log=log, pass_fds=[end.fileno() for end in theirs])
            undo.push_async_callback(program.stop)
            for end in theirs:
                end.close()
            guest, qmp = Guest(ours[0]), Qmp(ours[1])
            undo.push_async_callback(guest.close)
            undo.push_async_callback(qmp.close)
            await guest.open()
            try:
                await qmp.open()
            except DemoError as error:
                raise DemoError(f"{error}: {program.log_tail()}") from None
            undo.pop_all()
        return cls(config, program, qmp, guest)

    async def restore(self, state: Path, deadline: float = 30) -> None:
        """Load a saved state; the machine is paused afterwards."""
        await self.qmp.execute("migrate-incoming", uri=f"exec:cat {state}")
        async with asyncio.timeout(deadline):
            while (await self.qmp.execute("query-status"))["status"] == "inmigrate":  # noqa: ASYNC110 QMP has no event
                await asyncio.sleep(0.01)

    async def save(self, state: Path, deadline: float = 60) -> None:
        """Pause the machine and write its state into `state`."""
        await self.stop()
        await self.qmp.execute_with("migrate-set-parameters", {"max-bandwidth": 1 << 40})
        await self.qmp.execute("migrate", uri=f"exec:cat >{state}")
        async with asyncio.timeout(deadline):
            while (info := await self.qmp.execute("query-migrate"))["status"] != "completed":
                if info["status"] == "failed":
                    raise DemoError(f"saving the guest: {info.get('error-desc', 'failed')}: {self.program.log_tail()}")
                await asyncio.sleep(0.01)

    async def plug(self, device: Disk | Nic, deadline: float = 30) -> None:
        """Plug a device into the running machine. Raises DemoError when QEMU refuses it."""
        address = {"type": "unix", "data": {"path": str(device.socket)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        await self.qmp.execute("chardev-add", id=f"{device.name}-socket", backend=backend)
        if isinstance(device, Nic):
            await self.qmp.execute_with("netdev_add", device.netdev(), deadline=deadline)
        await self.qmp.execute_with("device_add", device.device(), deadline=deadline)

    async def unplug(self, device: Disk | Nic, deadline: float = 30) -> None:
        """Ask the guest to let a device go, wait until it has, and drop its back-end."""
        await self.qmp.execute("device_del", id=device.name)
        await self.qmp.event("DEVICE_DELETED", deadline, where=lambda data: data.get("device") == device.name)
        if isinstance(device, Nic):
            await self.qmp.execute("netdev_del", id=f"{device.name}-netdev")  # which takes its chardev along
        else:
            await self.qmp.execute("chardev-remove", id=f"{device.name}-socket")

    async def stop(self) -> None:
        """Pause the virtual CPUs (and with them the devices)."""
        await self.qmp.execute("stop")

    async def resume(self) -> None:
        """Let the virtual CPUs run."""
        await self.qmp.execute("cont")

    async def close(self) -> None:
        """End QEMU."""
        await self.program.stop()
        await self.qmp.close()
        await self.guest.close()


@asynccontextmanager
async def machine(
    config: MachineConfig, *, log: Path, devices: Sequence[Disk | Nic] = (), ready: bool = True
) -> AsyncIterator[Machine]:
    """Run a machine for the length of a block; with `ready`, wait for its shell first."""
    running = await Machine.start(config, log=log, devices=devices)
    try:
        if ready:
            await running.guest.ready()
        yield running
    finally:
        await running.close()


async def version_of_qemu() -> str:
    """Return what names this QEMU among others."""
    path = find(QEMU)
    if path not in _versions:
        _versions[path] = await output_of(path, "--version")
    return _versions[path]


_versions: dict[str, str] = {}  # by path: asked once
