"""A copy of the tree in which mutants are built and held against the tests, one after the other.

The copy runs beside the editable build that its tests' interpreter has: MESONPY_EDITABLE_SKIP takes that build's import
hook out of the way, and the modules compiled here lie beside their sources.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / Path(sys.prefix).name.replace(".venv", ".build")  # of the editable install, as ./run has them
BUILD_SECONDS = 600
TEST_SECONDS = 120


class Workshop:
    """One copy; used by one mutant at a time."""

    def __init__(self, folder, *, compiled=True):
        self.tree = folder / "tree"
        self.compiled = compiled
        tracked = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.splitlines()  # fmt: skip
        for name in tracked:
            if (ROOT / name).is_file():
                target = self.tree / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        subprocess.run(["git", "init", "-q"], cwd=self.tree, check=True)
        if compiled:
            self.run(["meson", "setup", "-Doptimization=2", ".build"], BUILD_SECONDS, check=True)
            self._build()
        else:  # what the editable build has serves as it is
            for module in (BUILD / "vhostd").glob("*.so"):
                shutil.copy2(module, self.tree / self._home(module))

    def environment(self):
        """What a program needs to run with the copy's modules."""
        return {
            **os.environ,
            "MESONPY_EDITABLE_SKIP": str(BUILD),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.tree),
            "VHOSTD_CACHE": os.environ.get("VHOSTD_CACHE", str(ROOT / ".cache")),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @contextlib.contextmanager
    def mutated(self, mutant):
        """Put the mutant in, build it, and take it out again. Yields what went wrong in the build, or nothing."""
        path = self.tree / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.name}: {text.count(mutant.old)} places in {mutant.file}, not one")
        path.write_text(text.replace(mutant.old, mutant.new))
        try:
            yield self._build() if self.compiled else ""
        finally:
            path.write_text(text)

    def tests(self, words):
        """Run pytest; return (whether everything passed, its last line and the first failure)."""
        done = self.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *words], TEST_SECONDS)
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        lines = done.stdout.strip().splitlines()
        return done.returncode == 0, failed[0] if failed else lines[-1] if lines else f"ended with {done.returncode}"

    def command(self, words, seconds=TEST_SECONDS):
        """Run `vhostd` from the copy with these words; return the finished process."""
        return self.run([sys.executable, "-m", "vhostd.cli.main", *words], seconds)

    def _build(self):
        done = self.run(["ninja", "-C", ".build"], BUILD_SECONDS)
        if done.returncode:
            return done.stdout[-2000:]
        # Installed aside: in the build folder all modules lie in one directory.
        stage = self.tree / ".stage"
        self.run(
            ["meson", "install", "-C", ".build", "--no-rebuild", "--only-changed", "--quiet", "--destdir", str(stage)],
            BUILD_SECONDS, check=True,
        )  # fmt: skip
        for module in stage.rglob("*.so"):
            parts = module.parts
            inside = Path(*parts[len(parts) - parts[::-1].index("vhostd") - 1 :])
            target = self.tree / inside
            if not target.exists() or target.stat().st_mtime_ns != module.stat().st_mtime_ns:
                shutil.copy2(module, target)
        return ""

    def _home(self, module):
        """Where a module of the flat build folder belongs: beside the source of that name."""
        name = module.name.split(".")[0]
        sources = list(self.tree.glob(f"vhostd/**/{name}.pyx"))
        assert len(sources) == 1, f"{name}: {sources}"
        return sources[0].parent.relative_to(self.tree) / module.name

    def run(self, command, seconds, *, check=False):
        """Run a program with the copy's modules, its output in one piece, and end all of it after so many seconds."""
        process = subprocess.Popen(
            command, cwd=self.tree, env=self.environment(), stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            output = f"nothing came of it in {seconds} s"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._end_strays()
        if check and process.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}:\n{output}")
        return subprocess.CompletedProcess(command, process.returncode, output)

    def _end_strays(self):
        """End what a mutant's processes left running: a back-end of a test that was cut off, in a loop perhaps."""
        mark = f"PYTHONPATH={self.tree}".encode()
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (folder / "environ").read_bytes().split(b"\0"):
                        os.kill(int(folder.name), signal.SIGKILL)
