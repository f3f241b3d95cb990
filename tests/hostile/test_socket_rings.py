"""S36, S40 to S60, S130 to S148: ring indices, addresses, sizes, and messages in states they are not for."""

import os
import struct
import threading

import pytest

from tests.hostile.attack import ALL_FEATURES, MIB, addr, alive, attempt, guest, state, u64
from vhostd.driver.arena import Arena, Region, adjacent
from vhostd.driver.blk import BlockDriver
from vhostd.driver.frontend import PROTOCOL_FEATURES
from vhostd.driver.hotloop import block_load
from vhostd.driver.virtqueue import Virtqueue
from vhostd.spec.blk import Request
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Feature

R = FrontendRequest
INDICES = [4, 200, 255, 256, 65535, 65536, 0x10000000, 0x80000000, 0xFFFFFFFF]  # the device has 4 rings


@pytest.mark.parametrize("index", INDICES, ids="S40-{:#x}".format)
@pytest.mark.parametrize(
    "request_", [R.SET_VRING_NUM, R.SET_VRING_BASE, R.SET_VRING_ADDR, R.SET_VRING_ENABLE], ids=lambda r: r.name
)
def test_a_ring_that_is_not_there(target, request_, index):
    """S40 to S47: 32-bit indices are compared before they are narrowed: 0x10000 is not ring 0."""
    with guest(target) as bad:
        desc, avail, used = bad.queue.uvas
        payload = addr(index, desc, used, avail) if request_ is R.SET_VRING_ADDR else state(index, 1)
        assert bad.attempt(request_, payload) == "refused"
        assert bad.reads()
        assert bad.attempt(request_, payload, ack=False) == "closed"


@pytest.mark.parametrize("index", INDICES, ids="S43-{:#x}".format)
def test_the_base_of_a_ring_that_is_not_there(target, index):
    """S43: its reply has no way to say no, so the connection closes."""
    with guest(target) as bad:
        assert bad.attempt(R.GET_VRING_BASE, state(index)) == "closed"


@pytest.mark.parametrize("index", [4, 200, 255], ids="S45-{}".format)
@pytest.mark.parametrize("request_", [R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR], ids=lambda r: r.name)
@pytest.mark.parametrize("no_fd", [False, True], ids=["fd", "bit-8"])
def test_a_descriptor_for_a_ring_that_is_not_there(target, request_, index, no_fd):
    """S45 to S47: eight bits of index."""
    with guest(target) as bad:
        fds = [] if no_fd else [bad.queue.call_fd.number]
        assert bad.attempt(request_, u64(index | 0x100 * no_fd), fds) == "refused"
        assert bad.reads()


# Addresses. The guest's memory is one region; its front-end addresses begin at BASE.

ONE = Region(0x1000_0000, 4 * MIB, uva=0x7F00_0000_0000)
BASE, END = ONE.front_uva, ONE.front_uva + ONE.length
PLACES = {
    "S48-zero": (0, 0x1000, 0x2000),
    "S48-below": (BASE - 0x10000, BASE, BASE + 0x1000),
    "S48-past-the-end": (END, BASE, BASE + 0x1000),
    "S48-far": (BASE + (1 << 40), BASE, BASE + 0x1000),
    "S48-top": (2**64 - 16, BASE, BASE + 0x1000),
    "S48-avail-below": (BASE, BASE - 0x1000, BASE + 0x1000),
    "S48-used-past-the-end": (BASE, BASE + 0x1000, END),
    "S48-used-top": (BASE, BASE + 0x1000, 2**64 - 4),
    "S48-guest-addresses": (ONE.gpa, ONE.gpa + 0x1000, ONE.gpa + 0x2000),
    "S49-desc-8": (BASE + 8, BASE + 0x1000, BASE + 0x2000),
    "S49-desc-1": (BASE + 1, BASE + 0x1000, BASE + 0x2000),
    "S49-avail-1": (BASE, BASE + 0x1001, BASE + 0x2000),
    "S49-used-2": (BASE, BASE + 0x1000, BASE + 0x2002),
    "S49-used-1": (BASE, BASE + 0x1000, BASE + 0x2001),
    "S50-all-one": (BASE, BASE, BASE),
    "S50-avail-in-desc": (BASE, BASE + 64 * 16 - 2, BASE + 0x1000),
    "S50-used-in-avail": (BASE, BASE + 0x1000, BASE + 0x1000 + 64 * 2 + 4),
    "S50-desc-in-used": (BASE + 0x1000 + 16, BASE, BASE + 0x1000),
    "S51-desc-end": (END - 64 * 16 + 16, BASE, BASE + 0x1000),
    "S51-avail-end": (BASE, END - 4 - 2 * 64, BASE + 0x1000),
    "S51-used-end": (BASE, BASE + 0x1000, END - 4 - 8 * 64),
    "S51-used-crosses-64-bits": (BASE, BASE + 0x1000, 2**64 - 512),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_ring_at_an_impossible_place(target, name):
    """S48 to S51: refused by SET_VRING_ADDR or by the start at the latest; sizes include the event fields."""
    desc, avail, used = PLACES[name]
    with Arena([ONE]) as arena, guest(target, "memory", arena=arena) as bad:
        bad.frontend.set_num(0, 64)
        assert bad.attempt(R.SET_VRING_ADDR, addr(0, desc, used, avail)) in {"done", "refused"}
        assert bad.attempt(R.SET_VRING_KICK, u64(0), [bad.queue.kick_fd.number]) == "refused"
        bad.start_ring()
        assert bad.reads()


def test_without_event_fields_a_ring_may_end_with_the_region(target):
    """S51: the two bytes of the event fields are asked for only with EVENT_IDX."""
    features = ALL_FEATURES & ~Feature.EVENT_IDX
    with Arena([ONE]) as arena:
        places = ONE.gpa, ONE.end - 4 - 2 * 64, ONE.gpa + 0x2000
        with (
            guest(target, "memory", arena=arena, features=features) as odd,
            Virtqueue(arena, 64, parts=places) as ring,
        ):
            odd.frontend.set_call(0, ring.call_fd)
            odd.frontend.start_ring(0, ring)
            odd.frontend.enable(0)
            assert BlockDriver(ring).read(0, 512) == target.content[:512]


@pytest.mark.parametrize("part", ["desc", "avail", "used"], ids="S52-{}".format)
def test_a_ring_across_two_regions(target, part):
    """S52: adjacent in the front-end's addresses, too, but two mappings of ours: refused."""
    first = Region(0x1000_0000, MIB, uva=0x7F00_0000_0000)
    second = Region(0x1000_0000 + MIB, MIB, uva=0x7F00_0000_0000 + MIB)
    with Arena([first, second]) as arena, guest(target, "memory", arena=arena) as bad:
        border = second.front_uva
        places = {"desc": first.front_uva, "avail": first.front_uva + 0x2000, "used": first.front_uva + 0x3000}
        places[part] = border - 64
        bad.frontend.set_num(0, 64)
        told = bad.attempt(R.SET_VRING_ADDR, addr(0, places["desc"], places["used"], places["avail"]))
        assert told == "refused" or bad.attempt(R.SET_VRING_KICK, u64(0), [bad.queue.kick_fd.number]) == "refused"


@pytest.mark.parametrize("flags", [1, 2, 0x80000000, 0xFFFFFFFF], ids="S53-{:#x}".format)
def test_flags_of_an_address(target, flags):
    """S53: the log bit needs a log, and the others mean nothing we know."""
    with guest(target, "memory") as bad:
        desc, avail, used = bad.queue.uvas
        bad.frontend.set_num(0, 64)
        assert bad.attempt(R.SET_VRING_ADDR, addr(0, desc, used, avail, flags=flags)) == "refused"


@pytest.mark.parametrize("base", [0x10000, 0x18000, 0x80000000, 0xFFFFFFFF], ids="S54-{:#x}".format)
def test_a_base_of_more_than_sixteen_bits(target, base):
    """S54: packed wrap bits among them."""
    with guest(target, "memory") as bad:
        assert bad.attempt(R.SET_VRING_BASE, state(0, base)) == "refused"
        assert bad.frontend.get_base(0) == 0


def test_a_base_that_disagrees_with_the_ring(target):
    """S54: the ring then is further ahead than it is long, which breaks it, loudly."""
    with guest(target, "memory") as bad:
        bad.start_ring(base=1000)
        assert bad.broke()
        assert bad.frontend.get_base(0) == 1000


@pytest.mark.parametrize("value", [2, 0x100, 0xFFFFFFFF], ids="S55-{:#x}".format)
def test_enable_is_0_or_1(target, value):
    """S55."""
    with guest(target) as bad:
        assert bad.attempt(R.SET_VRING_ENABLE, state(0, value)) == "refused"
        assert bad.reads()


def test_a_size_told_a_hundred_thousand_times(target):
    """S56: nothing is allocated for each."""
    with guest(target, "memory") as odd:
        sizes = b"".join(struct.pack("<IIIII", R.SET_VRING_NUM, 1, 8, 0, 32768 >> n % 16) for n in range(2000))
        odd.frontend.send_bytes(sizes)
        assert alive(odd.frontend)
        before = rss(target)
        for _ in range(10):
            odd.frontend.send_bytes(sizes)
        assert alive(odd.frontend)
        assert rss(target) - before < MIB


def rss(target):
    with open(f"/proc/{target.pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096


SIZES = [0, 3, 100, 127, 32767, 32769, 65535, 65536, 65537, 0x10080, 2**31, 2**32 - 1]


@pytest.mark.parametrize("num", SIZES, ids="S57-{:#x}".format)
def test_sizes_that_no_split_ring_has(target, num):
    """S57 to S60: 0, no power of two, more than 32768 (2.7)."""
    with guest(target, "memory") as bad:
        assert bad.attempt(R.SET_VRING_NUM, state(0, num)) == "refused"
        assert bad.attempt(R.SET_VRING_NUM, state(0, num), ack=False) == "closed"


@pytest.mark.parametrize("num", [1, 2, 1024, 32768], ids="S58-{}".format)
def test_sizes_at_the_ends(target, num):
    """S57 to S60: 1 and 32768 are legal."""
    with guest(target, size=num, memory_len=16 * MIB, indirect=True) as odd:
        for _ in range(3):
            assert odd.reads()


# Order and state.


@pytest.mark.parametrize("missing", ["features", "memory", "num", "addr"], ids="S130-{}".format)
def test_a_kick_before_what_it_needs(target, missing):
    """S130, S131: a ring does not start half-told, and starts when the rest has come."""
    with guest(target, "negotiated") as bad:
        steps = {
            "features": bad.frontend.set_features,
            "memory": lambda: bad.frontend.share(bad.arena),
            "num": lambda: bad.frontend.set_num(0, 64),
            "addr": lambda: bad.frontend.set_addr(0, bad.queue),
        }
        for name, do in steps.items():
            if name == missing or (missing == "memory" and name == "addr"):
                continue
            do()
        assert bad.attempt(R.SET_VRING_KICK, u64(0), [bad.queue.kick_fd.number]) == "refused"
        steps[missing]()
        bad.start_ring()
        assert bad.reads()


def test_addresses_before_memory(target):
    """S131."""
    with guest(target, "negotiated") as bad:
        desc, avail, used = bad.queue.uvas
        assert bad.attempt(R.SET_VRING_ADDR, addr(0, desc, used, avail)) == "refused"


def test_the_owner_twice_or_never(target):
    """S131: nothing depends on it."""
    with guest(target) as odd:
        assert [odd.attempt(R.SET_OWNER) for _ in range(3)] == ["done"] * 3
        assert odd.reads()


def test_the_base_of_a_ring_again_and_again(target):
    """S132: answers the same, while requests are in flight too: they come back first."""
    with guest(target, size=256) as odd:
        driver = odd.block()
        flying = [driver.submit(Request.IN, n, read_len=512, kick=False) for n in range(60)]
        odd.queue.kick()
        base = odd.frontend.get_base(0)
        assert [odd.frontend.get_base(0) for _ in range(3)] == [base] * 3
        assert odd.queue.used_idx == base
        odd.frontend.bases[0] = base
        odd.frontend.start_ring(0, odd.queue)
        for pending in flying:
            assert driver.complete(pending).ok


@pytest.mark.parametrize("ring", [1, 3], ids="S134-{}".format)
def test_the_base_of_a_ring_that_was_never_set_up(target, ring):
    """S134: 0."""
    with guest(target) as odd:
        assert odd.frontend.get_base(ring) == 0
        assert odd.reads()


def test_the_base_of_a_disabled_ring(target):
    """S132: stops it all the same."""
    with guest(target) as odd:
        assert odd.reads()
        odd.frontend.enable(0, enabled=False)
        assert odd.frontend.get_base(0) == 1


def test_a_ring_disabled_in_flight(target):
    """S133, R75: what was taken completes, nothing more is taken, and all goes on when it is enabled again."""
    with guest(target, size=256) as odd:
        driver = odd.block()
        flying = [driver.submit(Request.IN, n, read_len=4096, kick=False) for n in range(60)]
        odd.queue.kick()
        odd.frontend.enable(0, enabled=False)
        flying += [driver.submit(Request.IN, n, read_len=4096, kick=False) for n in range(20)]
        odd.queue.kick(force=True)
        assert alive(odd.frontend)
        settled = odd.queue.used_idx
        odd.frontend.enable(0, enabled=False)
        assert odd.queue.used_idx == settled <= 60
        odd.frontend.enable(0)
        for pending in flying:
            assert driver.complete(pending).ok


@pytest.mark.parametrize(
    "extra",
    [Feature.RING_PACKED, 1 << 26, Feature.ACCESS_PLATFORM, 1 << 63, (1 << 64) - 1, Feature.RING_RESET],
    ids=lambda bits: f"S135-{int(bits):#x}",
)
def test_features_that_were_not_offered(target, extra):
    """S135: LOG_ALL, packed rings, IOMMU and what has no name; the features before stay in force."""
    with guest(target) as bad:
        assert bad.attempt(R.SET_FEATURES, u64(bad.frontend.features | extra)) == "refused"
        assert bad.reads()
        assert bad.attempt(R.SET_FEATURES, u64(bad.frontend.features | extra), ack=False) == "closed"


def test_features_changed_while_a_ring_runs(target):
    """S135: refused, and the same again is accepted."""
    with guest(target) as bad:
        assert bad.attempt(R.SET_FEATURES, u64(bad.frontend.features & ~Feature.EVENT_IDX)) == "refused"
        assert bad.attempt(R.SET_FEATURES, u64(bad.frontend.features)) == "done"
        assert bad.reads()


@pytest.mark.parametrize(
    "bits",
    [ProtocolFeature.INBAND_NOTIFICATIONS, ProtocolFeature.XEN_MMAP, 1 << 40, 1 << 63],
    ids=lambda bits: f"S136-{int(bits):#x}",
)
def test_protocol_features_that_were_not_offered(target, bits):
    """S136."""
    with guest(target, "negotiated") as bad:
        value = int(bad.frontend.protocol_features) | int(bits)
        assert bad.attempt(R.SET_PROTOCOL_FEATURES, u64(value)) == "refused"
        assert bad.attempt(R.SET_PROTOCOL_FEATURES, u64(value), ack=False) == "closed"


def test_protocol_features_changed_while_a_ring_runs(target):
    """S136."""
    with guest(target) as bad:
        fewer = int(bad.frontend.protocol_features) & ~int(ProtocolFeature.CONFIG)
        assert bad.attempt(R.SET_PROTOCOL_FEATURES, u64(fewer)) == "refused"
        assert bad.reads()


@pytest.mark.parametrize("how", ["RESET_DEVICE", "SET_STATUS"], ids="S137-{}".format)
@pytest.mark.parametrize("when", ["negotiated", "memory", "running", "in flight"], ids=lambda w: w.replace(" ", "-"))
def test_a_reset_in_each_state(target, how, when):
    """S137: quiesces, forgets the driver's part, keeps the connection's, and a new start works."""
    with guest(target, when if when != "in flight" else "running", size=256) as odd:
        if when == "in flight":
            driver = odd.block()
            for n in range(60):
                driver.submit(Request.IN, n, read_len=512, kick=False)
            odd.queue.kick()
        assert odd.attempt(R[how], b"" if how == "RESET_DEVICE" else u64(0)) == "done"
        odd.frontend.bases.clear()
        odd.queue.reset()
        odd.start()
        assert odd.reads()


def test_the_owner_is_reset(target):
    """S137: RESET_OWNER is to be ignored, says the document."""
    with guest(target) as odd:
        assert odd.attempt(R.RESET_OWNER) == "done"
        assert odd.reads()


@pytest.mark.parametrize("status", [4, 0x0F, 0x80, 0x40, 0xFF], ids="S138-{:#x}".format)
def test_impossible_transitions_of_the_status(target, status):
    """S138: recorded, but FEATURES_OK not before there are features; nothing depends on it."""
    with guest(target, "negotiated") as odd:
        assert odd.attempt(R.SET_STATUS, u64(status)) == "done"
        assert odd.frontend.status() & ~0x40 == status & ~8 & ~0x40
        odd.start()
        assert odd.reads()


def test_a_status_of_more_than_eight_bits(target):
    """S138."""
    with guest(target) as bad:
        assert bad.attempt(R.SET_STATUS, u64(0x100)) == "refused"
        assert bad.reads()


GEOMETRY = {
    "S146-num": (R.SET_VRING_NUM, lambda q: state(0, 128)),
    "S146-num-same": (R.SET_VRING_NUM, lambda q: state(0, 64)),
    "S147-addr": (R.SET_VRING_ADDR, lambda q: addr(0, *(q.arena.uva(q.desc_gpa) + n * 0x8000 for n in range(3)))),
    "S148-base": (R.SET_VRING_BASE, lambda q: state(0, 7)),
}


@pytest.mark.parametrize("name", GEOMETRY)
def test_the_geometry_of_a_started_ring_is_frozen(target, name):
    """S146 to S148: refused, with requests in flight too, which all come back."""
    request, payload = GEOMETRY[name]
    with guest(target) as bad:
        driver = bad.block()
        flying = [driver.submit(Request.IN, n, read_len=512) for n in range(20)]
        assert bad.attempt(request, payload(bad.queue)) == "refused"
        for pending in flying:
            assert driver.complete(pending).ok
        assert bad.attempt(request, payload(bad.queue), ack=False) == "closed"


def test_the_same_addresses_again(target):
    """S147: told again, as front-ends do to switch logging; nothing is new."""
    with guest(target) as odd:
        odd.frontend.set_addr(0, odd.queue)
        assert odd.reads()


LOADED = {
    "S140-NUM": lambda g: (R.SET_VRING_NUM, state(0, 64), ()),
    "S141-ADDR": lambda g: (R.SET_VRING_ADDR, addr(0, *(g.queue.uvas[n] for n in (0, 2, 1)), log=1), ()),
    "S142-BASE": lambda g: (R.SET_VRING_BASE, state(0, 0), ()),
    "S143-CALL": lambda g: (R.SET_VRING_CALL, u64(0), (g.queue.call_fd.number,)),
    "S143-KICK": lambda g: (R.SET_VRING_KICK, u64(0), (g.queue.kick_fd.number,)),
    "S143-ERR": lambda g: (R.SET_VRING_ERR, u64(0), (g.queue.err_fd.number,)),
    "S144-ENABLE": lambda g: (R.SET_VRING_ENABLE, state(0, 1), ()),
    "S145-FEATURES": lambda g: (R.SET_FEATURES, u64(g.frontend.features), ()),
    "S145-OWNER": lambda g: (R.SET_OWNER, b"", ()),
    "S145-ring-1": lambda g: (R.SET_VRING_NUM, state(1, 64), ()),
}


@pytest.mark.parametrize("name", LOADED)
def test_a_message_again_and_again_under_load(target, name):
    """S140 to S145: refused or done, and no request is lost."""
    with guest(target, memory_len=16 * MIB) as odd:
        result = []
        load = threading.Thread(
            target=lambda: result.append(
                block_load(odd.queue, depth=16, block_len=4096, disk_len=4 * MIB, duration_ns=150_000_000)
            )
        )
        load.start()
        request, payload, fds = LOADED[name](odd)
        outcomes = set()
        while load.is_alive():
            outcomes.add(odd.attempt(request, payload, fds))
        load.join()
        assert outcomes in ({"done"}, {"refused"})
        assert (result[0].errors, result[0].short) == (0, 0)
        assert result[0].ios > 100


def test_stop_and_start_under_load(target):
    """R74, R75, F44: whatever is in flight comes back, a kick between stop and start is not lost."""
    with guest(target, size=256, memory_len=16 * MIB) as odd:
        driver = odd.block()
        for turn in range(60):
            flying = [driver.submit(Request.IN, n, read_len=4096, kick=False) for n in range(60)]
            odd.queue.kick(force=True)
            base = odd.frontend.get_base(0)
            assert odd.queue.used_idx == base
            flying += [driver.submit(Request.IN, n, read_len=512, kick=False) for n in range(5)]
            odd.queue.kick(force=bool(turn % 2))
            odd.frontend.start_ring(0, odd.queue)
            for pending in flying:
                assert driver.complete(pending).ok


@pytest.mark.parametrize("turns", [60], ids="R74-{}".format)
def test_a_kick_between_disable_and_enable(target, turns):
    """R74: the ring is looked at when it is enabled."""
    with guest(target) as odd:
        driver = odd.block()
        for turn in range(turns):
            odd.frontend.enable(0, enabled=False)
            pending = driver.submit(Request.IN, turn, read_len=512)
            odd.frontend.enable(0)
            assert driver.complete(pending).ok


def test_two_rings_in_one_place(target):
    """S50: across queues it is tolerated; the guest confuses only itself."""
    with guest(target, queues=2) as odd:
        desc, avail, used = odd.queue.uvas
        assert odd.frontend.get_base(1) == 0
        assert odd.attempt(R.SET_VRING_ADDR, addr(1, desc, used, avail)) == "done"
        assert odd.attempt(R.SET_VRING_KICK, u64(1), [odd.queues[1].kick_fd.number]) == "done"
        for n in range(4):
            odd.queue.raw_desc(3 * n, 1, 1, 0)
            odd.queue.raw_push(3 * n)
            odd.queue.kick(force=True)
            os.eventfd_write(odd.queues[1].kick_fd.number, 1)
        assert alive(odd.frontend)


def test_three_rings_of_four(target):
    """F22: fewer rings than offered, the middle one left out; stop and start work."""
    with guest(target, "memory", queues=4) as odd:
        for index in (0, 1, 3):
            odd.start_ring(index)
        for index in (0, 1, 3):
            assert odd.reads(index)
        for index in range(4):
            odd.frontend.get_base(index)


def test_many_messages_while_memory_is_in_eight_regions(target):
    """S140: all of it once more with memory in pieces that touch."""
    with Arena(adjacent(0x1000_0000, [MIB] * 8)) as arena, guest(target, arena=arena) as odd:
        for name in sorted(LOADED):
            request, payload, fds = LOADED[name](odd)
            assert attempt(odd.frontend, request, payload, fds) in {"done", "refused"}
            assert odd.reads()


def test_reply_ack_given_up_in_the_middle(target):
    """S136: before anything runs, features may be set again, and an answer is no longer owed."""
    with guest(target, "negotiated") as odd:
        without = int(PROTOCOL_FEATURES & odd.frontend.protocol_features & ~ProtocolFeature.REPLY_ACK)
        odd.frontend.send(R.SET_PROTOCOL_FEATURES, u64(without))
        odd.frontend.send(R.SET_VRING_NUM, state(0, 64), flags=9)
        assert alive(odd.frontend)
