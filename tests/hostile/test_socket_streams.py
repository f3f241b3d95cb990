"""S166: random message streams, mutated from the orders in which front-ends really start a disk."""

import contextlib
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.streams import NUMBERS, Material, mutate, orders, play
from vhostd.driver.profiles import PROFILES
from vhostd.spec.vhost_user import FrontendRequest

NAMES = [name for name, profile in PROFILES.items() if "block" in profile.orders]


@pytest.fixture(scope="module")
def material():
    with contextlib.ExitStack() as stack:
        yield Material(stack)


@pytest.mark.parametrize("name", NAMES, ids="S131-{}".format)
def test_the_orders_of_front_ends(target, material, name):
    """S131: each order as it is."""
    play(target, material, orders(material.queues)[name])


@pytest.mark.parametrize("seed", range(6), ids="S166-seed-{}".format)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.writes  # a mutated header may well be a write
def test_mutated_orders(target, name, seed):
    """S166: 50 streams of a seed over one piece of memory, which earlier ones have left their marks in."""
    dice = random.Random(f"{name} {seed}")
    with contextlib.ExitStack() as stack:
        material = Material(stack)
        recorded = orders(material.queues)[name]
        for _ in range(50):
            play(target, material, mutate(recorded, dice, sorted(material.fds)), dice)


numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(0, 2**64 - 1))


@st.composite
def any_stream(draw):
    """Real messages in any order, any of them bent."""
    with contextlib.ExitStack() as stack:
        material = Material(stack)
        recorded = [message for name in NAMES for message in orders(material.queues)[name]]
        names = sorted(material.fds)
    stream = []
    patient = draw(st.booleans())  # what is refused is answered, and the stream goes on
    for message in draw(st.lists(st.sampled_from(recorded), min_size=1, max_size=40)):
        request, payload, fds, ack = message
        bent = draw(st.sampled_from(["no"] * 6 + ["number", "request", "fds", "cut", "bytes"]))
        if bent == "number" and len(payload) >= 8:
            at = 4 * draw(st.integers(0, len(payload) // 4 - 2))
            payload = payload[:at] + draw(numbers).to_bytes(8, "little") + payload[at + 8 :]
        elif bent == "request":
            request = draw(st.one_of(st.sampled_from(list(FrontendRequest)), st.integers(0, 2**32 - 1)))
        elif bent == "fds":
            fds = tuple(draw(st.lists(st.sampled_from(names), max_size=9)))
        elif bent == "cut":
            payload = payload[: draw(st.integers(0, len(payload)))]
        elif bent == "bytes":
            payload = draw(st.binary(max_size=300))
        stream.append((request, payload, fds, ack or patient))
    return stream


@pytest.mark.writes
def test_any_stream(target, material):
    """S166: what hypothesis thinks of; every 20th stream is followed by the whole verdict."""
    played = 0

    @settings(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(any_stream())
    def run(stream):
        nonlocal played
        play(target, material, stream)
        assert target.backend.alive
        played += 1
        if played % 20 == 0:
            target.check(f"stream {played}", writes=True)

    run()
