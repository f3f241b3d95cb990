"""Frames that no driver sends, and buffers that hold none (HOSTILE N1 to N36)."""

import struct
from collections.abc import Callable

from vhostd.driver.conformance.case import NET, Mark, case
from vhostd.driver.conformance.check import Check, Guest
from vhostd.driver.conformance.hostile.attacks import FAR
from vhostd.driver.conformance.hostile.tools import R, held_to_telling, how_told, refuses
from vhostd.driver.frames import GUEST, HOST, frame
from vhostd.driver.net import NetHeader
from vhostd.errors import DeviceError
from vhostd.spec.net import GSO_ECN, GsoType
from vhostd.spec.vhost_user import ProtocolFeature

HOSTILE = [Mark.HOSTILE]
SOUND = frame(to=HOST, source=GUEST, length=100)


def _sends(check: Check, guest: Guest, data: bytes, cuts: tuple[int, ...] = ()) -> None:
    """Send bytes as one chain; hold the back-end to returning it with length 0, or to breaking the ring loudly."""
    at = guest.arena.alloc(len(data) + 16)
    guest.arena.write(at, data)
    buffers, start = [], 0
    for length in (*cuts, len(data) - sum(cuts)):
        if length:
            buffers.append((at + start, length))
            start += length
    _gives_back(check, guest, buffers)


def _gives_back(check: Check, guest: Guest, readable: list[tuple[int, int]]) -> None:
    queue, before = guest.queue, guest.queue.used_idx
    guest.add(queue, readable, [])
    said = how_told(guest, queue, lambda: queue.used_idx != before)
    if queue.used_idx == before:
        held_to_telling(check, said, "the chain to be returned")
        return
    (used,) = queue.reap()
    check.equal(used.length, 0, "used length")
    guest.works(2)


HEADERS: dict[str, NetHeader] = {
    "N20-start-beyond": NetHeader(1, 0, 0, 0, 200, 16),
    "N20-offset-beyond": NetHeader(1, 0, 0, 0, 34, 200),
    "N20-in-the-last-byte": NetHeader(1, 0, 0, 0, 90, 9),
    "N20-sum-wraps": NetHeader(1, 0, 0, 0, 65535, 3),
    "N20-both-at-the-top": NetHeader(1, 0, 0, 0, 65535, 65535),
    "N21-unknown-flags": NetHeader(0xFE, 0, 0, 0, 0, 0),
    "N22-unknown-type": NetHeader(1, 0x7F, 54, 1000, 34, 16),
    "N22-size-0": NetHeader(1, GsoType.TCPV4, 54, 0, 34, 16),
    "N22-size-1": NetHeader(1, GsoType.TCPV4, 54, 1, 34, 16),
    "N22-size-65535": NetHeader(1, GsoType.TCPV4, 54, 65535, 34, 16),
    "N22-ecn-alone": NetHeader(1, GSO_ECN, 54, 1000, 34, 16),
    "N23-tcp-that-is-none": NetHeader(1, GsoType.TCPV4, 54, 40, 34, 16),
    "N23-tcp6-that-is-none": NetHeader(1, GsoType.TCPV6, 74, 40, 54, 16),
    "N24-headers-of-no-bytes": NetHeader(1, 0, 0, 0, 34, 16),
    "N24-headers-beyond-the-frame": NetHeader(1, GsoType.TCPV4, 65535, 40, 34, 16),
}
LENGTHS = (0, 1, 13, 65550, 70000, 256 << 10)


@case("HOST-N1", "virtio 5.1.6.2", kinds=NET, marks=HOSTILE, rows={str(n): n for n in (1, 9, 11)})
def a_chain_shorter_than_its_header(check: Check, length: int) -> None:
    """A chain without a whole header is no frame: it is returned, and the card goes on."""
    with check.guest() as guest:
        _sends(check, guest, bytes(length))


@case("HOST-N3", "virtio 5.1.6.2", kinds=NET, marks=HOSTILE, rows={str(n): n for n in LENGTHS})
def a_frame_of_a_length_that_none_has(check: Check, length: int) -> None:
    """A frame without an Ethernet header, or longer than any, is returned, and the card goes on."""
    with check.guest() as guest:
        header = guest.net().header_len
        _sends(check, guest, bytes(header) + SOUND[:length].ljust(length, b"x"), (header,))


@case("HOST-N20", "virtio 5.1.6.2.2", kinds=NET, marks=HOSTILE, rows=HEADERS)
def a_header_that_cannot_be(check: Check, header: NetHeader) -> None:
    """What a header asks for and cannot be done harms nobody: the chain is returned, and the card goes on."""
    with check.guest() as guest:
        length = guest.net().header_len
        _sends(check, guest, header.pack(length) + SOUND, (length,))


BUFFERS: dict[str, Callable[[int], list[tuple[int, int]]]] = {
    "frame-unmapped": lambda header: [(header, 12), (FAR, 100)],
    "header-unmapped": lambda header: [(FAR, 12), (header, 100)],
    "frame-wraps": lambda header: [(header, 12), (2**64 - 64, 100)],
    "frame-at-the-top": lambda header: [(header, 12), (2**64 - 1, 1)],
    "frame-of-4-GiB": lambda header: [(header, 12), (FAR, 0xFFFFFF00)],
}


@case("HOST-N13", "virtio 5.1.6.2", kinds=NET, marks=HOSTILE, rows=BUFFERS)
def a_frame_that_lies_nowhere(check: Check, make: Callable[[int], list[tuple[int, int]]]) -> None:
    """A frame outside of guest memory is returned unsent, or breaks its ring loudly."""
    with check.guest() as guest:
        at = guest.arena.alloc(256)
        _gives_back(check, guest, make(at))


@case("HOST-N4", "virtio 5.1.6.2", kinds=NET, marks=HOSTILE)
def a_frame_to_be_written(check: Check) -> None:
    """A device-writable buffer on the transmit queue is not read, nor written."""
    with check.guest() as guest:
        at = guest.arena.alloc(256)
        guest.arena.fill(at, 256, 0xA5)
        try:
            guest.add(guest.queue, [], [(at, 256)])
            guest.queue.wait(check.timeout)
        except DeviceError:
            pass
        check.equal(guest.arena.read(at, 256), b"\xa5" * 256, "the buffer as it was,")


@case("HOST-N31", "virtio 5.1.6.3", kinds=NET, marks=[Mark.HOSTILE, Mark.WIRE],
      rows={str(n): n for n in (1, 9, 11, 12, 13)})  # fmt: skip
def a_receive_buffer_shorter_than_a_header(check: Check, length: int) -> None:
    """A buffer that is too short for a header and a frame holds none; others are used, and nothing spins."""
    wire = check.wire()
    with check.guest() as guest:
        rx = guest.queues[0]
        for _ in range(4):
            at = guest.arena.alloc(length + 16)
            guest.arena.fill(at, length + 16, 0xA5)
            rx.add([], [(at, length)])
        for _ in range(16):
            rx.add([], [(guest.arena.alloc(2048), 2048)])
        rx.kick(force=True)
        for _ in range(8):
            wire.send(frame(length=200))
        frames: list[int] = []

        def filled() -> bool:
            frames.extend(used.length for used in rx.reap() if used.length > 200)
            return bool(frames)

        said = how_told(guest, rx, filled)
        if not frames:
            held_to_telling(check, said, "a frame in one of the others")
        check.equal(guest.arena.read(at + length, 16), b"\xa5" * 16, "what lies behind the buffer as it was,")


@case("HOST-N33", "virtio 5.1.6.4", kinds=NET, marks=[Mark.HOSTILE, Mark.WIRE])
def a_receive_buffer_that_lies_nowhere(check: Check) -> None:
    """A buffer outside of guest memory is returned empty, or breaks its ring; the other ring goes on."""
    wire = check.wire()
    with check.guest() as guest:
        rx = guest.queues[0]
        before = rx.used_idx
        rx.add([], [(FAR, 2048)])
        rx.kick(force=True)
        wire.send(frame(length=200))
        said = how_told(guest, rx, lambda: rx.used_idx != before)
        if rx.used_idx != before:
            check.equal([used.length for used in rx.reap()], [0], "used length")
        elif said:
            held_to_telling(check, said)
        guest.works(2)


@case("HOST-N35", "virtio 5.1.6.3", kinds=NET, marks=[Mark.HOSTILE, Mark.WIRE])
def a_receive_buffer_to_be_read(check: Check) -> None:
    """A device-readable buffer on the receive queue is not written."""
    wire = check.wire()
    with check.guest() as guest:
        rx = guest.queues[0]
        at = guest.arena.alloc(2048)
        guest.arena.fill(at, 2048, 0xA5)
        rx.add([(at, 2048)], [])
        rx.kick(force=True)
        for _ in range(4):
            wire.send(frame(length=200))
        check.quiet(rx, 0.1)
        rx.reap()  # raises for a length, since nothing of it was writable
        check.equal(guest.arena.read(at, 2048), b"\xa5" * 2048, "the buffer as it was,")


@case("HOST-N47", 'vhost-user, "NET_SET_MTU"', kinds=NET, marks=HOSTILE,
      protocol=ProtocolFeature.NET_MTU | ProtocolFeature.REPLY_ACK,
      rows={str(n): n for n in (0, 67, 65536, 1 << 40)})  # fmt: skip
def a_size_that_no_frame_has(check: Check, mtu: int) -> None:
    """An MTU is between 68 and 65535 (5.1.4.1)."""
    frontend = check.negotiated()
    refuses(check, frontend, R.NET_SET_MTU, struct.pack("<Q", mtu))
