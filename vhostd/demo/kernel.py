"""A Linux kernel with its virtio modules: from the cache, else from the distribution's package, as any user.

The package manager finds and checks the package, with the sources the machine is set up with; nothing is installed.
"""

import asyncio
import lzma
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vhostd.demo.errors import DemoError
from vhostd.demo.programs import output_of

WANTED = ("virtio_pci", "virtio_blk", "virtio_net", "ext4", "crc32c_generic")
"""The modules a guest needs; what they depend on is found in them."""

_PACKAGE = "linux-image-cloud-amd64"
_IMAGE_DEPENDENCY = re.compile(r"Depends: (linux-image-\S+)")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel."""

    release: str
    """As `uname -r` says."""
    image: Path
    """The bzImage."""
    modules: tuple[Path, ...]
    """Uncompressed modules, in the order in which they can be loaded."""


async def fetch(cache: Path, say: Say) -> Kernel:
    """Return the cached kernel, or unpack one into `cache`; `say` is told what takes time.

    Raises DemoError when the package cannot be had.
    """
    home = cache / "kernel"
    for unpacked in sorted(home.glob("*/order"), key=lambda path: path.stat().st_mtime, reverse=True):
        return _read(unpacked.parent)
    home.mkdir(parents=True, exist_ok=True)
    options, package = await _find_package(home, say)
    work = home / f".unpack-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        say(f"fetching {package}")
        await output_of("apt-get", "-q", *options, "download", package, cwd=work, deadline=600)
        archive = next(iter(work.glob("*.deb")))
        say(f"unpacking {archive.name}")
        await output_of("dpkg-deb", "-x", archive, work / "root")
        done = await asyncio.to_thread(_keep, work)
        target = home / done.name
        if not target.exists():
            done.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return _read(target)


async def _find_package(home: Path, say: Say) -> tuple[list[str], str]:
    """Return the package that the meta-package names today, and the options for apt to know it by."""
    options: list[str] = ["-o", "APT::Sandbox::User=root"]
    for fresh in (False, True):
        if fresh:  # a machine whose package lists were removed: get them for ourselves, which needs no root
            state, store = home / "apt/lists", home / "apt/cache"
            (state / "partial").mkdir(parents=True, exist_ok=True)
            (store / "archives/partial").mkdir(parents=True, exist_ok=True)
            options += ["-o", f"Dir::State::lists={state}", "-o", f"Dir::Cache={store}"]
            say("fetching the package lists")
            await output_of("apt-get", "-q", *options, "update", deadline=300)
        try:
            found = _IMAGE_DEPENDENCY.search(await output_of("apt-cache", *options, "depends", _PACKAGE))
        except DemoError:
            found = None
        if found is not None:
            return options, found[1]
    raise DemoError(f"no kernel: the package {_PACKAGE} is not known here (it comes with Debian on amd64)")


def _keep(work: Path) -> Path:
    """Leave of an unpacked package the image and the wanted modules; return their folder, named by the release."""
    image = next(iter((work / "root/boot").glob("vmlinuz-*")), None)
    if image is None:
        raise DemoError(f"the kernel package has no vmlinuz: {sorted((work / 'root').iterdir())}")
    release = image.name.removeprefix("vmlinuz-")
    tree = next(
        path for path in (work / "root/lib/modules" / release, work / "root/usr/lib/modules" / release) if path.is_dir()
    )
    built_in = {_name(line) for line in (tree / "modules.builtin").read_text().split()}
    files = {_name(path.name): path for path in tree.rglob("*.ko*")}
    home = work / release
    home.mkdir()
    order = []
    for module in resolve(WANTED, files, built_in):
        (home / f"{module}.ko").write_bytes(_module_bytes(files[module]))
        order.append(module)
    shutil.copyfile(image, home / "vmlinuz")
    (home / "order").write_text("\n".join(order) + "\n")
    return home


def resolve(wanted: Iterable[str], files: dict[str, Path], built_in: set[str]) -> list[str]:
    """Return the names of the modules to load, each after those it depends on.

    Raises DemoError for one that is neither a file nor built in.
    """
    order: list[str] = []

    def add(module: str) -> None:
        if module in order or module in built_in:
            return
        if module not in files:
            raise DemoError(f"the kernel has no module {module}")
        for needed in dependencies(_module_bytes(files[module])):
            add(needed)
        order.append(module)

    for module in wanted:
        add(module)
    return order


def dependencies(module: bytes) -> list[str]:
    """Return the names in a module's `depends=` field: the package has no modules.dep before it is installed."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [_name(name) for name in found[1].decode().split(",") if name] if found else []


def _name(file_name: str) -> str:
    return Path(file_name).name.split(".")[0].replace("-", "_")


def _module_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _read(home: Path) -> Kernel:
    modules = tuple(home / f"{name}.ko" for name in (home / "order").read_text().split())
    return Kernel(home.name, home / "vmlinuz", modules)
