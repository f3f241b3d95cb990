"""What `vhostd demo` shows: a Linux guest that reads, writes and flushes a disk, and pings and sends through a card.

Every claim is checked on both sides by SHA-256; the first that does not hold ends the show with a DemoError.
"""

import asyncio
import hashlib
import random
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vhostd.control.client import ControlClient
from vhostd.demo import initramfs, kernel
from vhostd.demo.errors import DemoError
from vhostd.demo.host import Namespace, Transfer, sink, source
from vhostd.demo.programs import Program, output_of, running
from vhostd.demo.qemu import Disk, Machine, MachineConfig, Nic, machine

MIB = 1 << 20
IMAGE_MIB = 64
WRITE_MIB = 16
BULK_MIB = 32
HOST_ADDRESS, GUEST_ADDRESS = "192.0.2.1", "192.0.2.2"  # TEST-NET-1 (RFC 5737), in a network of our own
PINGS = 20

_COUNTERS = {
    "disk0": {
        "reads": "reads",
        "writes": "writes",
        "flushes": "flushes",
        "discards": "discards",
        "write_zeroes": "zeroings",
        "kicks": "kicks",
        "calls": "calls",
    },
    "net0": {
        "rx_frames": "frames to the guest",
        "tx_frames": "frames from it",
        "tx_gso": "of them in large segments",
        "kicks": "kicks",
        "calls": "calls",
    },
}
_PING = re.compile(r"(\d+) packets transmitted, (\d+) packets received.*= ([0-9.]+)/([0-9.]+)/([0-9.]+) ms", re.DOTALL)


class Report:
    """Lines for people. On a terminal the line of the step at work is written over when it is done."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._live = out.isatty()
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has all taken so far."""
        return time.monotonic() - self._start

    def title(self, text: str) -> None:
        """Begin a part."""
        self.line(f"\n\033[1m{text}\033[0m" if self._live else f"\n{text}")

    @contextmanager
    def step(self, text: str) -> Iterator["Step"]:
        """Announce a step; when it ends, print how, with what it has found and the time it took."""
        current = Step(self, text)
        current.at_work()
        start = time.monotonic()
        try:
            yield current
        except BaseException:
            self.line(f"  ✗ {text}")
            raise
        found = f": {current.found}" if current.found else ""
        self.line(f"  ✓ {text}{found}  ({time.monotonic() - start:.1f} s)")

    def line(self, text: str) -> None:
        """Print a line, over that of a step at work."""
        self._out.write(f"\r\033[K{text}\n" if self._live else f"{text}\n")
        self._out.flush()

    def at_work(self, text: str) -> None:
        """Show what is being done, where it can be taken back."""
        if self._live:
            self._out.write(f"\r\033[K  · {text[:110]} …")
            self._out.flush()


@dataclass
class Step:
    """One step of the show."""

    report: Report
    text: str
    found: str = ""
    """What to print behind its name when it is done."""

    def at_work(self, detail: str = "") -> None:
        """Say what it is at."""
        self.report.at_work(f"{self.text}: {detail}" if detail else self.text)


@dataclass
class Show:
    """The show: what it has built so far, and the steps, in the order of `run`."""

    cache: Path
    folder: Path
    """Where the image, the sockets and the logs go."""
    report: Report
    accelerator: str
    pattern: str = ""
    """The digest of the image as it was made."""
    verified_mib: int = 0
    """What has passed through vhostd and been compared."""
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def run(self) -> None:
        """Show it all. Raises DemoError for the first thing that is not as it should be."""
        self.cache.mkdir(parents=True, exist_ok=True)
        async with self.stack:
            self.report.title("Preparing")
            config = await self._prepare()
            image = await self._make_image()
            self.report.title("Starting")
            namespace = self.stack.enter_context(_closing(Namespace()))
            disk, nic, backends = await self._serve(image, namespace)
            guest = await self._boot(config, disk, nic)
            self.report.title("The disk, as the guest uses it")
            await self._read(guest)
            await self._write(guest, image)
            await self._file_system(guest, image)
            self.report.title("The network card, as the guest uses it")
            await self._ping(guest, namespace)
            await self._bulk(guest, namespace)
            self.report.title("What vhostd says of it: vhostd status, vhostd stats")
            await self._status()
            await self._end(guest, backends)
        self.report.title(
            f"Done in {self.report.seconds:.0f} s: {self.verified_mib} MiB passed through vhostd, "
            "and every byte is where it belongs."
        )

    async def _prepare(self) -> MachineConfig:
        with self.report.step("a Linux kernel and an initramfs for the guest") as step:
            unpacked = await kernel.fetch(self.cache, step.at_work)
            archive = await initramfs.build(unpacked, self.cache)
            step.found = unpacked.release
        return MachineConfig(unpacked.image, archive, accelerator=self.accelerator)

    async def _make_image(self) -> Path:
        image = self.folder / "disk.img"
        with self.report.step(f"an image of {IMAGE_MIB} MiB with a known pattern") as step:
            with image.open("wb") as file:
                for number in range(IMAGE_MIB):
                    file.write(_pattern(MIB, number))
            self.pattern = await _digest(image)
            step.found = f"sha256 {self.pattern[:16]}..."
        return image

    async def _serve(self, image: Path, namespace: Namespace) -> tuple[Disk, Nic, list[Program]]:
        disk, nic = Disk(self.folder / "disk0.sock", "disk0"), Nic(self.folder / "net0.sock", "net0")
        command = [sys.executable, "-m", "vhostd.cli.main"]
        block = ["blk", str(image), "--socket-path", str(disk.socket), "--serial", "VHOSTD-DEMO"]
        net = ["net", "tap0", "--socket-path", str(nic.socket)]
        with self.report.step(f"vhostd blk and vhostd net (its tap in a network of the demo's own, {HOST_ADDRESS}/24)"):
            await namespace.tap("tap0", f"{HOST_ADDRESS}/24")
            backends = []
            for device, words in ((disk, block), (nic, net)):
                argv = [*command, *words, "--control", str(device.socket.with_suffix(".control"))]
                program = await self.stack.enter_async_context(
                    running(*namespace.command(*argv), log=self.folder / f"{device.name}.log", pass_fds=[namespace.fd])
                )
                await program.listening(device.socket)
                backends.append(program)
        self.report.line("      vhostd " + " ".join(block))
        self.report.line("      vhostd " + " ".join(net))
        return disk, nic, backends

    async def _boot(self, config: MachineConfig, disk: Disk, nic: Nic) -> Machine:
        with self.report.step("Linux boots in QEMU") as step:
            guest = await self.stack.enter_async_context(
                machine(config, log=self.folder / "qemu.log", devices=[disk, nic])
            )
            serial = await guest.guest.run("cat /sys/block/vda/serial")
            mac = await guest.guest.run("cat /sys/class/net/eth0/address")
            _same("the serial", "VHOSTD-DEMO", serial)
            _same("the MAC address", nic.mac, mac)
            step.found = f"it sees /dev/vda with serial {serial} and eth0 with address {mac}"
        return guest

    async def _read(self, guest: Machine) -> None:
        with self.report.step("the guest reads the whole disk") as step:
            seconds = await _timed(guest, "dd if=/dev/vda of=/dev/null bs=256k iflag=direct")
            self.verified_mib += IMAGE_MIB
            _same("the pattern", self.pattern, await guest.guest.digest("/dev/vda", deadline=120))
            step.found = f"{IMAGE_MIB} MiB read and verified, {IMAGE_MIB / seconds:.0f} MiB/s"

    async def _write(self, guest: Machine, image: Path) -> None:
        start = IMAGE_MIB // 2
        with self.report.step("the guest writes, and flushes") as step:
            await guest.guest.run(f"dd if=/dev/urandom of=/tmp/new bs=1M count={WRITE_MIB}", deadline=120)
            seconds = await _timed(guest, f"dd if=/tmp/new of=/dev/vda bs=1M seek={start} oflag=direct conv=fsync")
            want = (await guest.guest.run("sha256sum /tmp/new; rm /tmp/new")).split()[0]
            self.verified_mib += WRITE_MIB
            _same("what was written", want, await _digest(image, start * MIB, WRITE_MIB * MIB))
            flushes = await asyncio.to_thread(self._counter, "disk0", "flushes")
            if not flushes:
                raise DemoError("the guest's fsync did not reach vhostd as a flush")
            step.found = f"{WRITE_MIB} MiB written and verified in the image, {WRITE_MIB / seconds:.0f} MiB/s, flushed"

    async def _file_system(self, guest: Machine, image: Path) -> None:
        with self.report.step("the guest makes an ext4, fills it, mounts it anew") as step:
            shell = guest.guest
            await shell.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt", deadline=60)
            await shell.run(
                "cd /mnt; for d in 1 2 3 4; do mkdir $d; cp -r /bin/busybox /modules /usr /lib $d/; done;"
                " find . -type f | sort | xargs sha256sum >/tmp/sums",
                deadline=120,
            )
            await shell.run("umount /mnt && echo 3 >/proc/sys/vm/drop_caches && mount /dev/vda /mnt")
            checked = (await shell.run("cd /mnt && sha256sum -c /tmp/sums", deadline=120)).splitlines()
            if not checked or not all(line.endswith(": OK") for line in checked):
                raise DemoError("files came back different: " + "; ".join(x for x in checked if not x.endswith("OK")))
            await shell.run("umount /mnt && e2fsck -fn /dev/vda", deadline=60)
            await output_of("e2fsck", "-fn", image)
            step.found = f"{len(checked)} files verified, e2fsck finds it clean in the guest and on the host"

    async def _ping(self, guest: Machine, namespace: Namespace) -> None:
        with self.report.step("the guest pings the host through the card, the host the guest") as step:
            await guest.guest.run(f"ip address add {GUEST_ADDRESS}/24 dev eth0 && ip link set eth0 up")
            words = f"ping -c {PINGS} -i 0.05 -W 2"
            there = _pings(await guest.guest.run(f"{words} {HOST_ADDRESS}", check=False))
            back = _pings(await namespace.output_of("busybox", *words.split(), GUEST_ADDRESS))
            step.found = f"{there}; {back}"

    async def _bulk(self, guest: Machine, namespace: Namespace) -> None:
        data = _pattern(BULK_MIB * MIB, BULK_MIB)
        want = hashlib.sha256(data).hexdigest()
        with namespace.listen(HOST_ADDRESS) as listener:
            port = listener.getsockname()[1]
            with self.report.step(f"{BULK_MIB} MiB over TCP from the host to the guest") as step:
                sent = asyncio.create_task(source(listener, [data], 120))
                await _with(sent, guest.guest.run(f"nc {HOST_ADDRESS} {port} </dev/null >/tmp/bulk", deadline=120))
                self.verified_mib += BULK_MIB
                _same("what the guest received", want, (await guest.guest.run("sha256sum /tmp/bulk")).split()[0])
                step.found = f"verified, {sent.result().mib_per_second:.0f} MiB/s"
            with self.report.step(f"{BULK_MIB} MiB over TCP from the guest to the host") as step:
                taken = asyncio.create_task(sink(listener, 120))
                await _with(taken, guest.guest.run(f"nc {HOST_ADDRESS} {port} </tmp/bulk", deadline=120))
                self.verified_mib += BULK_MIB
                _same("what the host received", want, taken.result().digest)
                step.found = f"verified, {taken.result().mib_per_second:.0f} MiB/s"

    async def _status(self) -> None:
        lines = []
        with self.report.step("asking"):
            for name in ("disk0", "net0"):
                control = self.folder / f"{name}.control"
                said = await output_of(sys.executable, "-m", "vhostd.cli.main", "status", "--control", control)
                lines += said.splitlines()[0 if name == "disk0" else 1 :]
                counted = (await asyncio.to_thread(self._counters, name))["total"]
                lines.append("  " + ", ".join(f"{counted[key]} {words}" for key, words in _COUNTERS[name].items()))
        for line in lines:
            self.report.line(f"      {line}")

    async def _end(self, guest: Machine, backends: list[Program]) -> None:
        with self.report.step("the guest shuts down, vhostd ends") as step:
            await guest.close()
            statuses = [await program.stop() for program in backends]
            if any(statuses):
                raise DemoError(f"vhostd ended with {statuses}: " + "; ".join(each.log_tail() for each in backends))
            step.found = "exit status 0"

    def _counters(self, name: str) -> dict[str, Any]:
        with ControlClient(self.folder / f"{name}.control") as client:
            answer: list[dict[str, Any]] = client.execute("query-stats")
        return answer[0]

    def _counter(self, name: str, counter: str) -> int:
        return int(self._counters(name)["total"][counter])


async def _with(transfer: "asyncio.Task[Transfer]", command: Any) -> None:
    """Wait for both ends; when the guest's fails, do not wait for ours."""
    try:
        await command
        await transfer
    finally:
        transfer.cancel()


@contextmanager
def _closing(namespace: Namespace) -> Iterator[Namespace]:
    try:
        yield namespace
    finally:
        namespace.close()


def _pattern(length: int, seed: int) -> bytes:
    """Return bytes that look like chance and are the same each time."""
    return random.Random(seed).randbytes(length)  # noqa: S311 - nothing is kept secret with it


async def _digest(path: Path, start: int = 0, length: int = -1) -> str:
    def read() -> str:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(length)).hexdigest()

    return await asyncio.to_thread(read)


def _same(what: str, want: str, got: str) -> None:
    if want != got:
        raise DemoError(f"{what} is not what it should be: {got}, not {want}")


async def _timed(guest: Machine, command: str) -> float:
    """Return how long a command of the guest takes, in seconds."""
    start = time.monotonic()
    await guest.guest.run(command, deadline=120)
    return time.monotonic() - start


def _pings(said: str) -> str:
    """Return ping's statistics in short. Raises DemoError when an answer is missing."""
    found = _PING.search(said)
    if found is None or found[1] != found[2]:
        raise DemoError(f"ping said: {said}")
    return f"{found[2]} of {found[1]} answered in {found[3]}/{found[4]}/{found[5]} ms (min/avg/max)"
