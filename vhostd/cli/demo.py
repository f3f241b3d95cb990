"""demo: boots a Linux guest on a disk and a network card, and shows it at work."""

import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path

from vhostd.cli.flags import Parser
from vhostd.demo.errors import DemoError
from vhostd.demo.programs import find
from vhostd.demo.show import Report, Show

NEEDED = ("qemu-system-x86_64", "busybox", "ip", "mkfs.ext4", "nsenter", "setpriv", "unshare")
PACKAGES = "qemu-system-x86 busybox-static iproute2 e2fsprogs util-linux"


def main(words: list[str]) -> int:
    """Show a guest at work; 0 when every byte was where it belongs: `vhostd demo`."""
    parser = Parser(
        prog="vhostd demo", description="Boot a Linux guest in QEMU on a disk and a network card served by vhostd."
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        type=Path,
        default=_cache(),
        help="where the guest's kernel and initramfs are kept [%(default)s]",
    )
    parser.add_argument(
        "--accelerator",
        metavar="NAME",
        default="tcg,thread=multi",
        help="QEMU's -accel; kvm is faster where it works [%(default)s]",
    )
    parser.add_argument("--keep", action="store_true", help="leave the image and the logs behind, and say where")
    found = parser.parse_args(words)
    _check_programs()
    if os.geteuid() != 0:
        # A network of one's own takes root, if only in a user namespace of one's own. There we come in again as root.
        again = [sys.executable, "-m", "vhostd.cli.main", "demo", *words]
        os.execv(find("unshare"), ["unshare", "--user", "--map-root-user", "--", *again])  # noqa: S606 - no shell
    folder = Path(tempfile.mkdtemp(prefix="vhostd-"))
    try:
        asyncio.run(Show(found.cache.resolve(), folder, Report(sys.stdout), found.accelerator).run())
    except TimeoutError:
        raise DemoError("something took far too long; run it again with --keep and look at the logs") from None
    finally:
        if found.keep:
            print(f"image and logs: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


def _check_programs() -> None:
    missing = []
    for program in NEEDED:
        try:
            find(program)
        except DemoError:
            missing.append(program)
    if missing:
        raise DemoError(f"the demo needs {', '.join(missing)}: apt-get install {PACKAGES}")


def _cache() -> Path:
    home = os.environ.get("VHOSTD_CACHE")
    if home:
        return Path(home) / "guest"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vhostd"
