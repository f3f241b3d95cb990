"""vhostd's card: frames a second and CPU a frame, each way, and the time of an echo.

Method. The tap is in a namespace of its own. Guest and host are one thread on core 0, the back-end has core 1. Frames
to the host have a type that nobody wants: the kernel takes each through its receive path and drops it; what the tap
counted is what is shown. Frames to the guest come from a packet socket that passes the queueing discipline by. CPU is
what the scheduler charged to all threads of the back-end. An echo is answered by the guest at once. Needs root.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.backends import start_card
from tests.support.net import GUEST, HOST, Netns, Wire, frame, tcp_segment
from vhostd.driver.arena import Arena
from vhostd.driver.netloop import echo_load, rx_load, tx_load
from vhostd.driver.session import open_session

PACKET_QDISC_BYPASS = 20
WARM_UP_NS = 200_000_000
SIZES = {"64 B": 64, "1514 B": 1514, "64 KiB GSO": 65400}


def tap_counter(netns, name):
    """A counter of the tap, as the kernel has it."""
    (link,) = json.loads(netns.ip("-j", "-s", "link", "show", "tap0"))
    return link["stats64"]["rx"][name]


def content(size, to, source):
    """The kernel's header and the frame of a job."""
    if size > 1514:
        return tcp_segment(size, to=to, source=source)
    return bytes(10), frame(to=to, source=source, length=size)


def send_job(running, session, size, *, poll, seconds):
    netns, backend = running
    header, data = content(size, HOST, GUEST)
    queue = session.queues[1]
    options = {"frame": data, "header": header.ljust(12, b"\0"), "depth": 128 if size <= 1514 else 32, "poll": poll}
    tx_load(queue, **options, duration_ns=WARM_UP_NS)
    arrived, cpu = tap_counter(netns, "packets"), backend.cpu_ns()
    done = tx_load(queue, **options, duration_ns=int(seconds * 1e9))
    arrived = tap_counter(netns, "packets") - arrived
    return result(arrived, arrived * len(data), done, backend.cpu_ns() - cpu)


def receive_job(running, session, size, *, poll, seconds):
    netns, backend = running
    header, data = content(size, GUEST, HOST)
    wire = Wire(netns, "tap0", vnet=True)
    wire.socket.setsockopt(263, PACKET_QDISC_BYPASS, 1)
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    wire.socket.settimeout(None)
    try:
        cpu = backend.cpu_ns()
        done = rx_load(
            session.queues[0],
            wire_fd=wire.socket.fileno(),
            frame=header + data,
            header_len=12,
            depth=256,
            buffer_len=1536 if size <= 1514 else 4096,
            window=192 if size <= 1514 else 12,
            poll=poll,
            duration_ns=int(seconds * 1e9),
        )
        return result(done.frames, done.bytes, done, backend.cpu_ns() - cpu)
    finally:
        wire.close()


def result(frames, length, done, cpu_ns):
    return {
        "kpps": frames / done.elapsed_ns * 1e6,
        "gbit_s": 8 * length / done.elapsed_ns,
        "cpu_us": cpu_ns / 1e3 / max(frames, 1),
        "kicks": done.kicks / max(frames, 1),
        "calls": done.calls / max(frames, 1),
    }


def echo_job(running, session, *, poll, count):
    netns, backend = running
    wire = Wire(netns, "tap0")
    wire.socket.settimeout(None)
    try:
        cpu = backend.cpu_ns()
        times = echo_load(
            *session.queues[:2],
            wire_fd=wire.socket.fileno(),
            frame=frame(length=64),
            reply=frame(to=HOST, source=GUEST, length=64),
            header=bytes(12),
            poll=poll,
            count=count,
        )
        cpu = backend.cpu_ns() - cpu
    finally:
        wire.close()
    return {"p50_us": times[count // 2] / 1e3, "p99_us": times[count * 99 // 100] / 1e3, "cpu_us": cpu / 1e3 / count}


def measure(job, args):
    """Start a back-end, run one job, stop it."""
    netns = Netns()
    path = f"/proc/{os.getpid()}/fd/{netns.fd}"
    with tempfile.TemporaryDirectory() as folder, Arena.of(64 << 20, populate=True) as arena:
        options = ["--poll-us", str(args.poll_us), *args.option]
        backend = start_card(
            Path(folder) / "s", netns=path, cpus={1} & os.sched_getaffinity(0) or None, options=options
        )
        here = os.sched_getaffinity(0)
        try:
            with open_session(backend.socket, queues=2, size=256, arena=arena) as session:
                os.sched_setaffinity(0, {0} & here or here)
                return job((netns, backend), session)
        finally:
            os.sched_setaffinity(0, here)
            backend.stop()
            netns.close()


def jobs(args):
    """Name and function of each."""
    table = {}
    for mode, poll in (("poll", True), ("event", False)):
        for name, size in SIZES.items():
            for way, function in (("tx", send_job), ("rx", receive_job)):
                table[f"{way} {name} {mode}"] = lambda r, s, f=function, z=size, p=poll: f(
                    r, s, z, poll=p, seconds=args.seconds
                )
        table[f"echo 64 B {mode}"] = lambda r, s, p=poll: echo_job(r, s, poll=p, count=int(20000 * args.seconds))
    return {name: job for name, job in table.items() if not args.job or any(word in name for word in args.job)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", action="append", help="only jobs whose name contains this; may be repeated")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement (1)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is taken (3)")
    parser.add_argument("--poll-us", type=int, default=50, help="of the back-end's workers (50)")
    parser.add_argument("--option", action="append", default=[], help="a further word of the back-end's command line")
    args = parser.parse_args()
    for name, job in jobs(args).items():
        rounds = [measure(job, args) for _ in range(args.rounds)]
        median = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        print(f"{name:22}", "  ".join(f"{key} {value:9.2f}" for key, value in median.items()), flush=True)


if __name__ == "__main__":
    main()
