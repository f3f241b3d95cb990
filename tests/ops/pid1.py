"""A real systemd as pid 1: namespaces, an overlay over this machine's root, and vhostd installed in it."""

import contextlib
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import vhostd
from tests.support.bare import propagation

ROOT = Path(__file__).parents[2]
BOOT_SECONDS = 60
PATH = "/opt/vhostd/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# $1: the overlay's directory. Devices are bound one by one, so that the guest systemd finds no disk of ours to touch.
_BOOT = r"""
set -e
top=$1
mount -t tmpfs tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay overlay -o lowerdir=/,upperdir="$top/upper",workdir="$top/work" "$top/root"
cp -a "$2/." "$top/root/"
cd "$top/root"
rm -rf etc/systemd/system run/* var/log/journal
mkdir -p etc/systemd/system
echo 0123456789abcdef0123456789abcdef > etc/machine-id
mount -t proc proc proc
mount -t sysfs sysfs sys 2>/dev/null || mount --bind /sys sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs dev
mkdir dev/pts dev/shm dev/net
mount -t devpts devpts dev/pts
mknod -m 666 dev/net/tun c 10 200  # as systemd-udevd has it
for node in null zero full random urandom tty; do
  touch "dev/$node" && mount --bind "/dev/$node" "dev/$node"
done
ln -s /proc/self/fd dev/fd
ln -s pts/ptmx dev/ptmx
for place in opt/python:"$3" opt/site:"$4"; do
  mkdir -p "${place%%:*}"
  mount --bind "${place#*:}" "${place%%:*}"
done
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=docker \
  chroot . /lib/systemd/systemd --unit=basic.target --log-target=null
"""

_ENTRY = """#!/bin/sh
PYTHONHOME=/opt/python PYTHONPATH=/opt/vhostd:/opt/site exec /opt/python/bin/{python} -B -m vhostd.cli.main "$@"
"""


def stage(top: Path) -> Path:
    """Lay out what is copied over the overlay's root: the package, its command, the units."""
    tree = top / "tree"
    package = tree / "opt/vhostd/vhostd"
    build = next((Path(f._build_path) for f in sys.meta_path if hasattr(f, "_build_path")), None)
    if build is None:
        shutil.copytree(Path(vhostd.__file__).parent, package)
    else:  # an editable build: have meson install it somewhere, and take the package from there
        meson = Path(sys.executable).parent / "meson"
        words = [sys.executable, meson, "install", "-q", "--no-rebuild", "-C", build, "--destdir", top / "installed"]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        (found,) = (top / "installed").rglob("vhostd/__init__.py")
        shutil.copytree(found.parent, package)
    command = tree / "opt/vhostd/bin/vhostd"
    command.parent.mkdir()
    command.write_text(_ENTRY.format(python=f"python3.{sys.version_info.minor}"))
    command.chmod(0o755)
    units = tree / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    text = (ROOT / "systemd/vhostd@.service.in").read_text()
    (units / "vhostd@.service").write_text(text.replace("@PROGRAMS@", "/opt/vhostd/bin"))
    shutil.copy(ROOT / "systemd/vhostd@.socket", units)
    for kind in ("sysusers.d", "tmpfiles.d"):
        (tree / "usr/lib" / kind).mkdir()
        shutil.copy(ROOT / "systemd" / kind / "vhostd.conf", tree / "usr/lib" / kind)
    (tree / "etc/vhostd").mkdir(parents=True)
    for path in (tree, *tree.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    return tree


class Machine:
    """A booted systemd. `root` is its root directory as we see it."""

    def __init__(self, top: Path, site: Path) -> None:
        tree = stage(top)
        mount = top / "machine"
        mount.mkdir()
        self._log = (top / "boot.log").open("w+")
        spaces = [
            "--mount",
            f"--propagation={propagation()}",
            "--pid",
            "--fork",
            "--net",
            "--uts",
            "--ipc",
            "--cgroup",
            "--kill-child=KILL",
        ]
        boot = ["bash", "-c", _BOOT, "boot", mount, tree, sys.base_prefix, site]
        self._unshare = subprocess.Popen(
            ["unshare", *spaces, *map(str, boot)], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        self.pid = self._find_pid1()
        self.root = Path(f"/proc/{self.pid}/root")

    def _find_pid1(self) -> int:
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline and self._unshare.poll() is None:
            for pid in children.read_text().split():
                try:
                    if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                        return int(pid)
                except OSError:
                    continue
            time.sleep(0.05)
        self._log.seek(0)
        raise RuntimeError(f"systemd did not come up: {self._log.read()}")

    def wait_for_boot(self) -> str:
        """Wait until the start-up jobs are done; return the state systemd claims."""
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
            if state in ("running", "degraded"):
                return state
            time.sleep(0.1)
        raise RuntimeError(f"systemd is still {state!r}")

    def run(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root."""
        inside = ["nsenter", "-t", str(self.pid), "-a", "-r", "-w", "env", "-i", f"PATH={PATH}"]
        done = subprocess.run(
            [*inside, *map(str, words)], check=False, capture_output=True, text=True, timeout=BOOT_SECONDS
        )
        if check and done.returncode:
            raise RuntimeError(f"{words}: {done.returncode}: {done.stdout}{done.stderr}{self._journal()}")
        return done

    def _journal(self) -> str:
        return self.run("journalctl", "-n", "40", "-o", "cat", check=False).stdout

    def show(self, unit: str, key: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", key, unit).stdout.strip()

    def wait(self, unit: str, key: str, value: str) -> None:
        """Wait until a unit has a property."""
        deadline = time.monotonic() + BOOT_SECONDS
        while (found := self.show(unit, key)) != value:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{unit}: {key} is {found!r}, not {value!r}: {self._journal()}")
            time.sleep(0.05)

    def end(self) -> None:
        """End pid 1, and with it everything inside."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._unshare.wait(BOOT_SECONDS)
        self._log.close()


def site_packages() -> Path:
    """Return where our dependencies are installed."""
    return Path(str(importlib.metadata.distribution("msgspec").locate_file("")))
