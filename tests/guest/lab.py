"""What one test has: its back-ends, its guests, and their end, checked."""

import asyncio
import hashlib
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.guest import peers
from vhostd.demo import initramfs, kernel, snapshot
from vhostd.demo.host import Namespace
from vhostd.demo.programs import Program
from vhostd.demo.qemu import Disk, Machine, MachineConfig, Nic, machine

MIB = 1 << 20
HOST_ADDRESS, GUEST_ADDRESS = "192.0.2.1", "192.0.2.2"


@dataclass(frozen=True)
class Images:
    """What all guests are made of."""

    kernel: Path
    initramfs: Path
    cache: Path

    @classmethod
    async def make(cls, cache: Path) -> "Images":
        cache.mkdir(parents=True, exist_ok=True)
        unpacked = await kernel.fetch(cache, print)
        return cls(unpacked.image, await initramfs.build(unpacked, cache), cache)

    def config(self, **words: Any) -> MachineConfig:
        return MachineConfig(self.kernel, self.initramfs, **words)


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes that no two tests share and no compression hides."""
    return random.Random(seed).randbytes(length)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path, start: int = 0, length: int = -1) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return sha256(file.read(length))


class Lab:
    """Starts what a test asks for; ends it in reverse order, and asks of each back-end that it lived and ends well."""

    def __init__(self, path: Path, images: Images) -> None:
        self.path = path
        self.images = images
        self.programs: list[Program] = []
        self.machines: list[Machine] = []
        self._stack = AsyncExitStack()
        self._count = 0

    def name(self, stem: str) -> Path:
        self._count += 1
        return self.path / f"{stem}{self._count}"

    def image(self, mib: int = 8, seed: int = 1) -> Path:
        """A disk image full of pattern."""
        path = self.name("disk")
        path.write_bytes(pattern(mib * MIB, seed))
        return path

    async def serve(self, image: Path, **words: Any) -> tuple[Program, Path]:
        """Serve a disk; return the back-end and its socket."""
        socket = self.name("socket")
        program = await peers.serve_block(image, socket, log=self.name("backend-log"), **words)
        self.keep(program)
        return program, socket

    def keep(self, program: Program) -> None:
        self.programs.append(program)
        self._stack.push_async_callback(self._end, program)

    async def _end(self, program: Program) -> None:
        """A back-end must still be there, and must leave with 0 when asked to."""
        alive = program.process.returncode is None
        status = await program.stop()
        if peers.PEER == "vhostd" or not alive:
            assert alive, f"the back-end died ({status}): {program.log_tail()}"
            assert status == 0, f"the back-end ended with {status}: {program.log_tail()}"

    async def disk(self, image: Path, *, legacy: bool = False, queues: int = 1, **words: Any) -> Disk:
        """Serve a disk; return it as a front-end attaches it."""
        _, socket = await self.serve(image, queues=queues, **words)
        self._count += 1
        properties = {"disable-modern": True, "disable-legacy": "off"} if legacy else {}
        return Disk(socket, f"disk{self._count}", queues, properties)

    def namespace(self) -> Namespace:
        """A network of this test's own."""
        made = Namespace()
        self._stack.callback(made.close)
        return made

    async def nic(
        self,
        *,
        pairs: int = 1,
        mtu: int = 1500,
        legacy: bool = False,
        properties: dict[str, Any] | None = None,
        boot_rom: bool = False,
    ) -> tuple[Nic, Namespace]:
        """Serve a tap with HOST_ADDRESS; return it as a front-end attaches it, and the network behind it."""
        namespace = self.namespace()
        await namespace.tap("tap0", f"{HOST_ADDRESS}/24", mtu=mtu, multi_queue=pairs > 1)
        socket = self.name("socket")
        extra = ["--mtu", str(mtu)] if mtu != 1500 else []
        program = await peers.serve_net(
            namespace, "tap0", socket, log=self.name("backend-log"), pairs=pairs, extra=extra
        )
        self.keep(program)
        words: dict[str, Any] = {"host_mtu": mtu} if mtu != 1500 else {}
        if legacy:
            words |= {"disable-modern": True, "disable-legacy": "off"}
        self._count += 1
        return Nic(
            socket, f"net{self._count}", pairs, boot_rom=boot_rom, properties=words | (properties or {})
        ), namespace

    async def guest(self, *devices: Disk | Nic, cpus: int = 1) -> Machine:
        """A restored guest with `devices` plugged."""
        config = self.images.config(cpus=cpus)
        state = await snapshot.take(config, self.images.cache)
        started = await self._stack.enter_async_context(snapshot.restored(config, state, log=self.name("qemu-log")))
        self.machines.append(started)
        for device in devices:
            await plug(started, device)
        return started

    async def boot(self, *devices: Disk | Nic, ready: bool = True, **words: Any) -> Machine:
        """A guest booted with `devices` in it."""
        started = await self._stack.enter_async_context(
            machine(self.images.config(**words), log=self.name("qemu-log"), devices=devices, ready=ready)
        )
        self.machines.append(started)
        return started

    async def firmware(self, *devices: Disk | Nic, console: bool = False) -> Machine:
        """A machine without a kernel; with `console`, what its firmware prints comes over the serial line."""
        config = MachineConfig(machine="pc,graphics=off" if console else "pc")
        started = await self._stack.enter_async_context(
            machine(config, log=self.name("qemu-log"), devices=devices, ready=False)
        )
        self.machines.append(started)
        return started

    async def close(self) -> None:
        try:
            await self._stack.aclose()
        finally:
            for program in [*self.programs, *(each.program for each in self.machines)]:
                print(f"--- {' '.join(program.argv)}: {program.process.returncode}\n{program.log_tail()}")
            for each in self.machines:
                print(f"--- the guest printed last:\n{each.guest.tail()}")


async def plug(guest: Machine, device: Disk | Nic) -> None:
    """Plug a device and wait until the guest's driver has it."""
    await guest.plug(device)
    what = "/sys/block/vd?" if isinstance(device, Disk) else "/sys/class/net/eth?"
    count = f"$(ls -d {what} 2>/dev/null | wc -l)"
    have = getattr(guest, "_plugged", {})
    have[type(device)] = have.get(type(device), 0) + 1
    guest._plugged = have
    await wait_in(guest, f"[ {count} -ge {have[type(device)]} ]")


async def wait_in(guest: Machine, condition: str, seconds: int = 20) -> None:
    """Wait until a condition of the guest's shell holds."""
    await guest.guest.run(
        f"for i in $(seq {seconds * 20}); do if {condition}; then exit 0; fi; sleep 0.05; done; exit 1",
        deadline=seconds + 10,
    )


async def settle(seconds: float) -> None:
    """Let a guest work for a while: the one kind of waiting that has no event."""
    await asyncio.sleep(seconds)
