"""What a worker does when there is nothing to do: it sleeps."""

import asyncio
import time

import pytest

from tests.support.net import GUEST, HOST, frame, tcp_segment
from tests.unit.net.rig import FULL, MODERN
from vhostd.spec import virtio


def idle(card, seconds=0.2):
    """CPU time in ns and wake-ups of the workers in a while, settled first."""
    time.sleep(0.02)
    cpu, wakeups = card.worker_cpu_ns(), card.wakeups()
    time.sleep(seconds)
    return card.worker_cpu_ns() - cpu, card.wakeups() - wakeups


@pytest.mark.parametrize("posted", [0, 8])
async def test_an_idle_card_does_not_wake(open_card, posted):
    card = await open_card()
    (guest,) = await card.start(FULL)
    if posted:
        guest.post(posted, 2048)
    assert idle(card) == (0, 0)


@pytest.mark.parametrize("features", [MODERN, FULL & ~int(virtio.Feature.EVENT_IDX)], ids=["event", "flags"])
async def test_n30_frames_without_buffers_cost_nothing(open_card, wire, features):
    """N30: the tap is not watched, the kernel's queue fills, then drops; one kick, and what it held arrives."""
    card = await open_card()
    host = wire()
    (guest,) = await card.start(features)
    guest.post(2, 2048)
    for n in range(50):
        host.send(frame(bytes([n]), length=100))
    assert [guest.receive().frame[14] for _ in range(2)] == [0, 1]
    card.wait_for("rx_no_buffer", 1)
    idle(card, 0)
    cpu, wakeups = card.worker_cpu_ns(), card.wakeups()
    for _ in range(20000):
        host.send(frame(b"flood", length=100))
    assert card.wakeups() - wakeups <= 2
    assert card.worker_cpu_ns() - cpu < 2_000_000
    assert card.count("rx_no_buffer") <= 3
    guest.post(100, 2048)
    assert [guest.receive().frame[14] for _ in range(48)] == list(range(2, 50))
    assert guest.receive().frame == frame(b"flood", length=100)


async def test_the_driver_is_told_within_a_batch(open_card, wire):
    """2.7.14: a call for each 8 buffers that were used, so that the driver goes on while we do."""
    card = await open_card()
    host = wire()
    (guest,) = await card.start(FULL & ~int(virtio.Feature.EVENT_IDX), enable=False)
    guest.post(100, 2048)
    for n in range(64):
        host.send(frame(bytes([n]), length=100))
    guest.rx.arm()
    guest.rx.take_call()
    await card.enable(0, True)
    card.wait_for("rx_frames", 64)
    await asyncio.sleep(0.02)
    assert 8 <= guest.rx.take_call() <= 10
    assert [guest.receive().frame[14] for _ in range(64)] == list(range(64))


@pytest.mark.parametrize("features", [MODERN, FULL & ~int(virtio.Feature.EVENT_IDX)], ids=["event", "flags"])
async def test_buffers_one_by_one_lose_no_kick(open_card, wire, features):
    """2.7.10: each buffer is asked for before sleeping and looked for after asking."""
    card = await open_card()
    host = wire()
    (guest,) = await card.start(features, size=4)
    for n in range(300):
        host.send(frame(n.to_bytes(2), length=60))
    for n in range(300):
        guest.post(1, 2048)
        assert guest.receive().frame[14:16] == n.to_bytes(2)


async def test_a_frame_that_waits_for_buffers_does_not_spin(open_card, wire):
    """A 64 KiB frame and too few buffers: looked at now and then, then dropped; then the worker sleeps."""
    card = await open_card()
    host = wire(vnet=True)
    (guest,) = await card.start(FULL)
    guest.post(4, 2048)
    header, data = tcp_segment(60000)
    cpu, wakeups = card.worker_cpu_ns(), card.wakeups()
    host.send(header + data)
    card.wait_for("rx_dropped", 1)
    assert card.wakeups() - wakeups < 40
    assert card.worker_cpu_ns() - cpu < 5_000_000
    assert idle(card) == (0, 0)
    guest.post(60, 2048)
    host.send(header + data)
    assert guest.receive().frame == data


async def test_a_frame_set_aside_is_forgotten_with_its_session(open_card, wire):
    """Nothing of one guest's reaches the next."""
    card = await open_card()
    host = wire(vnet=True)
    (guest,) = await card.start(FULL)
    guest.post(4, 2048)
    header, data = tcp_segment(60000)
    host.send(header + data)
    card.wait_for("rx_delayed", 1)
    assert await card.stop() == [0, 0]
    (guest,) = await card.start(FULL)
    guest.post(60, 2048)
    host.send(bytes(10) + frame(length=60))
    assert guest.receive().frame == frame(length=60)


async def test_a_tap_that_goes_down_and_up(open_card, wire, netns):
    """Frames are dropped and counted while it is down; nobody spins; it works again after."""
    card = await open_card()
    host = wire()
    (guest,) = await card.start(FULL)
    guest.post(8, 2048)
    netns.ip("link", "set", "tap0", "down")
    guest.send(frame(to=HOST, source=GUEST, length=60))
    guest.drain()
    assert card.count("tx_dropped") == 1
    cpu, wakeups = idle(card)
    assert wakeups <= 1
    assert cpu < 1_000_000
    netns.ip("link", "set", "tap0", "up")
    host.close()
    host = wire()
    host.send(frame(length=60))
    assert guest.receive().frame == frame(length=60)
    guest.send(frame(to=HOST, source=GUEST, length=60))
    assert host.receive() == frame(to=HOST, source=GUEST, length=60)


async def test_a_tap_that_is_deleted(open_card, netns):
    """The operator removes it under us: errors are counted, nobody spins, rings stop as ever."""
    netns.ip("tuntap", "add", "tap7", "mode", "tap", "vnet_hdr")
    card = await open_card(tap="tap7", create=False)
    (guest,) = await card.start(FULL)
    guest.post(8, 2048)
    netns.ip("link", "del", "tap7")
    for _ in range(5):
        guest.send(frame(to=HOST, source=GUEST, length=60))
    guest.drain()
    assert card.count("tx_errors") + card.count("tx_dropped") == 5
    cpu, wakeups = idle(card)
    assert wakeups <= 1
    assert cpu < 1_000_000
    assert card.backend.describe()["mtu"] is None
    assert await card.stop() == [0, 5]


async def test_two_cards_on_one_worker_and_a_flood(open_card, wire, netns):
    """A ring that never runs dry gets its turn and no more."""
    card = await open_card(queues=2, workers=1)
    guests = await card.start(FULL, pairs=2)
    host = wire()
    for guest in guests:
        guest.post(128, 2048)
    for _ in range(20):
        for n in range(100):
            guests[0].send(frame(bytes([n]), to=HOST, source=GUEST, length=60))
        guests[1].send(frame(b"\xff", to=HOST, source=GUEST, length=60))
        seen = [host.receive()[14] for _ in range(101)]
        assert sorted(seen) == [*range(100), 255]
    for guest in guests:
        guest.drain()
