"""Rings and memory that cannot be, and messages in the wrong state (HOSTILE S40 to S84, S110 to S148)."""

import os
import time

from vhostd.driver.arena import Arena, Region
from vhostd.driver.conformance.case import Level, Mark, case
from vhostd.driver.conformance.check import Check, Guest
from vhostd.driver.conformance.hostile.tools import (
    MIB,
    OF_END,
    R,
    addr,
    attempt,
    config,
    descriptor,
    held_to_refusal,
    held_to_telling,
    how_told,
    refuses,
    single,
    state,
    table,
    u64,
)
from vhostd.driver.conformance.verdict import Failed, Fault
from vhostd.driver.frontend import PROTOCOL_FEATURES
from vhostd.errors import DeviceGone, DeviceTimeout
from vhostd.protocol.messages import VringState
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature

HOSTILE = [Mark.HOSTILE]
ACK = ProtocolFeature.REPLY_ACK
SLOTS = ACK | ProtocolFeature.CONFIGURE_MEM_SLOTS
NO_SLOTS = PROTOCOL_FEATURES & ~ProtocolFeature.CONFIGURE_MEM_SLOTS
RINGS = 'vhost-user, "A vring state description"'
MEMORY = 'vhost-user, "Memory region description"'
INDICES = [256, 65535, 65536, 0x1000_0000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF]
TOP = 1 << 64
CONFIG_HEAD = 12  # bytes before the content


def _memory_told(check: Check, guest: Guest) -> None:
    """Stop the ring, so that it may be told anew."""
    guest.frontend.get_base(check.target.work_ring)


@case(
    "HOST-S40",
    RINGS,
    marks=HOSTILE,
    protocol=ACK,
    rows={
        f"{request.name.lower().replace('_', '-')}.{index:#x}": (request, index)
        for request in (R.SET_VRING_NUM, R.SET_VRING_BASE, R.SET_VRING_ADDR, R.GET_VRING_BASE, R.SET_VRING_ENABLE)
        for index in INDICES
    },
)
def an_index_that_names_no_ring(check: Check, row: tuple[FrontendRequest, int]) -> None:
    """An index names a ring of the device, in all of its 32 bits: any other is refused."""
    request, index = row
    with check.guest() as guest:
        desc, avail, used = guest.queue.uvas
        payload = addr(index, desc, used, avail) if request is R.SET_VRING_ADDR else state(index, 1)
        refuses(check, guest.frontend, request, payload)


@case(
    "HOST-S44",
    'vhost-user, "Front-end message types"',
    marks=HOSTILE,
    level=Level.SHOULD,
    protocol=ACK,
    rows={
        f"{request.name.lower().replace('_', '-')}.{value:#x}": (request, value)
        for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR)
        for value in (0x200, 1 << 32, TOP - 1 - 0x100)
    },
)
def bits_beyond_the_index(check: Check, row: tuple[FrontendRequest, int]) -> None:
    """The payload is an index of eight bits and one flag: whoever sets other bits means something else."""
    request, value = row
    frontend = check.negotiated()
    with descriptor("eventfd") as number:
        refuses(check, frontend, request, u64(value), [number])


@case("HOST-S36", 'vhost-user, "SET_VRING_KICK"', marks=HOSTILE, protocol=ACK,
      rows={request.name.lower().replace("_", "-"): request
            for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR)})  # fmt: skip
def a_descriptor_where_none_is_announced(check: Check, request: FrontendRequest) -> None:
    """Bit 8 says that no descriptor comes: one that does is refused or closed, never kept."""
    with check.guest() as guest, descriptor("eventfd") as number:
        word = attempt(guest.frontend, request, u64(0x100 | check.target.work_ring), [number])
        check.expect(word != "silent", "an answer, or the end of the connection", word, Fault.WEDGE)


AREAS = ("desc", "avail", "used")


@case(
    "HOST-S48",
    'vhost-user, "A vring address description"',
    marks=HOSTILE,
    protocol=ACK,
    rows={f"{area}.{name}": (area, name) for area in AREAS for name in ("zero", "below", "hole", "end", "top")},
)
def a_ring_outside_of_memory(check: Check, row: tuple[str, str]) -> None:
    """A ring lies in the memory that was told: the message, or the start, is refused."""
    area, name = row
    with check.guest() as guest:
        _memory_told(check, guest)
        region = guest.arena.regions[0]
        first = region.front_uva
        bad = {
            "zero": 0,
            "below": first - 4096,
            "hole": first + region.length + (1 << 30),
            "end": first + region.length - 16,
            "top": TOP - 16,
        }[name]
        _refuses_to_start(check, guest, **{area: bad})


@case(
    "HOST-S49",
    "virtio 2.7",
    marks=HOSTILE,
    protocol=ACK,
    rows={"desc.8": ("desc", 8), "desc.1": ("desc", 1), "avail.1": ("avail", 1), "used.2": ("used", 2)},
)
def a_ring_that_is_not_aligned(check: Check, row: tuple[str, int]) -> None:
    """Descriptors are aligned to 16 bytes, the available ring to 2, the used ring to 4."""
    area, off = row
    with check.guest() as guest:
        _memory_told(check, guest)
        desc, avail, used = guest.queue.uvas
        _refuses_to_start(check, guest, **{area: {"desc": desc, "avail": avail, "used": used}[area] + off})


@case("HOST-S50", "virtio 2.7", marks=HOSTILE, protocol=ACK, rows={"all": "all", "used-in-avail": "used-in-avail"})
def rings_that_overlap(check: Check, which: str) -> None:
    """Areas that share bytes: refused, or served at the guest's own risk; nobody else is harmed."""
    with check.guest() as guest:
        _memory_told(check, guest)
        desc, avail, _ = guest.queue.uvas
        changed = {"all": (desc, desc, desc), "used-in-avail": (desc, avail, avail)}[which]
        ring = check.target.work_ring
        word = attempt(guest.frontend, R.SET_VRING_ADDR, addr(ring, changed[0], changed[2], changed[1]))
        if word == "done":
            word = attempt(guest.frontend, R.SET_VRING_KICK, u64(ring), [guest.queue.kick_fd.number])
        check.expect(word != "silent", "an answer, or the end of the connection", word, Fault.WEDGE)


def _refuses_to_start(check: Check, guest: Guest, **areas: int) -> None:
    """Hold the back-end to refusing these addresses, or the start, or to breaking the ring when it is kicked."""
    ring = check.target.work_ring
    desc, avail, used = guest.queue.uvas
    at = {"desc": desc, "avail": avail, "used": used, **areas}
    word = attempt(guest.frontend, R.SET_VRING_ADDR, addr(ring, at["desc"], at["used"], at["avail"]))
    if word == "done":
        check.note("  the address was taken; the ring is started")
        word = attempt(guest.frontend, R.SET_VRING_KICK, u64(ring), [guest.queue.kick_fd.number])
    if word == "done":
        # "Ring states": a ring starts when it is kicked, and some look at it no sooner.
        check.note("  the start was taken; kick")
        guest.queue.raw_push(0)
        guest.queue.kick(force=True)
        said = how_told(guest, guest.queue, lambda: False)
        if said != OF_END:
            held_to_telling(check, said, "an answer that says no, or the end of the connection")
        return
    held_to_refusal(check, word)


@case(
    "HOST-S57",
    "virtio 2.7",
    marks=HOSTILE,
    protocol=ACK,
    rows={str(num): num for num in (0, 3, 100, 32769, 65535, 65536, 0x8000_0000, 0xFFFF_FFFF)},
)
def a_size_that_no_ring_has(check: Check, num: int) -> None:
    """A split ring has a power of 2 of descriptors, up to 32768: the message, or the start, is refused."""
    with check.guest() as guest:
        _memory_told(check, guest)
        ring = check.target.work_ring
        word = attempt(guest.frontend, R.SET_VRING_NUM, state(ring, num))
        if word == "done":
            _refuses_to_start(check, guest)
            return
        held_to_refusal(check, word)


@case("HOST-S56", RINGS, marks=HOSTILE, timeout=30)
def a_size_told_many_times(check: Check) -> None:
    """SET_VRING_NUM again and again leaves a back-end that answers."""
    frontend = check.negotiated()
    for _ in range(2000):
        frontend.send(R.SET_VRING_NUM, state(check.target.work_ring, 64))
    check.answers(frontend)


@case("HOST-S54", RINGS, marks=HOSTILE, protocol=ACK, rows={"65536": 65536, "ffffffff": 0xFFFFFFFF})
def a_base_of_more_than_sixteen_bits(check: Check, base: int) -> None:
    """The base of a split ring is an index of 16 bits: what is beyond is refused, or masked away."""
    with check.guest() as guest:
        _memory_told(check, guest)
        word = attempt(guest.frontend, R.SET_VRING_BASE, state(check.target.work_ring, base))
        check.expect(word != "silent", "an answer, or the end of the connection", word, Fault.WEDGE)
        if word == "done":
            answer, _ = guest.frontend.ask(R.GET_VRING_BASE, VringState, VringState(check.target.work_ring, 0))
            check.expect(answer.num <= 0xFFFF, "a base of 16 bits", f"{answer.num:#x}")


@case("HOST-S53", 'vhost-user, "A vring address description"', marks=HOSTILE, protocol=ACK,
      rows={"2": 2, "ffffffff": 0xFFFFFFFE})  # fmt: skip
def unknown_flags_of_an_address(check: Check, flags: int) -> None:
    """Flags that are not known are refused or not looked at."""
    with check.guest() as guest:
        _memory_told(check, guest)
        desc, avail, used = guest.queue.uvas
        word = attempt(guest.frontend, R.SET_VRING_ADDR, addr(check.target.work_ring, desc, used, avail, flags=flags))
        check.expect(word != "silent", "an answer, or the end of the connection", word, Fault.WEDGE)


# Memory.

BAD_REGIONS = {
    "no-bytes": (1 << 40, 0, 1 << 40, 0),
    "longer-than-its-file": (1 << 40, 32 * MIB, 1 << 40, 0),
    "offset-at-the-end": (1 << 40, MIB, 1 << 40, 16 * MIB),
    "offset-far-beyond": (1 << 40, MIB, 1 << 40, 1 << 50),
    "offset-wraps": (1 << 40, MIB, 1 << 40, TOP - 4096),
    "offset-and-length-wrap": (1 << 40, MIB, 1 << 40, TOP - MIB),
    "gpa-wraps": (TOP - 4096, MIB, 1 << 40, 0),
    "uva-wraps": (1 << 40, MIB, TOP - 4096, 0),
    "2^62-bytes": (0, 1 << 62, 1 << 40, 0),
    "2^63-bytes": (0, 1 << 63, 1 << 40, 0),
    "2^64-1-bytes": (0, TOP - 1, 1 << 40, 0),
}


@case(
    "HOST-S61",
    MEMORY,
    level=Level.SHOULD,
    marks=HOSTILE,
    protocol=SLOTS,
    rows={f"slot.{name}": name for name in BAD_REGIONS},
)
def a_slot_that_cannot_be_mapped(check: Check, name: str) -> None:
    """A region lies in its file and in 64 bits: any other is refused."""
    frontend = check.negotiated()
    with descriptor("memory") as number:
        refuses(check, frontend, R.ADD_MEM_REG, single(*BAD_REGIONS[name]), [number])


@case(
    "HOST-S62",
    MEMORY,
    level=Level.SHOULD,
    marks=HOSTILE,
    protocol=ACK,
    rows={f"table.{name}": name for name in BAD_REGIONS},
)
def a_table_that_cannot_be_mapped(check: Check, name: str) -> None:
    """A region lies in its file and in 64 bits: a table with any other is refused."""
    frontend = check.negotiated(protocol=NO_SLOTS)
    with descriptor("memory") as number:
        refuses(check, frontend, R.SET_MEM_TABLE, table(BAD_REGIONS[name]), [number])


OVERLAPS = {
    "gpa": ((1 << 40, MIB, 1 << 40, 0), ((1 << 40) + 4096, MIB, 1 << 41, 0)),
    "gpa-the-same": ((1 << 40, MIB, 1 << 40, 0), (1 << 40, MIB, 1 << 41, 0)),
}


@case("HOST-S65", MEMORY, level=Level.SHOULD, marks=HOSTILE, protocol=ACK, rows={name: name for name in OVERLAPS})
def regions_that_overlap(check: Check, name: str) -> None:
    """Two regions of a table do not share a guest address."""
    frontend = check.negotiated(protocol=NO_SLOTS)
    with descriptor("memory") as number:
        refuses(check, frontend, R.SET_MEM_TABLE, table(*OVERLAPS[name]), [number, number])


@case(
    "HOST-S70",
    'vhost-user, "Multiple Memory regions description"',
    marks=HOSTILE,
    protocol=ACK,
    rows={str(count): count for count in (9, 255, 65536, 0x8000_0000, 0xFFFF_FFFF)},
)
def a_number_of_regions_that_cannot_be(check: Check, count: int) -> None:
    """A table has as many regions as it says, at most 8."""
    frontend = check.negotiated(protocol=NO_SLOTS)
    regions = [(n << 30, MIB, n << 30, 0) for n in range(1, 9)]
    with descriptor("memory") as number:
        refuses(check, frontend, R.SET_MEM_TABLE, table(*regions, count=count), [number] * 8)


@case("HOST-S78", MEMORY, marks=HOSTILE, rows={"rings": 0, "buffers": 1}, timeout=20)
def memory_that_is_cut_short(check: Check, which: int) -> None:
    """A file of memory that is truncated while rings run ends that session at the most."""
    regions = [Region(0x1000_0000, 8 * MIB), Region(0x8000_0000, 8 * MIB)]
    arena: Arena = check.arena(*regions, seal=False)
    with check.guest(arena=arena, size=256) as guest:  # the table alone fills a page: the rest of the ring goes
        guest.works(1)
        if which:
            head, data = arena.alloc(32, 16, regions[0]), arena.alloc(512, 16, regions[1])
            if check.is_block:
                arena.write(head, bytes(8) + check.scratch.first.to_bytes(8, "little"))
                guest.queue.add([(head, 16)], [(data, 512), (head + 16, 1)])
            else:
                guest.queue.add([(head, 12), (data, 60)], [])
            guest.queue.publish()
        arena.truncate(regions[which], 0 if which else 4096)
        check.note(f"the memory of region {which} is cut short; kick")
        # Nothing of the arena is touched from here on: its pages are gone for us, too.
        os.eventfd_write(guest.queue.kick_fd.number, 1)
        time.sleep(0.05)
        guest.frontend.close()


@case("HOST-S84", 'vhost-user, "REM_MEM_REG"', level=Level.SHOULD, marks=HOSTILE, protocol=SLOTS,
      rows={"unknown": 0, "live": 1})  # fmt: skip
def a_region_that_is_not_to_be_removed(check: Check, live: int) -> None:
    """One that was never added is refused; one that a ring lies in goes, and the ring with it, without a crash."""
    with check.guest() as guest:
        region = guest.arena.regions[0]
        payload = single(region.gpa, region.length, region.front_uva) if live else single(1 << 50, MIB, 1 << 50)
        if not live:
            refuses(check, guest.frontend, R.REM_MEM_REG, payload)
            return
        word = attempt(guest.frontend, R.REM_MEM_REG, payload)
        check.expect(word != "silent", "an answer, or the end of the connection", word, Fault.WEDGE)
        if word != "done":
            return
        guest.queue.raw_push(0)
        guest.queue.kick(force=True)
        check.expect(check.quiet(guest.queue, 0.05), "nothing to be used any more", "a used element")


# Configuration space.


@case(
    "HOST-S110",
    'vhost-user, "Virtio device config space"',
    marks=HOSTILE,
    protocol=ProtocolFeature.CONFIG,
    rows={
        "size-257": config(0, 257, payload=bytes(257)),
        "size-says-more": config(0, 200, payload=bytes(8)),
        "size-says-less": config(0, 4, payload=bytes(60)),
        "size-4g": config(0, 0xFFFFFFFF, payload=bytes(8)),
        "offset-4g": config(0xFFFFFFFF, 8),
        "wraps": config(0xFFFFFFFC, 8),
        "past-the-end": config(255, 8),
    },
)
def a_range_that_is_no_configuration_space(check: Check, payload: bytes) -> None:
    """A range that cannot be is answered with no content, or ends the connection."""
    frontend = check.negotiated()
    try:
        frontend.send(R.GET_CONFIG, payload)
        length = len(frontend.reply(R.GET_CONFIG).payload)
    except DeviceGone:
        return
    except DeviceTimeout:
        raise Failed("an answer, or the end of the connection", "silence", Fault.WEDGE) from None
    lengths = {0, CONFIG_HEAD}  # "zero length of payload" is said of either length
    size = int.from_bytes(payload[4:8], "little")
    if size <= len(payload) - CONFIG_HEAD:
        lengths |= {CONFIG_HEAD + size, len(payload)}  # its own size is possible: answered so, or as long as it came
    check.expect(length in lengths, f"a payload of {sorted(lengths)} bytes", f"one of {length}")


@case(
    "HOST-S114",
    'vhost-user, "SET_CONFIG"',
    marks=HOSTILE,
    protocol=ACK | ProtocolFeature.CONFIG,
    kinds=("block",),
    rows={
        "capacity": config(0, 8, payload=bytes([255] * 8)),
        "everything": config(0, 60, payload=bytes([255] * 60)),
        "past-the-end": config(250, 6, payload=bytes(6)),
        "size-says-more": config(32, 200, payload=b"\1"),
        "offset-4g": config(0xFFFFFFFF, 1),
    },
)
def configuration_that_is_not_the_drivers(check: Check, payload: bytes) -> None:
    """A driver writes the fields that are its own, writeback: the rest stays as it is."""
    frontend = check.negotiated()
    before = frontend.config(0, 60)
    refuses(check, frontend, R.SET_CONFIG, payload)
    frontend.close()
    again = check.negotiated()
    check.equal(again.config(0, 60), before, "the configuration space as it was,")


# The wrong moment.


@case("HOST-S130", 'vhost-user, "Ring states"', marks=HOSTILE, protocol=ACK,
      rows={"nothing": "nothing", "features": "features", "memory": "memory"})  # fmt: skip
def a_ring_that_starts_too_early(check: Check, after: str) -> None:
    """A ring starts with what a start needs: before that, a kick descriptor is refused, or starts nothing."""
    frontend = check.negotiated()
    if after != "nothing":
        frontend.set_features()
    if after == "memory":
        frontend.set_mem_table(check.arena(Region(0x1000_0000, MIB)))
    with descriptor("eventfd") as number:
        word = attempt(frontend, R.SET_VRING_KICK, u64(check.target.work_ring), [number])
    check.expect(word != "silent", "an answer, or the end of the connection", word, Fault.WEDGE)


@case("HOST-S134", 'vhost-user, "GET_VRING_BASE"', marks=HOSTILE, rows={"twice": 2, "five-times": 5})
def a_base_of_a_ring_that_never_was(check: Check, times: int) -> None:
    """GET_VRING_BASE is answered in every state."""
    frontend = check.negotiated()
    for _ in range(times):
        word = attempt(frontend, R.GET_VRING_BASE, state(check.target.work_ring))
        check.expect(word in {"done", "closed"}, "a base, or the end of the connection", word, Fault.WEDGE)
        if word == "closed":
            return


@case("HOST-S135", 'vhost-user, "SET_FEATURES"', level=Level.SHOULD, marks=HOSTILE, protocol=ACK,
      rows={str(bit): bit for bit in (14, 17, 33, 36, 40, 41, 45, 60, 63)})  # fmt: skip
def features_that_were_not_offered(check: Check, bit: int) -> None:
    """A feature that was not offered is not to be acknowledged."""
    check.offers(not check.offered >> bit & 1, f"bit {bit} is offered")
    frontend = check.negotiated()
    refuses(check, frontend, R.SET_FEATURES, u64(frontend.features | 1 << bit))


@case("HOST-S136", 'vhost-user, "SET_PROTOCOL_FEATURES"', level=Level.SHOULD, marks=HOSTILE, protocol=ACK,
      rows={str(bit): bit for bit in (6, 7, 14, 17, 18, 23, 40, 63)})  # fmt: skip
def protocol_features_that_were_not_offered(check: Check, bit: int) -> None:
    """A protocol feature that was not offered is not to be acknowledged."""
    frontend = check.negotiated()
    check.offers(not int(frontend.protocol_offered) >> bit & 1, f"bit {bit} is offered")
    refuses(check, frontend, R.SET_PROTOCOL_FEATURES, u64(int(frontend.protocol_features) | 1 << bit))


@case("HOST-S146", 'vhost-user, "Ring states"', marks=HOSTILE, protocol=ACK,
      rows={"num": "num", "addr": "addr", "base": "base"})  # fmt: skip
def a_ring_that_is_told_anew_while_it_runs(check: Check, what: str) -> None:
    """What a running ring is told is refused, and it goes on as it was, or is taken, and harms nobody."""
    with check.guest() as guest:
        ring = check.target.work_ring
        desc, avail, used = guest.queue.uvas
        request, payload = {
            "num": (R.SET_VRING_NUM, state(ring, 1024)),
            "addr": (R.SET_VRING_ADDR, addr(ring, desc + 4096, used + 4096, avail + 4096)),
            "base": (R.SET_VRING_BASE, state(ring, 17)),
        }[what]
        word = attempt(guest.frontend, request, payload)
        check.expect(word != "silent", "an answer, or the end of the connection", word, Fault.WEDGE)
        if word == "refused":
            guest.works(2)


@case("HOST-S137", 'vhost-user, "RESET_DEVICE"', marks=HOSTILE, protocol=ProtocolFeature.RESET_DEVICE,
      rows={str(n): n for n in (1, 3, 50)})  # fmt: skip
def resets_without_end(check: Check, count: int) -> None:
    """A reset may come as often as it likes."""
    with check.guest() as guest:
        guest.works(1)
        for _ in range(count):
            guest.frontend.send(R.RESET_DEVICE)
        check.answers(guest.frontend)


@case("HOST-S161", 'vhost-user, "Communication"', marks=HOSTILE, timeout=30, rows={"100": 100, "held-20": 20})
def connections_without_end(check: Check, count: int) -> None:
    """Connections that come and go, or stay beside the first, keep nothing."""
    made = []
    for _ in range(count):
        try:
            frontend = check.connect() if count == 100 else check.connect(wait=0.2)
        except DeviceTimeout:
            if count == 100:
                raise
            break  # its backlog is full: it takes no more while the first is there
        if count == 100:
            frontend.close()
        else:
            made.append(frontend)
    for frontend in made:
        frontend.close()
