"""A device's life: attached or not at all, reset, timed out, closed in any state."""

import concurrent.futures
import gc
import itertools
import os
import struct
import threading
from pathlib import Path

import pytest

from tests.support.puppet import SILENT, R, u64
from vhostd.driver.framework import device as devices
from vhostd.driver.framework.device import Device, Notify, plausible
from vhostd.errors import DeviceError, DeviceTimeout, LocalProtocolError
from vhostd.spec.virtio import Feature

MODERN = Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.EVENT_IDX


def held():
    """What this process holds: descriptors, shared mappings, threads."""
    gc.collect()
    fds = sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if _there(n))
    return [fd for fd in fds if "memfd" in fd or "event" in fd], Path("/proc/self/maps").read_text().count("memfd:")


def _there(number):
    try:
        os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return False
    return True


def chain_on(queue, length=4):
    chain = queue.take()
    chain.append(queue.ring.arena.regions[0].gpa, length)
    return chain


STEPS = ["connect", "negotiate", "make_memory", "make_rings"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_an_attach_that_fails_leaves_nothing(puppet, monkeypatch, step, when):
    """ILLUMOS R2.50-F, R2.53-F: fail step k for every k: descriptors and mappings as before."""
    made = puppet(features=MODERN)
    before = held()
    original = getattr(Device, step)

    def failing(self, *args, **options):
        if when == "after":
            original(self, *args, **options)
        raise OSError(24, "too many open files")

    monkeypatch.setattr(Device, step, failing)
    with pytest.raises(OSError, match="too many"):
        Device.attach(made.path, wanted=0, notify=Notify.SHARED)
    assert held() == before


@pytest.mark.parametrize("answer", [R.GET_FEATURES, R.GET_PROTOCOL_FEATURES, R.GET_QUEUE_NUM])
def test_an_attach_to_a_silent_device_ends(puppet, answer):
    """ILLUMOS D4-F: no wait without a deadline."""
    made = puppet(features=MODERN, answers={answer: SILENT})
    before = held()
    with pytest.raises(DeviceTimeout):
        Device.attach(made.path, wanted=0, timeout=0.1)
    assert held() == before


def test_a_start_that_fails_stops_what_had_started(puppet):
    """ILLUMOS R2.50-F: the second ring cannot start; nothing runs."""
    kicks = itertools.count()
    made = puppet(
        features=MODERN, queues=2,
        answers={R.SET_VRING_KICK: lambda frame: u64(next(kicks)) if frame.need_reply else SILENT},
    )  # fmt: skip
    with Device.attach(made.path, wanted=0, queues=2) as device:
        with pytest.raises(DeviceError):
            device.start()
        assert not device.running


def test_never_more_is_acknowledged_than_wanted_and_offered(puppet):
    """ILLUMOS R2.32-F: what nobody here implements is not acknowledged, whatever is offered."""
    made = puppet(features=(1 << 64) - 1 & ~Feature.RING_PACKED)
    with Device.attach(made.path, wanted=1 << 5) as device:
        assert device.features & ~(MODERN | Feature.PROTOCOL_FEATURES) == 1 << 5
        assert device.has(1 << 5)
        assert not device.has(1 << 6)
    with pytest.raises(LocalProtocolError, match="RING_PACKED"):
        Device.attach(made.path, wanted=0, packed=True)


@pytest.mark.parametrize("notify", Notify)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_every_way_to_be_notified(puppet, notify, packed):
    """ILLUMOS D6-F, R2.64-F: a descriptor a ring, one for all, none; a hundred starts and stops leave nothing."""
    made = puppet(features=MODERN | Feature.RING_PACKED, queues=2)
    before = held()
    with Device.attach(made.path, wanted=0, queues=2, size=16, notify=notify, packed=packed) as device:
        queues = [device.make_queue(index, chains=4, capacity=2) for index in range(2)]
        made.play(device, lambda index, readable, writable: 0)
        device.start()
        for _ in range(4):
            for queue in queues:
                chain = chain_on(queue)
                done = []
                chain.on_complete = lambda chain, queue=queue, done=done: (done.append(1), queue.give(chain))
                queue.submit(chain)
                queue.flush()
                for _ in range(200):
                    if done:
                        break
                    device.wait_any(0.05)
                assert done
        for _ in range(100):
            device.reset()
            device.start()
        calls = {queue.ring.call_fd.number for queue in queues}
        assert len(calls) == (1 if notify is Notify.SHARED else 2)
    assert held() == before


def test_a_reset_is_read_back(puppet):
    """ILLUMOS R2.40-F, R2.66-F: a status that does not become 0 within the bound is a broken device, said so."""
    made = puppet(features=MODERN, answers={R.GET_STATUS: u64(4)})
    with Device.attach(made.path, wanted=0, timeout=0.2) as device:
        device.start()
        with pytest.raises(DeviceTimeout, match="does not become 0"):
            device.reset()
        assert "could not be reset" in device.broken
        with pytest.raises(DeviceError, match="broken"):
            device.start()


def test_a_device_that_cannot_be_reset_keeps_its_memory(puppet):
    """ILLUMOS D4-F: an abandoned buffer is not used again before a reset has succeeded."""
    made = puppet(features=MODERN, answers={R.GET_VRING_BASE: SILENT})
    with Device.attach(made.path, wanted=0, timeout=0.1) as device:
        queue = device.make_queue(0, chains=2, capacity=1)
        device.start()
        chain = chain_on(queue)
        queue.submit(chain, awaited=True)
        queue.flush()
        with pytest.raises(DeviceTimeout) as error:
            queue.wait(chain, 0.05)
        assert device.give_up(error.value) == []
        assert device.broken
        assert device.counters["timeouts"] == 1
        with pytest.raises(LocalProtocolError):
            queue.give(chain)


def test_close_in_any_state_and_twice(puppet):
    """ILLUMOS R2.58-F, R2.39-F: half made, running, reset, after the device has gone; no error, nothing left."""
    before = held()
    half = Device("/nonexistent")
    half.close()
    half.close()
    for state in ("attached", "running", "reset", "gone"):
        made = puppet(features=MODERN)
        device = Device.attach(made.path, wanted=0)
        if state != "attached":
            device.start()
        if state == "reset":
            device.reset()
        if state == "gone":
            device.frontend.close()
        device.close()
        device.close()
        with pytest.raises(LocalProtocolError, match="after close"):
            device.start()
    assert held() == before


def test_a_close_that_fails_goes_on_and_is_counted(puppet, caplog):
    """ILLUMOS R2.48-F, R2.65-F: teardown cannot fail; it says what did not go, and does the rest."""
    made = puppet(features=MODERN)
    before = held()
    device = Device.attach(made.path, wanted=0)

    def broken():
        raise OSError(5, "input/output error")

    device.push_undo(broken)
    device.close()
    assert device.counters["close_errors"] == 1
    assert "close failed" in caplog.text
    assert held() == before


def test_configuration_is_read_until_it_stands_still(puppet):
    """ILLUMOS R2.51-F, F.7: two reads that agree; one that never stands still ends in an error, not in a loop."""
    reads = itertools.count()
    made = puppet(features=MODERN, config=lambda: struct.pack("<Q", min(next(reads), 5)))
    with Device.attach(made.path, wanted=0) as device:
        assert device.config(0, 8) == struct.pack("<Q", 5)
        made.config = lambda: struct.pack("<Q", next(reads))
        with pytest.raises(DeviceError, match="no two of"):
            device.config(0, 8)


@pytest.mark.parametrize(
    ("value", "bits", "zero", "expected"),
    [(0, 32, None, 7), (0xFFFFFFFF, 32, None, 7), (1, 32, None, 1), (0, 16, 3, 3), (0xFFFF, 16, 3, 7)],
)  # fmt: skip
def test_absent_values(value, bits, zero, expected):
    """ILLUMOS R2.17-F: 0 and all-ones are what an absent field reads as."""
    assert plausible(value, bits, 7, zero=zero) == expected


def test_zero_is_a_value(puppet):
    """ILLUMOS R2.66-F: ring 0, base 0, descriptor 0; none of them is taken for "none"."""
    made = puppet(features=MODERN)
    with Device.attach(made.path, wanted=0) as device:
        device.start()
        assert device.frontend.get_base(0) == 0
        device.frontend.bases.clear()
        ring = device.rings[0]
        assert ring.add([(device.arena.regions[0].gpa, 1)], []) == 0
        assert ring.in_flight == 1


def test_from_a_thread_of_its_own(puppet):
    """ILLUMOS R2.10-F: one thread drives a device, whichever it is; two devices in two threads share nothing."""
    results = []

    def drive(made):
        with Device.attach(made.path, wanted=0, size=8) as device:
            queue = device.make_queue(0, chains=4, capacity=1)
            made.play(device, lambda index, readable, writable: 0)
            device.start()
            for _ in range(20):
                chain = chain_on(queue)
                queue.submit(chain, awaited=True)
                queue.flush()
                queue.give(queue.wait(chain, 5))
            results.append(device.counters.total())

    threads = [threading.Thread(target=drive, args=(puppet(features=MODERN),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0, 0]
    assert devices.CONFIG_TRIES > 1


def test_a_foreign_thread_is_turned_away(puppet):
    """ILLUMOS R2.10-F: every operation of a ring checks whose it is; handed over, it is another's."""
    made = puppet(features=MODERN)
    with Device.attach(made.path, wanted=0, size=8) as device:
        queue = device.make_queue(0, chains=4, capacity=1)
        made.play(device, lambda index, readable, writable: 0)
        device.start()
        mine = chain_on(queue)
        foreign = [
            queue.take, lambda: queue.give(mine), lambda: queue.submit(mine), queue.flush, queue.reap,
            lambda: queue.until(lambda: True, 1), queue.evacuate,
        ]  # fmt: skip
        for operation in foreign:
            with pytest.raises(LocalProtocolError, match="thread"):
                elsewhere(operation)
        queue.give(mine)
        queue.hand_over()
        assert elsewhere(queue.take) is not None
        with pytest.raises(LocalProtocolError, match="thread"):
            queue.take()


def elsewhere(operation):
    """Do it on another thread; return or raise what it does."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(operation).result()


def test_descriptors_are_given_back_early(puppet):
    """ILLUMOS R2.37-F: 200 attaches, starts and closes hold no more than the first did."""
    made = puppet(features=MODERN)
    with Device.attach(made.path, wanted=0, size=8, memory_len=1 << 16) as device:
        device.start()
    before = held()
    for _ in range(200):
        with Device.attach(made.path, wanted=0, size=8, memory_len=1 << 16) as device:
            device.start()
    assert held() == before


@pytest.mark.parametrize(
    ("name", "function", "store", "load"),
    [
        ("split_ring", "split_publish", "store_release_u16(&ring.avail.idx", "load_relaxed_u16(ring.avail_event)"),
        ("split_ring", "split_arm", "store_relaxed_u16(ring.used_event", "load_acquire_u16(&ring.used.idx)"),
        ("packed", "packed_publish", "store_release_u16(&ring.packed[", "load_relaxed_u16(&ring.device_event.flags)"),
        ("packed", "packed_arm", "store_release_u16(&ring.driver_event.flags", "packed_has_used(ring)"),
    ],
)
def test_a_full_fence_between_a_store_and_the_look_that_follows(name, function, store, load):
    """ILLUMOS R2.60-F: x86 would hide a missing one from every test that runs; so the source is held to it."""
    source = (Path(devices.__file__).parents[1] / f"{name}.pyx").read_text()
    body = source.split(f"{function}(ring_t *ring)", 1)[1].split("\n\n\n", 1)[0]
    assert body.index(store) < body.index("fence_full()") < body.index(load)
