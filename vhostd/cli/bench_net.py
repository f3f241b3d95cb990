"""bench, for a network card."""

import argparse

from vhostd.cli.bench import settings_of, show, watcher
from vhostd.cli.flags import UsageError
from vhostd.driver.load import cards, document, plot, tables


def net(found: argparse.Namespace) -> int:
    """Measure the card behind SOCKET: `vhostd bench SOCKET --rw tx|rx|echo`."""
    job = job_of(found)
    settings = settings_of(found)
    one = cards.measure(found.socket, job, settings, watch=watcher())
    title = f"{job.name}, {one.backend}"
    lines = [title, "", *tables.net_report(one)]
    if found.histogram and one.result.latency.count:
        lines += ["", *tables.histogram_lines(one.result.latency)]
    show(found, lines, document.single(one, None))
    if found.plot is not None:
        plot.draw_single(found.plot, one, title)
    return 0


def job_of(found: argparse.Namespace) -> cards.NetJob:
    """Return the job that the words ask for. Raises UsageError for words that only a disk knows."""
    disks = {
        "--verify": found.verify, "--discard": found.discard, "--flush-every": found.flush_every,
        "--rate": found.rate, "--queues": found.queues > 1, "--segments": found.segments > 1,
        "--ring packed": found.ring == "packed",
    }  # fmt: skip
    if wrong := [flag for flag, given in disks.items() if given]:
        raise UsageError(f"{', '.join(wrong)}: not with --rw {found.rw}, which drives one queue pair of a card")
    what = f"{found.gso} B GSO" if found.gso else f"{found.frame} B"
    depth = found.depth or (1 if found.rw == "echo" else 12 if found.gso else 128)
    name = f"{found.rw} {what} {'poll' if found.poll else 'event'}"
    size = found.size or max(256, 1 << (depth - 1).bit_length())
    return cards.NetJob(
        name, found.rw, found.frame, found.gso, depth, found.poll, size,
        found.interface, found.netns,
    )  # fmt: skip
