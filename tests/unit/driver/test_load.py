"""Results of a load: buckets and percentiles."""

from hypothesis import given
from hypothesis import strategies as st

from vhostd.driver.hotloop import bucket_bounds
from vhostd.driver.load import Job, Result


def result(latency):
    return Result(100, 409600, 2.0, 1, 1, 1, 1, tuple(latency))


def test_buckets_leave_no_gap_and_grow_by_an_eighth():
    """512 buckets: single ns up to 16, then eight steps an octave."""
    end = 0
    for index in range(490):
        low, high = bucket_bounds(index)
        assert low == end
        assert high > low
        assert index < 16 or (high - low) * 8 <= low
        end = high


@given(st.lists(st.integers(0, 400), min_size=1, max_size=50), st.floats(0.1, 100))
def test_a_percentile_is_the_bucket_that_holds_it(buckets, percent):
    latency = [0] * 512
    for bucket in buckets:
        latency[bucket] += 1
    got = result(latency).percentile(percent)
    at_most = sum(bucket_bounds(bucket)[1] <= got for bucket in buckets)
    assert at_most >= percent / 100 * len(buckets) - 1e-6
    assert got in {bucket_bounds(bucket)[1] for bucket in buckets}


def test_rates():
    assert (result([1]).iops, result([1]).bandwidth) == (50.0, 204800.0)
    assert Job("x").block_len == 4096
    assert result([0] * 512).percentile(50) == 0.0
