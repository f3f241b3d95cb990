"""An initramfs: busybox, the kernel's modules, a few file system tools of this machine, and an init that is a shell.

The archive is cpio's "newc" form (kernel: Documentation/driver-api/early-userspace/buffer-format.rst), written here:
device nodes and owners need no root that way, and the same contents make the same bytes.
"""

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from vhostd.demo.errors import DemoError
from vhostd.demo.kernel import Kernel
from vhostd.demo.programs import find, output_of

TOOLS = ("mkfs.ext4", "e2fsck", "blkdiscard", "fallocate")
"""What busybox lacks or does otherwise: taken from this machine, with the libraries they load."""

READY = "@@READY"
"""What the guest's shell prints when it takes commands."""

# A command comes as one line: backslashes, newlines and nothing else are escaped, for printf's %b. What it prints
# comes back as it is, then a line that starts with @@END, its number, and its exit status.
_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o size=80% tmpfs /tmp
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
ip link set lo up
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty raw -echo
echo; echo @@READY
while IFS=' ' read -r number command; do
  (eval "$(printf %b "$command")") </dev/null
  status=$?
  echo; echo "@@END $number $status"
done
"""


@dataclass
class Archive:
    """Files on their way into a newc archive; parents are added before what they hold."""

    _entries: dict[str, tuple[int, bytes, tuple[int, int]]] = field(default_factory=dict)

    def directory(self, path: str) -> None:
        """Add a directory and those above it."""
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            self._entries.setdefault("/".join(parts[:depth]), (stat.S_IFDIR | 0o755, b"", (0, 0)))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._add(path, stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a device node."""
        self._add(path, stat.S_IFCHR | 0o600, b"", (major, minor))

    def _add(self, path: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        path = path.strip("/")
        if "/" in path:
            self.directory(path.rpartition("/")[0])
        self._entries[path] = (mode, data, device)

    def to_bytes(self) -> bytes:
        """Return the archive."""
        out = bytearray()
        trailer = ("TRAILER!!!", (0, b"", (0, 0)))
        for inode, (path, (mode, data, (major, minor))) in enumerate([*self._entries.items(), trailer], start=1):
            name = path.encode() + b"\0"
            links = 2 if stat.S_ISDIR(mode) else 1
            fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(name), 0)
            out += b"070701" + b"".join(b"%08X" % value for value in fields) + name
            out += bytes(-len(out) % 4)
            out += data
            out += bytes(-len(out) % 4)
        return bytes(out)


async def build(kernel: Kernel, cache: Path) -> Path:
    """Return an initramfs for `kernel`, made in `cache` unless the same one is there.

    Raises DemoError when busybox or a tool is not installed.
    """
    archive = Archive()
    for directory in ("proc", "sys", "dev", "tmp", "mnt", "etc", "var", "run"):
        archive.directory(directory)
    archive.character_device("dev/console", 5, 1)
    archive.file("init", _INIT.encode(), 0o755)
    await _add_busybox(archive)
    for tool in TOOLS:
        await _add_program(archive, tool)
    if Path("/etc/mke2fs.conf").exists():
        archive.file("etc/mke2fs.conf", Path("/etc/mke2fs.conf").read_bytes())
    for module in kernel.modules:
        archive.file(f"modules/{module.name}", module.read_bytes())
    archive.file("modules/order", "".join(f"{module.stem}\n" for module in kernel.modules).encode())
    data = archive.to_bytes()
    path = cache / f"initramfs-{hashlib.sha256(data).hexdigest()[:16]}.cpio"
    if not path.exists():
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(data)
        fresh.rename(path)
    return path


async def _add_busybox(archive: Archive) -> None:
    busybox = find("busybox")
    if "=>" in await _libraries(busybox):
        raise DemoError("busybox: a static one is needed (the package busybox-static)")
    for applet in (await output_of(busybox, "--list")).split():
        archive.link(f"bin/{applet}", "busybox")
    archive.file("bin/busybox", Path(busybox).read_bytes(), 0o755)  # after the list, which has it too


async def _add_program(archive: Archive, name: str) -> None:
    path = find(name)
    archive.file(f"usr/sbin/{name}", Path(path).read_bytes(), 0o755)
    for line in (await _libraries(path)).splitlines():
        # "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)", and the loader without an arrow
        library = line.partition("=>")[2].split() or line.split()
        if library and library[0].startswith("/"):
            archive.file(library[0], Path(library[0]).read_bytes(), 0o755)


async def _libraries(program: str) -> str:
    try:
        return await output_of("ldd", program)
    except DemoError:
        return ""  # "not a dynamic executable" is an error to ldd
