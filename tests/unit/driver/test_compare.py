"""How sure a comparison is, and what it does about a machine that is not quiet."""

import dataclasses
import random
import statistics
from types import SimpleNamespace

import pytest

from vhostd.driver.load.compare import TRIES, Care, Ratio, calm, interval


def stolen(*shares):
    """A measurement that the host disturbs so much, one after another, and how many were made."""
    made = []

    def once():
        made.append(SimpleNamespace(steal=shares[min(len(made), len(shares) - 1)]))
        return made[-1]

    return once, made


def test_a_quiet_round_counts_at_once():
    once, made = stolen(0.01)
    assert calm(once, 0.02) is made[0]
    assert len(made) == 1


def test_a_disturbed_round_is_done_again():
    once, made = stolen(0.4, 0.3, 0.02, 0.5)
    assert calm(once, 0.02) is made[2]
    assert len(made) == 3


def test_the_least_disturbed_counts_where_none_is_quiet():
    once, made = stolen(0.4, 0.1, 0.3)
    assert calm(once, 0.02) is made[1]
    assert len(made) == TRIES


def test_nobody_looked():
    """A host that cannot be seen disturbs nothing."""
    once, made = stolen(None)
    assert calm(once, 0.02) is made[0]


def test_a_contender_without_such_a_disk():
    assert calm(lambda: None, 0.02) is None


def test_five_values_tell_nothing():
    """All five lie on one side of the median in one case of sixteen."""
    assert interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None


@pytest.mark.parametrize(("count", "low", "high"), [(6, 1, 6), (8, 1, 8), (9, 2, 8), (12, 3, 10), (15, 4, 12)])
def test_the_interval_of_the_sign_test(count, low, high):
    """Tables of the sign test at 5 %, two-sided."""
    values = [float(n) for n in range(1, count + 1)]
    random.Random(1).shuffle(values)
    assert interval(values) == (low, high)


def test_the_median_lies_there_nineteen_times_of_twenty():
    """Of values that are as skewed as latencies are."""
    source = random.Random(5)
    median = statistics.NormalDist(0, 0.2).inv_cdf(0.5)
    inside = 0
    for _ in range(1000):
        found = interval([source.lognormvariate(0, 0.2) for _ in range(12)])
        inside += found[0] <= 2.718281828**median <= found[1]
    assert inside >= 930


SURE = Ratio(2.0, 1.9, 2.1, "b", 0.04)


@pytest.mark.parametrize(
    ("number", "ratio", "enough"),
    [
        (2, SURE, False),
        (3, dataclasses.replace(SURE, doubt=None), False),
        (3, SURE, True),
        (6, dataclasses.replace(SURE, doubt=0.2), False),
        (15, dataclasses.replace(SURE, doubt=0.2), True),
        (3, None, True),
    ],
)
def test_rounds_go_on_until_the_ratio_is_known(number, ratio, enough):
    assert Care(rounds=3, precision=0.05).suffices(number, ratio) is enough


def test_a_quick_look_stays_one():
    """Fewer than three rounds, or no precision asked for."""
    doubtful = dataclasses.replace(SURE, doubt=0.5)
    assert Care(rounds=1, precision=0.05).suffices(1, doubtful)
    assert Care(rounds=3).suffices(3, doubtful)
