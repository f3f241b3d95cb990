"""Boot once, save, and restore a guest in a third of a second.

The state is taken without any vhost-user device, so that it fits every back-end: devices are plugged after a restore.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from vhostd.demo.qemu import Machine, MachineConfig, machine, version_of_qemu


async def take(config: MachineConfig, cache: Path) -> Path:
    """Return the saved state of a guest that has just booted, from `cache` or by booting one.

    A state fits one QEMU, one machine, one kernel and one initramfs: its name is made of all of them.
    """
    cache.mkdir(parents=True, exist_ok=True)
    key = await asyncio.to_thread(_key, config, await version_of_qemu())
    path = cache / f"guest-{key}.state"
    if not path.exists():
        fresh = cache / f".guest-{key}.{os.getpid()}"
        try:
            async with machine(config, log=cache / f"guest-{key}.log") as booted:
                await booted.guest.run("true")
                await booted.save(fresh)
            fresh.rename(path)
        finally:
            fresh.unlink(missing_ok=True)
    return path


@asynccontextmanager
async def restored(config: MachineConfig, state: Path, *, log: Path) -> AsyncIterator[Machine]:
    """Run a machine from its saved state for the length of a block: its shell is there, its CPUs run."""
    again = await Machine.start(config, log=log, state=state)
    try:
        await again.restore(state)
        await again.resume()
        yield again
    finally:
        await again.close()


def _key(config: MachineConfig, version: str) -> str:
    digest = hashlib.sha256(version.encode())
    digest.update("\0".join(config.command()).encode())
    for path in (config.kernel, config.initramfs):
        if path is not None:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
