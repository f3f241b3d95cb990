"""`vhostd bench` against real back-ends: each --rw, what it prints, and what it refuses. No time is asserted."""

import json
import os
import shlex
import sys
import threading

import pytest

from tests.support.backends import start_card
from tests.support.net import Netns
from vhostd.cli.bench_words import job_of, parser
from vhostd.cli.flags import UsageError
from vhostd.cli.main import main
from vhostd.driver.load import Job, run_job
from vhostd.driver.load.runner import ledgers, sweep
from vhostd.driver.load.verify import VerifyError

QUICK = ["--seconds", "0.2", "--warm-up", "0.05"]
LATENCY = {"count", "min_ns", "mean_ns", "max_ns", "percentiles_ns", "buckets"}


def bench(capfd, *words):
    capfd.readouterr()
    code = main(["bench", *map(str, words)])
    out, err = capfd.readouterr()
    return code, out, err


@pytest.mark.parametrize("rw", ["read", "write", "randread", "randwrite", "randrw"])
def test_each_kind_of_load_on_a_real_back_end(start, capfd, rw):
    code, out, err = bench(capfd, start().socket, "--rw", rw, "--depth", "8", *QUICK, "--no-calibration", "--json", "-")
    assert code == 0, err
    found = json.loads(out)
    assert found["version"] == 1
    assert found["job"]["depth"] == 8
    assert found["result"]["requests"] > 0
    assert set(found["result"]["latency"]) == LATENCY
    assert sum(n for _, _, n in found["result"]["latency"]["buckets"]) == found["result"]["requests"]
    assert (found["result"]["reads"]["count"] > 0) == (rw not in ("write", "randwrite"))
    assert found["backend"]["cpu_ns_per_request"] > 0
    assert ("overwrites the disk" in err) == (rw not in ("read", "randread"))


def test_everything_at_once_is_verified(start, capfd, tmp_path):
    picture = tmp_path / "p.png"
    code, out, err = bench(
        capfd, start(queues=2).socket, "--rw", "randrw", "--verify", "--queues", "2", "--depth", "4", "--flush-every",
        "50", "--rate", "2k", "--histogram", "--plot", picture, *QUICK,
    )  # fmt: skip
    assert code == 0, err
    assert "asked for 2,000 a second" in out
    assert "all right" in out
    assert "p99.99" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_only_the_calling_thread_talks_to_the_back_end(start, monkeypatch):
    """Replies have no number: two threads that ask at once would take each other's."""
    caller = threading.get_ident()
    disk = start(queues=4)
    job = Job("verified", depth=4, queues=4, write_percent=100, verify=True)
    with disk.session(queues=4) as session:
        books = ledgers(session, job)
        send = session.frontend.send_bytes

        def watched(*args):
            assert threading.get_ident() == caller
            send(*args)

        monkeypatch.setattr(session.frontend, "send_bytes", watched)
        run_job(session, job, 0.1, books=books)
        assert sweep(session, job, books) == sum(book.written for book in books)


def test_a_byte_that_changes_underneath_is_found_and_named(start):
    """Whatever a back-end caches, what it returns is compared with what was written."""
    disk = start()
    job = Job("verified", depth=4, write_percent=100, verify=True)
    with disk.session() as session:
        books = ledgers(session, job)
        run_job(session, job, 0.2, books=books)
        assert sweep(session, job, books) == books[0].written
        block = next(block for block in range(4096) if books[0].generation(block))
        place = block * 4096 + 2 * 512 + 100
        was = disk.on_disk(place, 1)[0]
        with disk.image.open("r+b") as file:
            os.pwrite(file.fileno(), bytes([was ^ 0x40]), place)
        with pytest.raises(VerifyError) as caught:
            sweep(session, job, books)
    found = caught.value.corruption
    assert (found.sector, found.offset, found.expected, found.seen) == (block * 8 + 2, 100, was, was ^ 0x40)


def test_two_contenders_in_one_round(tmp_path, capfd):
    command = f"{shlex.quote(sys.executable)} -m vhostd.cli.main blk {{img}} --socket-path {{sock}} --queues {{queues}}"
    code, out, err = bench(
        capfd, "--compare", f"ours={command}", "--compare", f"again={command}", "--rounds", "1", "--image-size", "4m",
        "--dir", tmp_path, "--json", tmp_path / "j", "--plot", tmp_path / "p.svg", "--depth", "4", *QUICK,
    )  # fmt: skip
    assert code == 0, err
    (row,) = json.loads((tmp_path / "j").read_text())["rows"]
    assert set(row["rounds"]) == {"ours", "again"}
    assert row["ratio"]["rival"] == "again"
    assert row["ratio"]["low"] == row["ratio"]["value"] == row["ratio"]["high"]
    assert "calibration" in out
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")
    assert not list(tmp_path.glob("*.raw"))


def test_a_contender_that_cannot_start_is_named(tmp_path, capfd):
    words = ["--rounds", "1", "--image-size", "1m", "--dir", tmp_path, "--no-calibration"]
    code, _, err = bench(capfd, "--compare", "broken=sh -c 'echo no such disk; exit 3' {sock}", *words, *QUICK)
    assert code == 1
    assert "broken ended with 3 before it was ready:\nno such disk" in err


@pytest.mark.root
def test_a_card(tmp_path, capfd):
    netns = Netns()
    path = f"/proc/{os.getpid()}/fd/{netns.fd}"
    card = start_card(tmp_path / "s", netns=path)
    words = ["--interface", "tap0", "--netns", path, *QUICK, "--json", "-"]
    try:
        for rw in ("tx", "rx", "echo"):
            code, out, err = bench(capfd, tmp_path / "s", "--rw", rw, *words)
            assert code == 0, err
            assert json.loads(out)["result"]["requests"] > 0
    finally:
        card.stop()
        netns.close()


@pytest.mark.parametrize(
    "words",
    [
        "--discard",
        "--bs 1000",
        "--segments 9",
        "--depth 300 --size 256",
        "--size 100",
        "--rw randwrite --discard --segments 2",
    ],
)
def test_words_that_do_not_go_together_are_refused(words):
    with pytest.raises(UsageError):
        job_of(parser().parse_args(["s", *words.split()]))


def test_packed_rings_are_driven_or_said_to_be_missing(start, capfd):
    code, out, err = bench(capfd, start().socket, "--ring", "packed", *QUICK, "--no-calibration")
    if code == 0:
        assert "requests in" in out
    else:
        assert "does not offer RING_PACKED" in err
