"""The words of `vhostd bench`: flags, and the job they make."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from vhostd.cli.flags import Parser, UsageError
from vhostd.driver.load import contender, suite
from vhostd.driver.load.job import RW, Job, job_name

NET_RW = ("tx", "rx", "echo")
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_EPILOG = """\
examples:
  vhostd bench disk.sock --rw randread --bs 4k --depth 32 --seconds 5
  vhostd bench disk.sock --rw randrw --rate 20k --depth 64 --plot latency.svg
  vhostd bench disk.sock --rw randrw --verify --queues 2 --depth 16
  vhostd bench net.sock --rw echo --interface tap0 --poll
  vhostd bench --preset vhostd --preset qsd --suite goals --plot goals.png
  vhostd bench --compare a='prog-a {img} {sock}' --compare b='prog-b {img} {sock}' --rw randwrite --depth 32

What writes (--rw write, randwrite, randrw, --discard) overwrites the disk, as it does with fio. docs/bench.md says
what each number means and how it is measured.
"""


def parser() -> Parser:
    """Return the parser of `vhostd bench`."""
    made = Parser(
        prog="vhostd bench",
        description="Drive any vhost-user back-end, a disk or a network card, with load.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("socket", metavar="SOCKET", nargs="?", type=Path, help="where the back-end listens")
    _add_load(made)
    _add_net(made)
    group = made.add_argument_group("measuring")
    add = group.add_argument
    add("--seconds", type=_seconds, default=None, metavar="S", help="how long is measured [2]")
    add("--warm-up", type=_seconds, default=0.5, metavar="S", help="how long before that [0.5]")
    add("--cpus", type=_cpus, default=None, metavar="N,N", help="cores of the generator [any; the first, to compare]")
    add("--realtime", action="store_true", help="run in SCHED_RR, back-ends that are started here too (CAP_SYS_NICE)")
    add(
        "--awake",
        action="store_true",
        help="let no processor sleep meanwhile: waking one costs the same each time (root)",
    )
    add(
        "--syscalls",
        choices=["auto", "perf", "strace", "off"],
        default="auto",
        help="count the back-end's system calls in a short pass of its own, by [perf] where permitted",
    )
    group = made.add_argument_group("output")
    add = group.add_argument
    add("--json", metavar="FILE", help="write everything there; - is stdout, and the table then goes to stderr")
    add("--plot", metavar="FILE", type=Path, help="draw latencies and course, or ratios: .svg, .png or .pdf")
    add("--histogram", action="store_true", help="also show the latency distribution as bars")
    add("--no-calibration", action="store_true", help="do not measure how fast the generator itself is")
    _add_compare(made)
    return made


def _add_load(made: Parser) -> None:
    group = made.add_argument_group("load")
    add = group.add_argument
    add("--rw", choices=[*RW, *NET_RW], help="what is done: a disk's [randread], or a card's")
    add("--bs", type=_length, default=4096, metavar="LEN", help="bytes of a request: 512, 4k, 1m [4k]")
    add("--depth", type=_positive, default=None, metavar="N", help="requests (or frames) in flight on each queue [1]")
    add("--queues", type=_positive, default=1, metavar="N", help="queues, a thread each [1]")
    add("--write-percent", type=_percent, default=50, metavar="N", help="writes among the requests of randrw [50]")
    way = group.add_mutually_exclusive_group()
    way.add_argument(
        "--event", dest="poll", action="store_false", default=False, help="sleep until the back-end calls [default]"
    )
    way.add_argument("--poll", action="store_true", help="spin on the ring")
    add("--rate", type=_rate, default=0, metavar="N", help="open loop: N requests a second are due, 20k is 20000")
    add(
        "--discard",
        type=_percent,
        nargs="?",
        const=100,
        default=0,
        metavar="N",
        help="N %% of the requests discard [100]",
    )
    add("--flush-every", type=_positive, default=0, metavar="N", help="flush after N writes")
    add("--verify", action="store_true", help="stamp what is written and check what is read")
    add("--segments", type=_positive, default=1, metavar="N", help="descriptors that carry a request's data [1]")
    add("--size", type=_positive, default=None, metavar="N", help="entries of a ring [256]")
    add("--ring", choices=["split", "packed"], default="split", help="which ring [split]")
    add("--no-event-idx", dest="event_idx", action="store_false", help="notifications by flags, not by EVENT_IDX")
    add("--no-indirect", dest="indirect", action="store_false", help="chains in the ring, not in tables of their own")
    add("--batch", type=_positive, default=0, metavar="N", help="requests handed out at once, at most [all]")
    add("--seed", type=int, default=7, metavar="N", help="of the offsets [7]")


def _add_net(made: Parser) -> None:
    group = made.add_argument_group("network cards")
    add = group.add_argument
    add("--interface", metavar="NAME", help="the card's tap, for rx and echo; for tx it counts what arrives")
    add("--netns", metavar="PATH", help="the namespace that the tap is in")
    add("--frame", type=_length, default=64, metavar="LEN", help="bytes of a frame, 60 to 1514 [64]")
    add("--gso", type=_length, default=0, metavar="LEN", help="TCP segments of LEN bytes instead, cut up by the host")


def _add_compare(made: Parser) -> None:
    group = made.add_argument_group("comparing back-ends that are started here")
    add = group.add_argument
    add(
        "--compare",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="a back-end whose words have {sock} {img} {queues} {size}; may be repeated, ratios are of the first",
    )
    add(
        "--preset",
        action="append",
        default=[],
        choices=contender.PRESETS,
        help="vhostd, or qemu-storage-daemon at its best",
    )
    add("--suite", choices=sorted(suite.SUITES), help="jobs by name; goals is the table of what vhostd must reach")
    add("--job", action="append", default=[], metavar="WORD", help="jobs whose name contains this; may be repeated")
    add("--rounds", type=_positive, default=3, metavar="N", help="in turn, whose median is taken, at least [3]")
    add("--precision", type=_percent, default=5, metavar="PERCENT",
        help="with 3 rounds or more: up to 5 times as many, until the ratio is known so well [5]")  # fmt: skip
    add("--max-steal", type=_percent, default=2, metavar="PERCENT",
        help="a round during which the host took more of the machine is done again, 4 times in all [2]")  # fmt: skip
    add("--cache", choices=["hot", "cold"], default="hot", help="the image in the page cache before each round [hot]")
    add("--folios", choices=["small", "large"], default="small", help="how it lies there [small]")
    add("--image", type=Path, metavar="FILE", help="the image; what writes overwrites it [made, and removed]")
    add("--image-size", type=_length, default=1024**3, metavar="LEN", help="of the image that is made [1g]")
    add("--dir", type=Path, metavar="DIR", help="where image and sockets are made, on a disk [.]")
    add("--qsd", default="qemu-storage-daemon", metavar="PROGRAM", help="which qemu-storage-daemon")
    add("--calibrate", action="store_true", help="only measure how fast the generator itself is")


def job_of(found: argparse.Namespace) -> Job:
    """Return the job that the words ask for. Raises UsageError for words that do not go together."""
    rw = found.rw or "randread"
    percent, sequential = RW[rw]
    write_percent = found.write_percent if percent is None else percent
    if found.discard and not write_percent:
        raise UsageError("--discard destroys data: say --rw write or randwrite (or randrw) with it")
    if found.discard and found.segments > 1:
        raise UsageError("--discard and --segments do not go together: a discard's data is 16 bytes")
    if found.bs % 512 or not found.bs:
        raise UsageError(f"--bs {found.bs}: a whole number of sectors of 512 bytes")
    if found.segments > found.bs // 512:
        raise UsageError(f"--segments {found.segments}: more than the {found.bs // 512} sectors of a request")
    depth = found.depth or 1
    needed = depth * (1 if found.indirect else found.segments + 2) + 2 * bool(found.flush_every)
    size = found.size or max(256, 1 << (needed - 1).bit_length())
    if needed > size or size > 32768:
        raise UsageError(f"--depth {depth}: needs {needed} descriptors of a ring of {size}; give --size, up to 32768")
    if found.ring == "split" and size & (size - 1):
        raise UsageError(f"--size {size}: a split ring has a power of two of entries (2.7)")
    more = "".join(
        [
            f" discard {found.discard} %" if found.discard else "",
            f" at {found.rate}/s" if found.rate else "",
            " verify" if found.verify else "",
        ]
    )
    name = job_name(rw, found.bs, depth, poll=found.poll, queues=found.queues) + more
    return Job(
        name,
        found.bs,
        depth,
        write_percent,
        sequential,
        found.poll,
        found.queues,
        discard_percent=found.discard,
        flush_every=found.flush_every,
        segments=found.segments,
        rate=found.rate,
        verify=found.verify,
        batch=found.batch,
        ring_size=size,
        ring=found.ring,
        event_idx=found.event_idx,
        indirect=found.indirect,
        cache=found.cache,
        folios=found.folios,
    )


def rows_of(found: argparse.Namespace) -> list[suite.Row]:
    """Return the rows of a comparison: named jobs, or the one that the words ask for."""
    if not found.suite and not found.job:
        return [suite.Row(job_of(found))]
    rows = suite.rows(found.suite, found.job)
    changes: dict[str, Any] = {"event_idx": found.event_idx, "indirect": found.indirect, "ring": found.ring}
    if found.size:
        changes["ring_size"] = found.size
    return [dataclasses.replace(row, job=dataclasses.replace(row.job, **changes)) for row in rows]


def contenders_of(found: argparse.Namespace) -> list[contender.Contender]:
    """Return who is compared, presets first."""
    made = [each for name in found.preset for each in contender.preset(name, found.qsd)]
    return made + [contender.from_words(words) for words in found.compare]


def _length(text: str) -> int:
    number, unit = _split(text)
    if unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no length: 512, 4k, 1m, 1g")
    return number * _UNITS[unit]


def _rate(text: str) -> int:
    number, unit = _split(text)
    if unit not in ("", "k", "m") or number == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate: 500, 20k, 1m")
    return number * {"": 1, "k": 1000, "m": 1_000_000}[unit]


def _split(text: str) -> tuple[int, str]:
    digits = text.rstrip("kKmMgGtT")
    if not digits.isdecimal() or len(text) - len(digits) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, with k, m or g behind it")
    return int(digits), text[len(digits) :].lower()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _percent(text: str) -> int:
    if not text.isdecimal() or int(text) > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage, 0 to 100")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _cpus(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of cores: 0 or 0,1")
    return tuple(map(int, words))
