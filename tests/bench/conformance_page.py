"""Writes docs/conformance.md: what each installed back-end does, by chapter, and how to see each failure again."""

import datetime as dt
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from vhostd import __version__

CHECK = [sys.executable, "-m", "vhostd.cli.main", "check"]
QSD = (
    "qemu-storage-daemon --blockdev driver=file,node-name=f,filename=disk.raw,discard=unmap "
    "--blockdev driver=raw,node-name=r,file=f,discard=unmap --export type=vhost-user-blk,id=e,node-name=r,"
    "addr.type=unix,addr.path={sock},writable=on,num-queues=4"
)
PEERS = {
    f"vhostd {__version__}": f"{sys.executable} -m vhostd.cli.main blk disk.raw --socket-path {{sock}} --queues 4",
    "qemu-storage-daemon": QSD,
}
HEAD = """# What back-ends do

`vhostd check SOCKET` holds a vhost-user back-end to the vhost-user document and to virtio. This page is written by
`python -m tests.bench.conformance_page`; it was last written on {date}. It says what the disks that are installed on
that machine did, each in its default settings with four queues. "Not offered" is no fault: the back-end does not claim
to do it. A SHOULD is advice. A failure is one reading of a document by one tester: whoever maintains the back-end
may know better, and the command shows what was sent, what was expected and what was seen. Cards are checked with a tap
in the test suite (`tests/protocol/test_check.py`).
"""


def run(command, folder):
    """Check one back-end; return the report and its version."""
    (folder / "disk.raw").write_bytes(b"")
    with (folder / "disk.raw").open("r+b") as file:
        file.truncate(64 << 20)
    words = [*CHECK, "peer.sock", "--start", command, "--format", "json", "-o", "report.json"]
    subprocess.run(words, cwd=folder, timeout=600, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads((folder / "report.json").read_text())


def page(reports):
    """Return the page."""
    lines = [HEAD.format(date=dt.datetime.now(dt.UTC).date().isoformat())]
    chapters = sorted({case["chapter"] for report in reports.values() for case in report["cases"]})
    lines += ["## By chapter", "", "Passed / failed / not offered.", ""]
    lines += [f"| chapter | {' | '.join(reports)} |", "|---" * (len(reports) + 1) + "|"]
    for chapter in [*chapters, "all"]:
        row = []
        for report in reports.values():
            found = Counter(c["verdict"] for c in report["cases"] if chapter in {c["chapter"], "all"})
            row.append(f"{found['passed']} / {found['failed'] + found['broke off']} / {found['not offered']}")
        lines.append(f"| {chapter.replace('_', ' ')} | {' | '.join(row)} |")
    for name, report in reports.items():
        bad = [case for case in report["cases"] if case["verdict"] in {"failed", "broke off"}]
        lines += ["", f"## {name}", ""]
        if not bad:
            lines.append("Every case that it offers passes.")
            continue
        lines += ["`vhostd check SOCKET -k ID` shows each of these again.", ""]
        lines += ["| ID | level | rule | expected | seen |", "|---|---|---|---|---|"]
        for case in bad:
            cells = (case["id"], case["level"], f"{case['rule']} ({case['section']})",
                     case.get("expected", ""), case.get("seen", case.get("reason", "")))  # fmt: skip
            lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(text):
    text = text.replace("|", "\\|")
    return text if len(text) <= 200 else text[:197] + "..."


def main():
    """Write the page."""
    reports = {}
    for name, command in PEERS.items():
        with tempfile.TemporaryDirectory() as folder:
            label = name
            if name.startswith("qemu"):
                told = subprocess.run([name, "--version"], capture_output=True, text=True, check=True).stdout
                label = f"{name} {told.split()[2]}"
            reports[label] = run(command, Path(folder))
    Path("docs/conformance.md").write_text(page(reports))


if __name__ == "__main__":
    main()
