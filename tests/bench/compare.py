"""vhostd beside qemu-storage-daemon: requests a second and CPU a request, interleaved.

Method. One image, in the page cache. The generator has core 0, the back-end core 1 (two queues: both have both). For
each job and each round every back-end is started, warmed up and measured, A B C A B C, so that the drift of the
machine falls on all alike; the table shows medians over the rounds, and ratios within the table only. CPU is what
the scheduler charged to all threads of the back-end while it was measured. Latency runs from hand-over to reap.
On a machine that does other work too, --realtime puts both before all of it.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.backends import start_qsd, start_vhostd
from vhostd.driver.arena import Arena
from vhostd.driver.load import Job, run_job
from vhostd.driver.session import open_session

MIB = 1 << 20
WARM_UP = 0.5  # seconds

JOBS = [
    Job("randread 4k QD1 event"),
    Job("randread 4k QD1 poll", poll=True),
    Job("randread 4k QD32 event", depth=32),
    Job("randread 4k QD32 poll", depth=32, poll=True),
    Job("randwrite 4k QD1 event", write_percent=100),
    Job("randwrite 4k QD32 event", depth=32, write_percent=100),
    Job("randrw 4k QD32 event", depth=32, write_percent=30),
    Job("seqread 128k QD8 event", 131072, 8, sequential=True),
    Job("seqwrite 128k QD8 event", 131072, 8, write_percent=100, sequential=True),
    Job("randread 4k QD32 event 2 queues", depth=32, queues=2),
    Job("randwrite 4k QD32 event folios", depth=32, write_percent=100),
]
QUICK = {
    "randread 4k QD1 event",
    "randread 4k QD32 event",
    "randread 4k QD32 poll",
    "randwrite 4k QD32 event",
    "seqread 128k QD8 event",
}


def backends(args):
    """Name and starter of each back-end."""
    table = {
        "vhostd": start_vhostd,
        "qsd threads": lambda *a, **k: start_qsd(*a, aio="threads", program=args.qsd, **k),
        "qsd io_uring": lambda *a, **k: start_qsd(*a, aio="io_uring", program=args.qsd, **k),
    }
    chosen = args.backend or list(table)
    return {name: table[name] for name in chosen}


def prepare(image, length, *, large_folios):
    """Write the image and leave it in the page cache, in folios of a page, or in large ones.

    ext4 caches what is written or read ahead in one go in large folios, and walks all their buffer heads on each
    small write: an image that was just installed is slow to write through read and write calls.
    """
    fd = os.open(image, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(fd).st_size != length:
            for offset in range(0, length, MIB):
                os.pwrite(fd, os.urandom(MIB), offset)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if large_folios:
            for offset in range(0, length, MIB):
                os.pwrite(fd, os.pread(fd, MIB, offset), offset)
            os.fsync(fd)
        else:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            for offset in range(0, length, 4096):
                os.pread(fd, 4096, offset)
    finally:
        os.close(fd)


def measure(start, job, image, seconds, args):
    """One back-end, one job, one round."""
    cpus = {0, 1} if job.queues > 1 else {1}
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        backend = start(image, Path(folder) / "s", queues=job.queues, cpus=cpus & os.sched_getaffinity(0) or None)
        try:
            memory = max(8 * MIB, 2 * job.queues * job.depth * (job.block_len + 4096) + 4 * MIB)
            with contextlib.ExitStack() as stack:
                arena = stack.enter_context(Arena.of(memory, populate=True))
                session = stack.enter_context(
                    open_session(
                        backend.socket, queues=job.queues, size=args.size, arena=arena, indirect=not args.direct_chains
                    )
                )
                here = os.sched_getaffinity(0)
                os.sched_setaffinity(0, here if job.queues > 1 else {0})
                try:
                    run_job(session, job, WARM_UP)
                    before = backend.cpu_ns()
                    result = run_job(session, job, seconds, seed=7)
                    cpu_ns = backend.cpu_ns() - before
                finally:
                    os.sched_setaffinity(0, here)
        finally:
            backend.stop()
    return {
        "iops": result.iops,
        "mb_s": result.bandwidth / 1e6,
        "cpu_us": cpu_ns / 1e3 / result.ios,
        "p50_us": result.percentile(50) / 1e3,
        "p99_us": result.percentile(99) / 1e3,
        "kicks": result.kicks / result.ios,
        "calls": result.calls / result.ios,
    }


def summary(rounds, *, best):
    """The median of each number, or the round that was disturbed least: the one with the most requests."""
    if best:
        return max(rounds, key=lambda one: one["iops"])
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def show(rows, names):
    """Print the table: a line for each job and back-end."""
    print(
        f"{'job':34} {'back-end':13} {'kIOPS':>8} {'MB/s':>7} {'CPU us':>7} {'p50 us':>7} {'p99 us':>8} "
        f"{'kicks':>6} {'calls':>6} {'ratio':>6} {'CPU':>5}"
    )
    for job, results in rows.items():
        rivals = [results[n] for n in names if n != "vhostd"]
        for name in names:
            one = results[name]
            ratio = cpu = ""
            if rivals and name == "vhostd":
                ratio = f"{one['iops'] / max(r['iops'] for r in rivals):.2f}x"
                cpu = f"{one['cpu_us'] / min(r['cpu_us'] for r in rivals):.2f}x"
            print(
                f"{job:34} {name:13} {one['iops'] / 1e3:8.1f} {one['mb_s']:7.0f} {one['cpu_us']:7.2f} "
                f"{one['p50_us']:7.1f} {one['p99_us']:8.1f} {one['kicks']:6.2f} {one['calls']:6.2f} {ratio:>6} {cpu:>5}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five jobs, a second each, one round")
    parser.add_argument("--job", action="append", help="only jobs whose name contains this; may be repeated")
    parser.add_argument("--backend", action="append", choices=["vhostd", "qsd threads", "qsd io_uring"])
    parser.add_argument("--seconds", type=float, help="of each measurement (2)")
    parser.add_argument("--rounds", type=int, help="of which the median is taken (3)")
    parser.add_argument("--best", action="store_true", help="the best round instead of the median: on a busy machine")
    parser.add_argument("--realtime", action="store_true", help="run both in SCHED_RR (needs CAP_SYS_NICE)")
    parser.add_argument("--size", type=int, default=256, help="entries of a ring")
    parser.add_argument("--image-mib", type=int, default=1024)
    parser.add_argument("--direct-chains", action="store_true", help="three descriptors a request, no indirect table")
    parser.add_argument("--dir", help="where the image is made (a file system on a disk)")
    parser.add_argument("--qsd", default="qemu-storage-daemon", help="the program")
    parser.add_argument("--json", help="also write all rounds to this file")
    args = parser.parse_args()
    seconds = args.seconds or (1 if args.quick else 2)
    rounds = args.rounds or (1 if args.quick else 3)
    jobs = [job for job in JOBS if not args.quick or job.name in QUICK]
    if args.job:
        jobs = [job for job in JOBS if any(word in job.name for word in args.job)]
    args.dir = args.dir or os.environ.get("VHOSTD_CACHE") or str(Path(__file__).resolve().parents[2] / ".cache")
    Path(args.dir).mkdir(parents=True, exist_ok=True)
    image = Path(args.dir) / "bench.raw"
    if args.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    starters = backends(args)
    every, rows = {}, {}
    state = None
    for job in jobs:
        every[job.name] = {name: [] for name in starters}
        for _ in range(rounds):
            for name, start in starters.items():
                large = "folios" in job.name
                # Writing shuffles nothing: small folios stay small, large ones large, until the cache is dropped.
                if state != large:
                    prepare(image, args.image_mib * MIB, large_folios=large)
                    state = large
                every[job.name][name].append(measure(start, job, image, seconds, args))
        rows[job.name] = {name: summary(found, best=args.best) for name, found in every[job.name].items()}
        print(f"... {job.name}", file=sys.stderr)
    show(rows, list(starters))
    if args.json:
        Path(args.json).write_text(json.dumps({"rounds": every, "medians": rows}, indent=1))
    image.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
