"""Writes docs/conformance.md: what each installed back-end does, by chapter, and how to see each failure again."""

import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from vhostd import __version__

PROGRAM = [sys.executable, "-m", "vhostd.cli.main"]
QSD = (
    "qemu-storage-daemon --blockdev driver=file,node-name=f,filename=disk.raw,discard=unmap "
    "--blockdev driver=raw,node-name=r,file=f,discard=unmap --export type=vhost-user-blk,id=e,node-name=r,"
    "addr.type=unix,addr.path={sock},writable=on,num-queues=4"
)
PEERS = {
    f"vhostd {__version__}, disk": " ".join(PROGRAM) + " blk disk.raw --socket-path {sock} --queues 4",
    f"vhostd {__version__}, card": " ".join(PROGRAM) + " net tap0 --create --socket-path {sock} --queues 2",
    "qemu-storage-daemon": QSD,
}
HEAD = """# What back-ends do

`vhostd check SOCKET` holds a vhost-user back-end to the vhost-user document and to virtio; with `--hostile`, to living
through what no front-end and no driver may send ([hostile.md](hostile.md)). This page is written by
`python -m tests.bench.conformance_page`; it was last written on {date}. It says what the back-ends that are installed
on that machine did, each in its default settings, a disk with four queues, a card with two pairs and a tap of its own.
"Not offered" is no fault: the back-end does not claim to do it. A SHOULD is advice. A failure is one reading of a
document by one tester: whoever maintains the back-end may know better, and the command shows what was sent, what was
expected and what was seen.

    vhostd check /tmp/peer.sock --start 'COMMAND' [--hostile] -k ID

Commands: {commands}.
"""
FAULTS = ("crash", "wedge", "fd leak", "CPU spin", "wrong answer", "silent ring error")


def run(command, folder, *words):
    """Check one back-end; return the report."""
    with (folder / "disk.raw").open("wb") as file:
        file.truncate(64 << 20)
    inside = []
    if " net " in command:
        inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
        words = (*words, "--interface", "tap0")
    subprocess.run(
        [*inside, *PROGRAM, "check", "peer.sock", "--start", command, "--format", "json", "-o", "report.json", *words],
        cwd=folder, timeout=600, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    return json.loads((folder / "report.json").read_text())


def by_chapter(reports):
    """Return the lines of a table: chapters down, back-ends across."""
    lines = ["Passed / failed / not offered.", "", f"| chapter | {' | '.join(reports)} |"]
    lines.append("|---" * (len(reports) + 1) + "|")
    for chapter in [*sorted({case["chapter"] for report in reports.values() for case in report["cases"]}), "all"]:
        row = []
        for report in reports.values():
            found = Counter(c["verdict"] for c in report["cases"] if chapter in {c["chapter"], "all"})
            failed = found["failed"] + found["broke off"]
            row.append(f"{found['passed']} / {failed} / {found['not offered']}" if found else "")
        lines.append(f"| {chapter.replace('_', ' ')} | {' | '.join(row)} |")
    return lines


def by_fault(reports):
    """Return the lines of a table: ways to fail down, back-ends across."""
    lines = [f"| hostile cases | {' | '.join(reports)} |", "|---" * (len(reports) + 1) + "|"]
    for fault in FAULTS:
        row = [sum(case.get("fault", "").lower() == fault.lower() for case in r["cases"]) for r in reports.values()]
        lines.append(f"| {fault} | {' | '.join(map(str, row))} |")
    return lines


def failures(report):
    """Return the lines of what failed, cases of one kind and with one result together."""
    groups = {}
    for case in report["cases"]:
        if case["verdict"] in {"failed", "broke off"}:
            what = case.get("fault", "") if case["id"].startswith("HOST-") else ""
            key = case["id"].split(".")[0], what, case.get("seen", case.get("reason", "")) if not what else ""
            groups.setdefault(key, []).append(case)
    if not groups:
        return ["Every case that it offers passes."]
    lines = ["| cases | level | rule | expected | seen |", "|---|---|---|---|---|"]
    for (family, fault, _), cases in groups.items():
        first = cases[0]
        ids = first["id"] if len(cases) == 1 else f"{len(cases)} of {family}, {first['id']} first"
        seen = first.get("seen", first.get("reason", ""))
        cells = (ids, first["level"], f"{first['rule']} ({first['section']})", first.get("expected", ""),
                 f"{fault}: {seen}" if fault else seen)  # fmt: skip
        lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
    return lines


def page(plain, hostile):
    """Return the page."""
    commands = "; ".join(f"{name}: `{command}`" for name, command in PEERS.items())
    commands = commands.replace(" ".join(PROGRAM), "vhostd")
    lines = [HEAD.format(date=dt.datetime.now(dt.UTC).date().isoformat(), commands=commands)]
    lines += [
        "## By chapter",
        "",
        *by_chapter(plain),
        "",
        "## Hostile",
        "",
        *by_chapter(hostile),
        "",
        *by_fault(hostile),
    ]
    for name in plain:
        lines += ["", f"## {name}", "", *failures(plain[name])]
        lines += ["", f"### {name}, hostile", "", *failures(hostile[name])]
    return "\n".join(lines) + "\n"


def _cell(text):
    text = text.replace("|", "\\|").replace("\n", " ")
    return text if len(text) <= 200 else text[:197] + "..."


def main():
    """Write the page."""
    plain, hostile = {}, {}
    for name, command in PEERS.items():
        label = name
        if name.startswith("qemu"):
            told = subprocess.run([name, "--version"], capture_output=True, text=True, check=True).stdout
            label = f"{name} {told.split()[2]}"
        for reports, words in ((plain, ()), (hostile, ("--hostile",))):
            with tempfile.TemporaryDirectory() as folder:
                reports[label] = run(command, Path(folder), *words)
    Path("docs/conformance.md").write_text(page(plain, hostile))


if __name__ == "__main__":
    main()
