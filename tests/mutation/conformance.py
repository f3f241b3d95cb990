"""A mutated copy held against `vhostd check`: its disk, and its card in a network namespace of its own."""

import json
import os
import shlex
import sys

CHECK_SECONDS = 120
IMAGE_LEN = 16 << 20
TAP = "tap0"


def conforms(shop, folder):
    """Return (whether disk and card conform, the ids of the first cases that do not)."""
    image = folder / "disk.raw"
    if not image.exists():
        image.write_bytes(os.urandom(1 << 20))
        os.truncate(image, IMAGE_LEN)
    python = shlex.join([sys.executable, "-m", "vhostd.cli.main"])
    disk = f"{python} blk {image} --socket-path {{sock}} --queues 4"
    card = f"{python} net {TAP} --create --socket-path {{sock}} --queues 2"
    inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    for kind, before, start, words in (
        ("disk", [], disk, []),
        ("card", inside, card, ["--interface", TAP]),
    ):
        report = folder / f"{kind}.json"
        report.unlink(missing_ok=True)
        done = shop.run(
            [*before, sys.executable, "-m", "vhostd.cli.main", "check", str(folder / f"{kind}.sock"),
             "--start", start, "--format", "json", "-o", str(report), *words],
            CHECK_SECONDS,
        )  # fmt: skip
        if done.returncode:
            return False, f"{kind}: {failed(report) or done.stdout[-300:]}"
    return True, ""


def failed(report):
    """The ids of the first cases of a report that did not pass."""
    try:
        found = json.loads(report.read_text())
    except (OSError, ValueError):
        return ""
    bad = [case["id"] for case in found["cases"] if case["verdict"] in {"failed", "broke off"}]
    return f"{', '.join(bad[:2])}{f' and {len(bad) - 2} more' if len(bad) > 2 else ''}"
