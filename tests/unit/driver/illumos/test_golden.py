"""illumos_E3 to illumos_E6: guest memory, byte for byte, as the tables of the contract have it."""

import re
from pathlib import Path

import pytest

from tests.support.net import frame
from tests.support.paper import Paper, card_config, disk_config, serves_id, use
from vhostd.driver.illumos import IllumosGuest, Layout, Offload, attach
from vhostd.driver.illumos.control import Control
from vhostd.driver.illumos.memory import Zone
from vhostd.driver.illumos.net import Receive, Transmit
from vhostd.driver.illumos.ring import Ring
from vhostd.driver.illumos.startup import Card
from vhostd.spec.blk import Request
from vhostd.spec.virtio import Feature

GOLDEN = Path(__file__).parent / "golden"
NAMES = {"T": Zone.TABLES.value[0], "R": Zone.HEADERS.value[0]}
LINE = re.compile(r"(?P<place>\w+)(?:\+(?P<offset>[0-9a-f]+))?: (?P<bytes>[0-9a-f ]+?)\s*(?:\|.*)?")


def golden(name):
    """The lines of a file: (place, offset, bytes)."""
    found = []
    for line in (GOLDEN / f"{name}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        assert match, line
        found.append((match["place"], int(match["offset"] or "0", 16), bytes.fromhex(match["bytes"])))
    return found


def compare(name, memory, ring, table_len=0):
    """The ring block and the first table hold the file's bytes and zeroes; other places hold what it names."""
    whole = {"ring": bytearray(len(ring.dump())), "T": bytearray(table_len)}
    for place, offset, data in golden(name):
        if place in whole:
            assert offset + len(data) <= len(whole[place]), (place, offset)
            whole[place][offset : offset + len(data)] = data
        else:
            gpa = NAMES.get(place) or int(place, 16)
            assert memory.arena.read(gpa + offset, len(data)).hex(" ") == data.hex(" "), (name, place)
    assert ring.dump().hex(" ", 16) == whole["ring"].hex(" ", 16)
    assert memory.arena.read(NAMES["T"], table_len).hex(" ", 16) == whole["T"].hex(" ", 16) if table_len else True


def disk(generation, transport, *, indirect=True):
    """An attached disk on paper, its GET_ID answered, and what memory was when it had been asked."""
    paper = Paper(config=disk_config())
    serves_id(b"serial0\0".ljust(20, b"\0"))(paper)
    guest = IllumosGuest("block", generation, transport, indirect, layout=Layout.SCATTERED)
    paper.memory.layout = Layout.SCATTERED
    return attach(guest, paper, paper.memory)


TRANSPORTS = pytest.mark.parametrize("transport", ["legacy", "modern"])
GENERATIONS = pytest.mark.parametrize("generation", [2019, 2026])


@TRANSPORTS
@GENERATIONS
@pytest.mark.parametrize("indirect", [True, False], ids=["indirect", "direct"])
def test_illumos_E4_get_id(transport, generation, indirect, monkeypatch):
    """(a), (b): zero memory at DRIVER_OK; then GET_ID, in either form."""
    seen = []

    def look(self):
        if not seen:
            name = "get_id_indirect" if indirect else "get_id_direct"
            compare(name, self.memory, self, 128 * 16 if indirect else 0)
        seen.append(self)

    real = Ring.submit

    def submit(self, chain, token=None):
        if not seen:
            compare("startup_block", self.memory, self)
        real(self, chain, token)

    monkeypatch.setattr(Ring, "submit", submit)
    flush = Ring.flush
    monkeypatch.setattr(Ring, "flush", lambda self: (flush(self), look(self)))
    attached = disk(generation, transport, indirect=indirect)
    assert len(seen) == 1
    assert attached.disk.serial == b"serial0"


@TRANSPORTS
@pytest.mark.parametrize(
    ("name", "kind", "sector", "length"),
    [("read", Request.IN, 0x800, 8192), ("write", Request.OUT, 0x800, 8192), ("flush", Request.FLUSH, 0, 0)],
)
def test_illumos_E4_first_request(transport, name, kind, sector, length):
    """(c): the request after GET_ID, of the driver that keeps its chains."""
    attached = disk(2026, transport)
    ring, memory = attached.rings[0], attached.memory
    used = ring.layout.used
    pieces = list(memory.buffer(Zone.DATA, length).pieces) if length else []
    attached.disk.submit(kind, sector, pieces)
    memory.arena.fill(ring.gpa + used, 12, 0)  # what the device wrote for GET_ID is not the driver's
    compare(name, memory, ring, 128 * 16)


@TRANSPORTS
def test_illumos_E4_discard(transport):
    """(c): one segment of 16 bytes."""
    attached = disk(2026, transport)
    ring, memory = attached.rings[0], attached.memory
    real = ring.flush

    def flush():
        memory.arena.fill(ring.gpa + ring.layout.used, 12, 0)
        compare("discard", memory, ring, 128 * 16)
        real()
        memory.arena.write(ring.gpa + ring.layout.used, b"\0\0\1\0" + bytes(4) + b"\x15\0\0\0")
        use(ring, 0, 1)

    # It is compared before the index is out, which is in the file: so put it out first.
    ring.flush = lambda: (ring._avail.__setitem__(1, 2), flush())
    attached.disk.discard((0x1000, 0x800))


@TRANSPORTS
def test_illumos_E4_head_of_an_older_driver(transport):
    """E.3: a chain for each request: the second has the next number, though the first came back."""
    attached = disk(2019, transport)
    ring = attached.rings[0]
    attached.disk.submit(Request.FLUSH)
    assert ring.dump()[0x1000:0x1008] == bytes.fromhex("00 00 02 00 00 00 01 00")
    assert ring.dump()[16:32] == bytes.fromhex("00 00 00 11 00 00 00 00 20 00 00 00 04 00 00 00")


@GENERATIONS
@TRANSPORTS
def test_illumos_E1_rings_of_a_card_after_start_up(generation, transport):
    """(a): avail.flags is 1 on receive and transmit rings directly after DRIVER_OK."""
    paper = Paper(config=card_config())
    attached = attach(IllumosGuest("net", generation, transport), paper, paper.memory)
    assert len(attached.rings) == (2 if generation == 2019 else 3)
    for ring in attached.rings:
        compare("startup_net", paper.memory, ring)


def receive(transport, generation=2019, *, size=4, indirect=True, **knobs):
    paper = Paper()
    paper.memory.layout = Layout.SCATTERED
    legacy = transport == "legacy"
    ring = Ring(paper.memory, 0, size, legacy=legacy, indirect=indirect)
    card = Card(0 if legacy else int(Feature.VERSION_1), bytes(6), 1500, 1)
    return Receive(IllumosGuest("net", generation, transport, **knobs), paper.memory, ring, card)


@GENERATIONS
@TRANSPORTS
def test_illumos_E5_fill(generation, transport):
    """(d): four buffers in order, published in one step with one kick."""
    rx = receive(transport, generation)
    rx.start()
    compare(f"rx_fill_{transport}", rx.memory, rx.ring, 64 * 16)
    assert rx.ring.kicks == 1
    last = rx.memory.arena.read(0x1100_3000 + 16, 16)
    assert last == bytes.fromhex("0e 60 06 20 00 00 00 00 f2 0f 00 00 03 00 02 00")


@GENERATIONS
@TRANSPORTS
def test_illumos_E5_three_frames_received_and_posted_again(generation, transport):
    """(e): small frames are copied, and their buffers go back last freed first."""
    rx = receive(transport, generation)
    rx.start()
    header = bytes(10) if transport == "legacy" else bytes(10) + b"\1\0"
    for head in range(3):
        data = frame(bytes([head]), length=100)
        buffer = rx.ring.in_flight[head].token.buffer
        rx.memory.write(buffer.cut(0, len(header)), header)
        rx.memory.write(buffer.cut(14, len(data)), data)
        use(rx.ring, head, len(header) + len(data), call=head == 2)
    got = rx.wait()
    assert [item.data[14] for item in got] == [0, 1, 2]
    assert all(item.loan is None for item in got)
    compare(f"rx_reposted_{transport}", rx.memory, rx.ring, 64 * 16)
    assert rx.ring.kicks == 2


def test_illumos_E5_direct_chains_of_18():
    """E.5: fourteen buffers on a ring of 256, heads 0, 18, ...; the fifteenth fails, and is counted at each refill."""
    rx = receive("legacy", size=256, indirect=False)
    rx.start()
    assert list(rx.ring.in_flight) == [18 * n for n in range(14)]
    assert rx.counters.refill_short == 1
    assert rx.ring.dump()[16 * 17 :][:16] == bytes.fromhex("00 00 02 20 00 00 00 00 2a 00 00 00 02 00 00 00")


def test_illumos_E5_contiguous_buffer():
    """E.5: two entries, of 10 and 65,564 bytes; 12 and 65,564 in a modern ring."""
    rx = receive("legacy")
    rx.memory.layout = Layout.CONTIGUOUS
    again = Receive(rx.guest, rx.memory, Ring(rx.memory, 0, 4, legacy=True, indirect=True), rx.card)
    again.start()
    chain = again.ring.in_flight[0]
    assert [length for _, length, _ in chain.entries] == [10, 65564]
    assert chain.writable_len == 65574


def transmit(transport, generation=2019):
    paper = Paper()
    ring = Ring(paper.memory, 1, 256, legacy=transport == "legacy", indirect=True)
    card = Card(0 if transport == "legacy" else int(Feature.VERSION_1), bytes(6), 1500, 1)
    return Transmit(IllumosGuest("net", generation, transport), paper.memory, ring, card)


@TRANSPORTS
def test_illumos_E6_inline(transport):
    """(f): an ARP of 42 bytes, copied and not padded."""
    tx = transmit(transport)
    tx.send(frame(length=42))
    compare(f"tx_inline_{transport}", tx.memory, tx.ring, 64 * 16)
    assert tx.memory.arena.read(0x3000_000E, 42) == frame(length=42)


PIECES = [(0x3100_0F00, 256), (0x3100_2000, 0), (0x3200_4000, 1258)]


@pytest.mark.parametrize(
    ("name", "transport", "offload"),
    [
        ("tx_external_legacy", "legacy", Offload()),
        ("tx_tso_2019_legacy", "legacy", Offload(mss=1448)),
        ("tx_tso_2026_modern", "modern", Offload(mss=1448, hdr_len=66)),
    ],
)
def test_illumos_E6_external(name, transport, offload):
    """(f): a mapped frame in two pieces, and a block without bytes that is skipped."""
    tx = transmit(transport)
    tx.send(frame(length=1514), offload, PIECES)
    compare(name, tx.memory, tx.ring, 64 * 16)


@pytest.mark.parametrize("which", ["promiscuous", "pairs"])
@TRANSPORTS
def test_illumos_E6_control(which, transport):
    """(g): the two requests of the newer driver."""
    paper = Paper()
    ring = Ring(paper.memory, 2, 256, legacy=transport == "legacy", indirect=True)
    control = Control(paper.memory, ring)
    control.submit(*{"promiscuous": (0, 0, b"\1"), "pairs": (4, 0, b"\3\0")}[which])
    compare(f"control_{which}", paper.memory, ring, 3 * 16)
    use(ring, 0, 1)
    assert control.wait()
