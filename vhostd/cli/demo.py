"""demo: boots a Linux guest on a disk and a network card of ours, and says what it did with them."""

import argparse
import asyncio
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vhostd.demo.errors import DemoError

if TYPE_CHECKING:
    from vhostd.demo.guest import Guest
    from vhostd.demo.host import Namespace

MIB = 1 << 20
DISK_MIB = 64
WRITE_MIB = 16
BULK_MIB = 32
PINGS = 20
HOST, GUEST, PREFIX = "192.0.2.1", "192.0.2.2", 24  # RFC 5737: addresses for examples
_INSIDE = "VHOSTD_DEMO_INSIDE"


def main(words: list[str]) -> int:
    """Run the demonstration; 0 when every byte was where it belongs."""
    parser = argparse.ArgumentParser(
        "vhostd demo", description="Boot a Linux guest under QEMU on a disk and a network card served by vhostd."
    )
    parser.add_argument("--cache", type=Path, help="where the kernel is kept (default: the user's cache folder)")
    parser.add_argument("--keep", action="store_true", help="leave the image and the logs behind, and say where")
    found = parser.parse_args(words)
    missing = [name for name in ("qemu-system-x86_64", "busybox", "nsenter", "setpriv") if shutil.which(name) is None]
    if missing:
        raise DemoError(
            f"the demo needs {', '.join(missing)}: apt-get install qemu-system-x86 busybox-static util-linux iproute2"
        )
    if os.geteuid() != 0 and _INSIDE not in os.environ:
        # A tap wants CAP_NET_ADMIN, if only over a network of our own: a user namespace gives that to anyone.
        os.environ[_INSIDE] = "1"
        again = ["unshare", "--user", "--map-root-user", "--", sys.executable, "-m", "vhostd.cli.main", "demo", *words]
        os.execvp("unshare", again)  # noqa: S606 - there is nothing for a shell to see
    cache = found.cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vhostd"
    folder = Path(tempfile.mkdtemp(prefix="vhostd-demo-"))
    screen = Screen()
    try:
        asyncio.run(Demo(screen, cache, folder).run())
    except TimeoutError:
        raise DemoError("something took far too long; run it again with --keep and look at the logs") from None
    finally:
        screen.end()
        if found.keep:
            print(f"image and logs: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


class Screen:
    """Lines for people: what is being done, then what came of it and how long it took."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._live = sys.stdout.isatty()
        self._open = False

    def title(self, text: str) -> None:
        """Begin a part."""
        print(f"\n\033[1m{text}\033[0m" if self._live else f"\n{text}", flush=True)

    def doing(self, text: str) -> None:
        """Say what is being done, on a terminal: the result replaces it."""
        if self._live:
            print(f"\r\033[K  · {text} …", end="", flush=True)
            self._open = True

    @contextmanager
    def step(self, text: str) -> Iterator[list[str]]:
        """Do something; what is put into the list stands behind it when it is done."""
        self.doing(text)
        start = time.monotonic()
        results: list[str] = []
        yield results
        behind = ", ".join(results)
        lead = "\r\033[K" if self._live else ""
        print(f"{lead}  ✓ {text}{': ' if behind else ''}{behind}  ({time.monotonic() - start:.1f} s)", flush=True)
        self._open = False

    def lines(self, text: str) -> None:
        """Show another program's output."""
        for line in text.splitlines():
            print(f"    {line}", flush=True)

    def end(self) -> None:
        """Leave no half line behind."""
        if self._open:
            print()
            self._open = False

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._start


class Demo:
    """What is shown, in its order."""

    def __init__(self, screen: Screen, cache: Path, folder: Path) -> None:
        self._screen = screen
        self._cache = cache
        self._folder = folder
        self._image = folder / "disk.img"
        self._verified = 0

    async def run(self) -> None:
        """Show all of it. Raises DemoError when a byte is not where it belongs, or something does not run."""
        from vhostd.demo import initramfs, kernel
        from vhostd.demo.qemu import Disk, MachineConfig, Nic, machine

        screen, folder = self._screen, self._folder
        screen.title("Preparing")
        with screen.step("a Linux kernel and an initramfs") as results:
            linux = await kernel.fetch(self._cache, screen.doing)
            archive = await initramfs.build(linux, self._cache)
            results.append(linux.release)
        with screen.step(f"a disk image of {DISK_MIB} MiB, filled with a pattern"):
            data = random.Random(1).randbytes(DISK_MIB * MIB)  # noqa: S311 - a pattern, not a secret
            self._image.write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
        async with AsyncExitStack() as stack:
            disk, nic, network = await self._serve(stack)
            with screen.step("a guest in QEMU (TCG: no hardware virtualisation needed)"):
                config = MachineConfig(linux.image, archive, memory_mib=256)
                log = folder / "qemu.log"
                guest = await stack.enter_async_context(
                    machine(config, log=log, devices=[Disk(disk, "disk0"), Nic(nic, "net0")])
                )
            await self._read(guest.guest, digest)
            await self._write(guest.guest)
            await self._file_system(guest.guest)
            await self._network(guest.guest, network)
            await self._ask(disk, nic)
        screen.title(
            f"Done in {screen.seconds:.0f} s: {self._verified // MIB} MiB passed through vhostd, "
            "and every byte is where it belongs."
        )

    async def _serve(self, stack: AsyncExitStack) -> "tuple[Path, Path, Namespace]":
        """Start `vhostd blk` and `vhostd net`."""
        from vhostd.demo.host import Namespace
        from vhostd.demo.programs import running

        screen, folder = self._screen, self._folder
        screen.title("Starting")
        disk, nic = folder / "disk0.sock", folder / "net0.sock"
        command = [sys.executable, "-m", "vhostd.cli.main"]
        with screen.step(f"vhostd blk {self._image.name}"):
            words = [*command, "blk", str(self._image), "--socket-path", str(disk), "--serial", "vhostd-demo"]
            program = await stack.enter_async_context(running(*words, log=folder / "blk.log"))
            await program.listening(disk)
        with screen.step(f"vhostd net tap0 (in a network of its own, {HOST}/{PREFIX})"):
            network = Namespace()
            stack.callback(network.close)
            await network.tap("tap0", f"{HOST}/{PREFIX}")
            words = network.command(*command, "net", "tap0", "--socket-path", str(nic))
            program = await stack.enter_async_context(running(*words, log=folder / "net.log", pass_fds=[network.fd]))
            await program.listening(nic)
        return disk, nic, network

    async def _read(self, guest: "Guest", digest: str) -> None:
        screen = self._screen
        screen.title("The disk, as the guest sees it")
        with screen.step("what is it") as results:
            serial = await guest.run("cat /sys/block/vda/serial")
            size = int(await guest.run("cat /sys/block/vda/size")) * 512
            results += [f"/dev/vda, {size // MIB} MiB", f"serial {serial}"]
        with screen.step(f"reading all {DISK_MIB} MiB") as results:
            await guest.run("echo 3 >/proc/sys/vm/drop_caches")
            results.append(await self._timed(guest, "dd if=/dev/vda of=/dev/null bs=1M", DISK_MIB))
            self._same(await guest.digest("/dev/vda", deadline=180), digest, "what the guest read")
            results.append(f"sha256 {digest[:16]}… is the image's")
            self._verified += DISK_MIB * MIB

    async def _write(self, guest: "Guest") -> None:
        screen = self._screen
        with screen.step(f"writing {WRITE_MIB} MiB of random bytes, and flushing") as results:
            at = DISK_MIB - WRITE_MIB
            await guest.run(f"dd if=/dev/urandom of=/tmp/random bs=1M count={WRITE_MIB} 2>/dev/null", deadline=60)
            written = (await guest.run("sha256sum /tmp/random", deadline=60)).split()[0]
            speed = await self._timed(guest, f"dd if=/tmp/random of=/dev/vda bs=1M seek={at} conv=fsync", WRITE_MIB)
            with self._image.open("rb") as file:
                file.seek(at * MIB)
                self._same(hashlib.sha256(file.read(WRITE_MIB * MIB)).hexdigest(), written, "what the image holds")
            results += [speed, f"sha256 {written[:16]}… is in the image"]
            self._verified += WRITE_MIB * MIB

    async def _file_system(self, guest: "Guest") -> None:
        with self._screen.step("ext4: made, filled, unmounted, checked, mounted again, compared") as results:
            await guest.run("mkfs.ext4 -q -F /dev/vda", deadline=60)
            await guest.run("mount -t ext4 /dev/vda /mnt && cp /tmp/random /mnt/file && umount /mnt", deadline=60)
            await guest.run("e2fsck -f -n /dev/vda >/tmp/fsck 2>&1", deadline=60)
            await guest.run("mount -t ext4 /dev/vda /mnt && cmp /tmp/random /mnt/file && umount /mnt", deadline=60)
            results.append(f"{WRITE_MIB} MiB in a file are as they were")
            self._verified += WRITE_MIB * MIB

    async def _network(self, guest: "Guest", network: "Namespace") -> None:
        from vhostd.demo.host import sink, source

        screen = self._screen
        screen.title("The network card, as the guest sees it")
        await guest.run(f"ip address add {GUEST}/{PREFIX} dev eth0 && ip link set eth0 up")
        with screen.step(f"pinging the host {PINGS} times") as results:
            said = await guest.run(f"ping -c {PINGS} -i 0.05 {HOST}", deadline=60)
            if f"{PINGS} packets received" not in said:
                raise DemoError(f"the ping lost something:\n{said}")
            if found := re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)", said):
                results.append("no loss, {} ms at least, {} on average, {} at most".format(*found.groups()))
        data = random.Random(2).randbytes(BULK_MIB * MIB)  # noqa: S311 - a pattern, not a secret
        digest = hashlib.sha256(data).hexdigest()
        with network.listen(HOST) as listener:
            port = listener.getsockname()[1]
            with screen.step(f"TCP, host to guest, {BULK_MIB} MiB") as results:
                sent = asyncio.create_task(source(listener, [data], deadline=120))
                await guest.run(f"nc {HOST} {port} </dev/null >/tmp/bulk", deadline=120)
                took = await sent
                arrived = (await guest.run("sha256sum /tmp/bulk", deadline=60)).split()[0]
                self._same(arrived, digest, "what arrived in the guest")
                results += [f"{took.mib_per_second:.0f} MiB/s", "same digest"]
            with screen.step(f"TCP, guest to host, {BULK_MIB} MiB") as results:
                taken = asyncio.create_task(sink(listener, deadline=120))
                await guest.run(f"nc {HOST} {port} </tmp/bulk", deadline=120)
                got = await taken
                self._same(got.digest, digest, "what arrived at the host")
                results += [f"{got.mib_per_second:.0f} MiB/s", "same digest"]
        self._verified += 2 * BULK_MIB * MIB

    async def _ask(self, *sockets: Path) -> None:
        from vhostd.demo.programs import output_of

        screen = self._screen
        screen.title("What vhostd says of it: vhostd status, vhostd stats")
        for socket in sockets:
            control = str(socket.with_suffix(".control"))
            command = [sys.executable, "-m", "vhostd.cli.main"]
            screen.lines(await output_of(*command, "status", "--control", control))
            stats = json.loads(await output_of(*command, "stats", "--json", "--control", control))[0]
            total = stats["total"]
            wanted = ("reads", "writes", "flushes", "rx_frames", "tx_frames", "kicks", "calls", "poll_hits")
            screen.lines("  ".join(f"{name} {total[name]}" for name in wanted if name in total))

    @staticmethod
    async def _timed(guest: "Guest", command: str, mib: int) -> str:
        """Run a transfer and return its throughput."""
        start = time.monotonic()
        await guest.run(f"{command} 2>/dev/null", deadline=120)
        return f"{mib / (time.monotonic() - start):.0f} MiB/s"

    @staticmethod
    def _same(found: str, wanted: str, what: str) -> None:
        if found != wanted:
            raise DemoError(f"{what} has the digest {found}, and should have {wanted}")
