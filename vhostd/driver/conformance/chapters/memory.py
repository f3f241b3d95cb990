"""The guest's memory: tables of regions, and slots (vhost-user, "Memory region description", SET_MEM_TABLE, slots)."""

from vhostd.driver import layout
from vhostd.driver.arena import Arena, Region, adjacent
from vhostd.driver.conformance.case import BLOCK, Level, Row, case
from vhostd.driver.conformance.check import Check, Guest
from vhostd.driver.frontend import PROTOCOL_FEATURES
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import Refused
from vhostd.protocol.messages import MemRegion, SingleRegion
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Feature

R = FrontendRequest
P = ProtocolFeature
MIB = 1 << 20
REGION = 'vhost-user, "Memory region description"'
TABLE = 'vhost-user, "Front-end message types", VHOST_USER_SET_MEM_TABLE'
ADD = 'vhost-user, "Front-end message types", VHOST_USER_ADD_MEM_REG'
REMOVE = 'vhost-user, "Front-end message types", VHOST_USER_REM_MEM_REG'
SLOTS = 'vhost-user, "Front-end message types", VHOST_USER_GET_MAX_MEM_SLOTS'
WITHOUT_SLOTS = PROTOCOL_FEATURES & ~P.CONFIGURE_MEM_SLOTS

SHAPES: dict[str, list[Region]] = {
    "one": [Region(0x1000_0000, 8 * MIB)],
    "at-0": [Region(0, 8 * MIB)],
    "high": [Region(1 << 40, 8 * MIB)],
    "two": [Region(0, 4 * MIB), Region(1 << 32, 4 * MIB)],
    "touching": adjacent(0x10_0000, [MIB, 2 * MIB, 4 * MIB]),
    "out-of-order": [Region(1 << 33, 4 * MIB), Region(0, 4 * MIB), Region(1 << 30, 4 * MIB)],
    "offset": [Region(0x4000, 8 * MIB, mmap_offset=2 * MIB)],
    "offset-4k": [Region(0x4000, 8 * MIB, mmap_offset=4096)],
    "uva-4096": [Region(1 << 32, 8 * MIB, uva=4096)],
    "uva-is-gpa": [Region(1 << 32, 8 * MIB, uva=1 << 32)],
    "uva-below-gpa": [Region(1 << 32, 4 * MIB, uva=1 << 20), Region(1 << 20, 4 * MIB, uva=1 << 32)],
    "five": [Region(n << 30, 2 * MIB) for n in range(5)],
    "eight": [Region(n << 30, 2 * MIB) for n in range(8)],
    "4k": [Region(0, 8 * MIB), Region(1 << 32, 4096)],
}


def _serves_all(check: Check, arena: Arena, protocol: ProtocolFeature) -> None:
    """Run a ring whose parts lie in the first and last region, with buffers in each of them."""
    with check.guest(arena=arena, start=False, protocol_features=protocol, size=16) as guest:
        guest.session.start()
        for region in arena.regions:
            _use(check, guest, region)


def _use(check: Check, guest: Guest, region: Region) -> None:
    """Have a chain whose buffers all lie in `region` served."""
    arena, queue = guest.arena, guest.queue
    if check.is_block:
        at = arena.alloc(1024, 1, region)
        arena.write(at, bytes(8) + check.scratch.first.to_bytes(8, "little"))
        guest.add(queue, [(at, 16)], [(at + 16, 512), (at + 1000, 1)])
        used = queue.wait(check.timeout)
        check.equal([u.length for u in used], [513], "used length")
        check.equal(arena.read(at + 16, 512), check.scratch.known[:512], "the sector's bytes,")
    else:
        at = arena.alloc(128, 1, region)
        arena.write(at, bytes(12) + b"\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02\x88\xb5")
        guest.add(queue, [(at, 72)], [])
        check.equal(len(queue.wait(check.timeout)), 1, "so many used elements,")
    arena.free(at)


@case("VU-MEM-01", f"{TABLE}; {REGION}", rows=SHAPES)
def table(check: Check, regions: list[Region]) -> None:
    """SET_MEM_TABLE tells the memory, each region with its guest address, front-end address and offset in its file."""
    _serves_all(check, check.arena(*regions), WITHOUT_SLOTS)


@case("VU-MEM-02", f"{ADD}; {REGION}", protocol=P.CONFIGURE_MEM_SLOTS, rows=SHAPES)
def slots(check: Check, regions: list[Region]) -> None:
    """ADD_MEM_REG adds one region to the memory."""
    check.offers(check.target.offer.mem_slots >= len(regions), f"{len(regions)} memory slots")
    _serves_all(check, check.arena(*regions), PROTOCOL_FEATURES)


PARTS = {"desc": (1, 0, 0), "avail": (0, 1, 0), "used": (0, 0, 1), "all": (0, 1, 2)}


@case("VU-MEM-03", 'vhost-user, "A vring address description"; virtio 2.7', rows=PARTS)
def ring_over_regions(check: Check, places: tuple[int, int, int]) -> None:
    """The three parts of a ring are told apart, and may lie in different regions."""
    arena = check.arena(*(Region(n << 32, 2 * MIB, uva=(5 - n) << 33) for n in range(3)))
    with check.guest(arena=arena, start=False, features=int(Feature.VERSION_1 | Feature.PROTOCOL_FEATURES)) as guest:
        size = guest.queue.size
        plan = layout.modern_layout(size, event_idx=False)
        lengths = (plan.avail - plan.desc, plan.used - plan.avail, plan.length - plan.used)
        desc, avail, used = (
            arena.alloc(length, 4096, arena.regions[place]) for length, place in zip(lengths, places, strict=True)
        )
        queue = Virtqueue(arena, size, parts=(desc, avail, used))
        index = check.target.work_ring
        guest.session.queues[index].close()
        guest.session.queues[index] = check.keep(queue)
        guest.session.start()
        guest.works(4)
        guest.session.stop()
        guest.frontend.close()


@case("VU-MEM-04", f"{REGION}; virtio 2.7.5", kinds=BLOCK, rows={"2000": 2000, "1": 1, "511": 511, "2047": 2047})
def buffer_over_two_regions(check: Check, before: int) -> None:
    """Regions that touch in guest addresses are one memory: a buffer may cross from one to the next."""
    arena = check.arena(*adjacent(0x100_0000, [MIB, MIB]))
    with check.guest(arena=arena) as guest:
        at = arena.reserve(0x100_0000 + MIB - before, 2048)
        head = arena.alloc(17)
        arena.write(head, bytes(8) + check.scratch.first.to_bytes(8, "little"))
        guest.add(guest.queue, [(head, 16)], [(at, 2048), (head + 16, 1)])
        check.equal([used.length for used in guest.queue.wait(check.timeout)], [2049], "used length")
        check.equal(arena.read(at, 2048), check.scratch.known[:2048], "the bytes of four sectors,")


@case("VU-MEM-05", TABLE)
def table_replaced_while_running(check: Check) -> None:
    """A table that comes while rings run replaces the memory, and the rings go on: hot-plug without slots."""
    arena = check.arena(Region(0, 8 * MIB))
    with check.guest(arena=arena, protocol_features=WITHOUT_SLOTS) as guest:
        for n in range(4):
            guest.works(2)
            region = arena.add(Region((n + 1) << 32, 2 * MIB))
            guest.frontend.set_mem_table(arena)
            _use(check, guest, region)
            if n % 2:
                arena.remove(region)
                guest.frontend.set_mem_table(arena)
        guest.works(2)


@case("VU-MEM-06", TABLE)
def table_before_features(check: Check) -> None:
    """The memory may be told before the features are set, as crosvm and others do."""
    with check.guest(start=False, protocol_features=WITHOUT_SLOTS) as guest:
        guest.frontend.set_mem_table(guest.arena)
        guest.session.start()
        guest.works(2)


@case("VU-MEM-07", TABLE, rows={"2": 2, "10": 10, "100": 100})
def table_again_and_again(check: Check, times: int) -> None:
    """The same table again changes nothing."""
    with check.guest(protocol_features=WITHOUT_SLOTS) as guest:
        for _ in range(times):
            guest.frontend.set_mem_table(guest.arena)
        guest.works(4)


@case("VU-MEM-08", f"{TABLE}; {ADD}", protocol=P.CONFIGURE_MEM_SLOTS)
def table_with_slots(check: Check) -> None:
    """With slots negotiated a table may still be sent, and replaces what there is."""
    with check.guest(start=False) as guest:
        guest.frontend.set_mem_table(guest.arena)
        guest.session.start()
        guest.works(2)


@case("VU-SLOT-01", SLOTS, protocol=P.CONFIGURE_MEM_SLOTS)
def slots_are_told(check: Check) -> None:
    """GET_MAX_MEM_SLOTS returns how many regions may be added, at least one."""
    frontend = check.negotiated()
    count = frontend.ask_u64(R.GET_MAX_MEM_SLOTS)
    check.expect(count >= 1, "at least 1", str(count))
    check.equal(frontend.ask_u64(R.GET_MAX_MEM_SLOTS), count, "the same again,")


@case("VU-SLOT-02", SLOTS, protocol=P.CONFIGURE_MEM_SLOTS, timeout=60)
def as_many_as_told(check: Check) -> None:
    """As many regions as GET_MAX_MEM_SLOTS says can be added."""
    count = min(check.target.offer.mem_slots, 64)
    arena = check.arena(Region(0, 8 * MIB), *(Region(n << 30, 4096) for n in range(1, count)))
    with check.guest(arena=arena) as guest:
        check.equal(len(guest.frontend.regions), count, "so many regions,")
        _use(check, guest, arena.regions[-1])
        guest.works(1)


@case("VU-SLOT-03", f"{ADD}; {REMOVE}", protocol=P.CONFIGURE_MEM_SLOTS)
def come_and_go(check: Check) -> None:
    """Regions are added and removed while rings run; the others stay."""
    arena = check.arena(Region(0, 8 * MIB))
    with check.guest(arena=arena) as guest:
        for n in range(20):
            region = arena.add(Region((n + 1) << 32, MIB, uva=(n + 1) << 33))
            guest.frontend.add_region(arena, region)
            _use(check, guest, region)
            guest.frontend.remove_region(region)
            arena.remove(region)
        guest.works(4)


@case("VU-SLOT-04", REMOVE, protocol=P.CONFIGURE_MEM_SLOTS)
def another_at_the_same_place(check: Check) -> None:
    """A region that was removed makes room: another one may come to the same addresses."""
    arena = check.arena(Region(0, 8 * MIB))
    with check.guest(arena=arena) as guest:
        for n in range(6):
            region = arena.add(Region(1 << 32, MIB * (1 + n % 2)))
            guest.frontend.add_region(arena, region)
            _use(check, guest, region)
            guest.frontend.remove_region(region)
            arena.remove(region)


@case(
    "VU-SLOT-05", ADD, protocol=P.CONFIGURE_MEM_SLOTS, rows={"stop": False, "reset": Row(True, protocol=P.RESET_DEVICE)}
)
def the_map_survives(check: Check, reset: bool) -> None:
    """Regions that were added stay until they are removed: a stop or a reset of the device does not end them."""
    with check.guest() as guest:
        for _ in range(3):
            guest.works(2)
            guest.session.stop()
            if reset:
                guest.frontend.reset_device()
                for queue in guest.queues:
                    queue.reset()
            guest.session.start()
        guest.works(2)


@case("VU-SLOT-06", ADD, level=Level.SHOULD, protocol=P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK)
def overlapping(check: Check) -> None:
    """A region over another one's guest addresses cannot be added: the answer is not 0."""
    arena = check.arena(Region(0x1000_0000, 8 * MIB))
    frontend = check.negotiated()
    (region,) = arena.regions
    frontend.add_region(arena, region)
    answer = check.acked(
        frontend, R.ADD_MEM_REG, SingleRegion(MemRegion(region.gpa + MIB, MIB, 0x6000_0000_0000, 0)), [arena.fd(region)]
    )
    check.expect(answer != 0, "a refusal", "0: added")


@case("VU-SLOT-07", REMOVE, level=Level.SHOULD, protocol=P.CONFIGURE_MEM_SLOTS | P.REPLY_ACK)
def removed_once(check: Check) -> None:
    """A region is removed once: the second time there is none, and the answer is not 0."""
    arena = check.arena(Region(0x1000_0000, 8 * MIB))
    frontend = check.negotiated()
    (region,) = arena.regions
    frontend.add_region(arena, region)
    frontend.remove_region(region)
    frontend.regions.append(region)
    try:
        frontend.remove_region(region)
    except Refused:
        return
    check.expect(False, "a refusal", "0: removed again")
