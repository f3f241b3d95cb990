"""Histograms, schedules and results of a load, without a back-end."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostd.driver.arena import Arena
from vhostd.driver.buckets import BUCKET_COUNT, bucket_bounds, bucket_index
from vhostd.driver.gauge import Gauge
from vhostd.driver.hotloop import block_load
from vhostd.driver.load import Job, Result
from vhostd.driver.load.histogram import PERCENTILES, Histogram
from vhostd.driver.load.nulldisk import NullDisk
from vhostd.driver.load.runner import differences
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import LocalProtocolError

NONE = Histogram.empty()
LATENCIES = st.lists(st.integers(0, 10**11), min_size=1, max_size=200)


def result(latency):
    return Result(100, 409600, 2.0, 1, 1, 1, 1, latency, NONE, NONE)


def test_buckets_leave_no_gap_and_grow_by_a_thirty_second():
    """A value a bucket below 64 ns, then 32 buckets an octave."""
    end = 0
    for index in range(BUCKET_COUNT):
        low, high = bucket_bounds(index)
        assert low == end
        assert bucket_index(low) == bucket_index(high - 1) == index
        assert index < 64 or (high - low) * 32 <= low
        end = high
    assert end > 3600 * 10**9
    assert bucket_index(2**63) == BUCKET_COUNT - 1
    with pytest.raises(IndexError):
        bucket_bounds(BUCKET_COUNT)


@given(LATENCIES, st.sampled_from([0.1, 25.0, 50.0, 90.0, 99.0, 99.9, 100.0]))
def test_a_percentile_is_within_its_bound_of_the_exact_one(values, percent):
    """1.6 %: half a bucket of 1/32."""
    ordered = sorted(values)
    rank = next(i for i in range(1, len(ordered) + 1) if i >= percent / 100 * len(ordered))
    exact = ordered[rank - 1]
    got = Histogram.of(values).percentile(percent)
    assert abs(got - exact) <= exact / 64 + 0.5


@given(LATENCIES)
def test_mean_and_ends_are_exact(values):
    histogram = Histogram.of(values)
    assert (histogram.min_ns, histogram.max_ns, histogram.count) == (min(values), max(values), len(values))
    assert histogram.total_ns == sum(values)
    assert histogram.percentile(100) <= max(values)


@given(LATENCIES, LATENCIES)
def test_a_sum_is_the_histogram_of_all(ones, others):
    """Queues and rounds are added up; an empty one changes nothing."""
    assert Histogram.sum([Histogram.of(ones), NONE, Histogram.of(others)]) == Histogram.of(ones + others)


def test_an_empty_histogram_has_no_latency():
    assert (NONE.count, NONE.mean_ns, NONE.percentile(99), list(NONE.filled_buckets())) == (0, 0.0, 0.0, [])
    assert Histogram.sum([]) == NONE
    assert [Histogram.of([70]).percentile(p) for p in PERCENTILES] == [70.0] * len(PERCENTILES)


def test_rates():
    assert (result(Histogram.of([1])).iops, result(NONE).bandwidth) == (50.0, 204800.0)
    assert Job("x").block_len == 4096
    assert Result.nothing(1.0).iops == 0


def test_samples_are_what_came_in_each_interval():
    """Of all queues together, for as long as each of them has one."""
    assert differences([[5, 9, 20], [1, 1, 2, 7]]) == (6, 4, 12)
    assert differences([[], [3]]) == ()


@pytest.fixture
def ring():
    """A ring in guest memory that is not served yet."""
    with Arena.of(8 << 20) as arena, Virtqueue(arena, 256, event_idx=True, indirect=True) as queue:
        yield queue


def load(ring, **options):
    return block_load(
        ring, **{"depth": 8, "block_len": 4096, "disk_len": 1 << 30, "duration_ns": 50_000_000, **options}
    )


@pytest.mark.parametrize("poll", [False, True], ids=["event", "poll"])
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_the_null_disk_returns_every_request(poll, event_idx, indirect):
    """What calibrates the generator is a device: each chain comes back once, OK, with its length (2.7.8.2)."""
    with Arena.of(8 << 20) as arena, Virtqueue(arena, 256, event_idx=event_idx, indirect=indirect) as queue:
        with NullDisk(queue) as disk:
            done = load(queue, poll=poll, write_percent=50, segments=4, flush_every=3)
        assert (done.errors, done.short) == (0, 0)
        assert disk.served == done.ios + done.flushes > 0
        assert done.flushes > 0
        assert sum(sum(counts) for counts, *_ in done.latency) == done.ios + done.flushes


@pytest.mark.parametrize("poll", [False, True], ids=["event", "poll"])
def test_an_open_loop_sends_what_was_due_and_no_more(ring, poll):
    """A time-table, not a speed: what comes back faster than it is due changes nothing."""
    with NullDisk(ring):
        done = load(ring, rate=2000, poll=poll, depth=64, duration_ns=200_000_000)
    due = done.elapsed_ns * 2000 // 10**9
    assert due - 1 <= done.ios + done.unsent <= due + 1
    assert done.ios >= 300


def test_queues_take_turns_on_one_time_table(ring):
    """A rate is the device's: each of four queues sends every fourth request."""
    with NullDisk(ring):
        done = load(ring, rate=4000, share=4, turn=3, duration_ns=200_000_000)
    assert abs(done.ios + done.unsent - done.elapsed_ns * 1000 // 10**9) <= 1


def test_latency_has_no_coordinated_omission(ring):
    """A device that stalls makes every request late that was due meanwhile, also with one in flight at a time."""
    disk = NullDisk(ring)
    stalled = threading.Timer(0.1, disk.__enter__)
    stalled.start()
    try:
        done = load(ring, rate=1000, depth=1, duration_ns=300_000_000)
    finally:
        stalled.join()
        disk.__exit__(None, None, None)
    late = sum(count for low, _, count in Histogram(*done.latency[0]).filled_buckets() if low >= 10_000_000)
    assert late >= 80


def test_a_gauge_shows_the_course_and_ends_it(ring):
    gauge = Gauge(100, 10_000_000)
    with NullDisk(ring):
        runner = threading.Thread(target=load, args=(ring,), kwargs={"duration_ns": 60 * 10**9, "gauge": gauge})
        runner.start()
        deadline = time.monotonic() + 10
        while len(gauge.samples) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        gauge.stop()
        runner.join(10)
        assert not runner.is_alive()
    samples = gauge.samples
    assert len(samples) >= 3
    assert samples == sorted(samples)
    assert samples[-1] > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 0},
        {"depth": 257},
        {"block_len": 100},
        {"disk_len": 512},
        {"write_percent": 101},
        {"segments": 9},
        {"segments": 2, "discard_percent": 1},
        {"range_first": 1 << 18, "range_blocks": 1},
        {"range_blocks": 0},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(ring, wrong):
    """And nothing is left in the arena."""
    before = ring.arena.allocated
    with pytest.raises(LocalProtocolError):
        load(ring, **wrong)
    assert ring.arena.allocated == before
