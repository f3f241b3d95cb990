"""A network card on its socket: `vhostd net`, a guest of driver/, and the host behind the tap. Needs root."""

import contextlib
import hashlib
import json
import os
import struct
import time

import pytest

from tests.protocol.conftest import open_fds
from tests.support.net import GUEST, HOST, exchange, frame, tcp_segment, udp_frame, udp_port
from vhostd.driver.arena import Arena
from vhostd.driver.frontend import DEVICE_BITS, RING_FEATURES
from vhostd.driver.net import NetDriver
from vhostd.driver.netloop import rx_load, tx_load
from vhostd.driver.virtqueue import Virtqueue
from vhostd.errors import DeviceTimeout, Refused
from vhostd.protocol.messages import U64
from vhostd.spec.net import Feature
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature

pytestmark = pytest.mark.root  # a tap and a namespace of its own


@pytest.mark.parametrize("legacy", [False, True], ids=["modern", "legacy"])
@pytest.mark.parametrize("event_idx", [True, False], ids=["event", "flags"])
def test_frames_cross_both_ways(card, event_idx, legacy):
    """5.1.6, through daemon, socket and rings."""
    running = card()
    host = running.wire()
    features = DEVICE_BITS | RING_FEATURES
    if not event_idx:
        features &= ~RING_FEATURES.EVENT_IDX
    with running.session(features=features, legacy=legacy) as session:
        exchange(session.net(), host)
        assert session.stop() == [20, 20]


def test_the_connection_phase(card):
    """FEATURES 1.4, net: pairs in GET_QUEUE_NUM, MAC and MTU in the configuration space, what must not be offered."""
    running = card(queues=4, options=["--mac", "52:54:00:12:34:56", "--mtu", "9000"])
    with running.connect() as frontend:
        frontend.negotiate()
        assert frontend.queue_num == 4
        assert frontend.config(0, 12) == bytes.fromhex("525400123456") + struct.pack("<HHH", 1, 4, 9000)
        for feature in (Feature.MQ, Feature.MRG_RXBUF, Feature.CSUM, Feature.GUEST_TSO4, Feature.MTU, Feature.MAC):
            assert frontend.offered & feature, feature
        for feature in (Feature.CTRL_VQ, Feature.STATUS, Feature.GUEST_ANNOUNCE, Feature.HOST_UFO, Feature.GUEST_UFO):
            assert not frontend.offered & feature, feature
        assert frontend.protocol_offered & ProtocolFeature.NET_MTU
        assert frontend.protocol_offered & ProtocolFeature.RARP


@pytest.mark.parametrize("vnet_length", [3000, 65400])
def test_segments_of_64k_cross_whole(card, vnet_length):
    """5.1.6.2, 5.1.6.4: GSO frames, merged buffers."""
    running = card()
    host = running.wire(vnet=True)
    with running.session() as session:
        guest = session.net()
        for _ in range(3):
            guest.post(70, 1536)
            header, data = tcp_segment(vnet_length)
            host.send(header + data)
            got = guest.receive()
            assert got.frame == data
            assert got.header.gso_type == 1
            guest.send(data, got.header)
            assert host.receive()[10:] == data


def test_the_order_in_which_qemu_starts_a_card(card):
    """FEATURES 1.4: ENABLE before SET_FEATURES, KICK before CALL, SET_FEATURES again while pair 0 runs."""
    running = card(queues=2)
    host = running.wire()
    with running.connect() as frontend, Arena.of(16 << 20) as arena:
        frontend.negotiate()
        for ring in range(4):
            frontend.enable(ring, enabled=ring < 2)
        frontend.set_features()
        frontend.share(arena)
        rings = [Virtqueue(arena, 256, event_idx=True) for _ in range(4)]
        for pair in range(2):
            frontend.set_features()
            for ring in (2 * pair, 2 * pair + 1):
                frontend.start_ring(ring, rings[ring])
                frontend.set_call(ring, rings[ring].call_fd)
        guests = [NetDriver(*rings[n : n + 2], frontend.features) for n in (0, 2)]
        exchange(guests[0], host)
        for ring in (2, 3):
            frontend.enable(ring)
        guests[1].send(frame(b"second", to=HOST, source=GUEST, length=60))
        assert host.receive() == frame(b"second", to=HOST, source=GUEST, length=60)
        # and stops it: GET_VRING_BASE without ENABLE 0, then ENABLE again
        assert [frontend.get_base(ring) for ring in range(4)] == [20, 20, 0, 1]
        frontend.enable(0)
        frontend.set_features()
        frontend.start_ring(0, rings[0])
        frontend.start_ring(1, rings[1])
        exchange(guests[0], host)
        frontend.close()
        for ring in rings:
            ring.close()


def test_n46_pairs_switched_under_traffic(card):
    """MQ 1 to 4 to 1 pairs: frames go to who is enabled, nothing is lost beyond the switch, nothing leaks."""
    running = card(queues=4)
    host = running.wire()
    with running.session(pairs=4) as session:
        guests = [session.net(pair) for pair in range(4)]
        for guest in guests:
            guest.post(250, 256)
        fds = open_fds(running.backend.pids()[-1])
        for _ in range(40):
            for pair in range(1, 4):
                for ring in (2 * pair, 2 * pair + 1):
                    session.frontend.enable(ring, enabled=False)
            for n in range(4):
                host.send(udp_frame(1000 + n))
            assert [udp_port(guests[0].receive().frame) for _ in range(4)] == [1000, 1001, 1002, 1003]
            guests[0].post(4, 256)
            for pair in range(1, 4):
                for ring in (2 * pair, 2 * pair + 1):
                    session.frontend.enable(ring)
        assert open_fds(running.backend.pids()[-1]) == fds
        # Which of four queues a frame of no known flow takes is the kernel's choice, another one after each boot.
        for ring in range(2, 8):
            session.frontend.enable(ring, enabled=False)
        exchange(guests[0], host, count=1)


def test_a_front_end_that_goes_and_comes_back(card):
    """Closed in full flight, again and again: the next one finds a clean card, no descriptor and no memory stays."""
    running = card()
    host = running.wire()
    pid = running.backend.pids()[-1]
    fds = []
    for round_ in range(8):
        with running.session(start=False) as session:
            session.start()
            guest = session.net()
            exchange(guest, host, count=3)
            guest.post(64, 2048)
            for _ in range(100):
                host.send(frame(length=600))
            while round_ % 2 and not host.silent(0):
                host.receive()
        deadline = time.monotonic() + 2
        while len(os.listdir(f"/proc/{pid}/fd")) > (fds[-1] if fds else 0) and time.monotonic() < deadline and fds:
            time.sleep(0.01)
        # what one guest left in the tap is not for the next: a ring takes what waits, so it is emptied here
        with running.session() as session:
            guest = session.net()
            guest.post(200, 2048)
            with contextlib.suppress(DeviceTimeout):
                while True:
                    guest.receive(0.05)
        time.sleep(0.05)
        fds.append(open_fds(pid))
    assert len(set(fds[1:])) == 1


def test_n47_mtu(card):
    """NET_SET_MTU: 0, 67 and 65536 are refused, and more than the tap has, which a confined process cannot change."""
    running = card(options=["--mtu", "4000"])
    with running.session() as session:
        for bad in (0, 67, 65536, 1 << 40, 4001):
            with pytest.raises(Refused):
                session.frontend.tell(FrontendRequest.NET_SET_MTU, U64(bad))
        assert session.frontend.config(0, 12)[10:] == struct.pack("<H", 4000)
        for good in (4000, 68, 1500):
            session.frontend.tell(FrontendRequest.NET_SET_MTU, U64(good))
            assert session.frontend.config(0, 12)[10:] == struct.pack("<H", good)
    assert "mtu 4000" in running.netns.ip("link", "show", "tap0")


def test_n47_announcement(card):
    """SEND_RARP: QEMU's first comes before there are rings."""
    running = card(queues=2)
    host = running.wire()
    with running.connect() as frontend:
        frontend.negotiate()
        frontend.tell(FrontendRequest.SEND_RARP, U64(int.from_bytes(GUEST, "little")))
        got = host.receive()
        assert got[:14] == b"\xff" * 6 + GUEST + b"\x80\x35"
        with pytest.raises(Refused):
            frontend.tell(FrontendRequest.SEND_RARP, U64(0))


def test_n36_memory_goes_and_comes_under_traffic(card):
    """Regions are added and removed while frames flow: nothing is written where it should not be, nothing stops."""
    running = card()
    host = running.wire()
    with running.session() as session:
        guest = session.net()
        frontend = session.frontend
        guest.post(250, 2048)
        region = None
        for n in range(30):
            host.send(frame(n.to_bytes(2), length=500))
            if region is None:
                region = session.arena.add(type(session.arena.regions[0])(0x9000_0000, 1 << 20))
                frontend.add_region(session.arena, region)
            else:
                frontend.remove_region(region)
                session.arena.remove(region)
                region = None
            assert guest.receive().frame[14:16] == n.to_bytes(2)


@pytest.mark.parametrize("poll", [True, False], ids=["poll", "event"])
@pytest.mark.parametrize("size", [64, 1514, 65400])
def test_a_load_at_full_depth(card, size, poll):
    """P7: as fast as it goes, each way: every frame is taken once, none is lost on the way to the tap."""
    running = card()
    with running.session(memory_len=64 << 20) as session:
        header, data = tcp_segment(size - 54, to=HOST, source=GUEST)
        sent = tx_load(
            session.queues[1],
            frame=data,
            header=header.ljust(12, b"\0"),
            depth=64 if size < 2000 else 24,
            poll=poll,
            duration_ns=100_000_000,
        )
        (link,) = json.loads(running.netns.ip("-j", "-s", "link", "show", "tap0"))
        assert link["stats64"]["rx"]["packets"] == sent.frames > 100
        wire = running.wire(vnet=True)
        header, data = tcp_segment(size - 54)
        got = rx_load(
            session.queues[0],
            wire_fd=wire.socket.fileno(),
            frame=header + data,
            header_len=12,
            depth=256,
            buffer_len=2048,
            window=64 if size < 2000 else 4,
            poll=poll,
            duration_ns=100_000_000,
        )
        assert got.frames > 100
        assert got.bytes == got.frames * len(data)


def test_a_flood_without_buffers_costs_nothing(card):
    """N30: seen from outside, in CPU time of the whole process."""
    running = card()
    host = running.wire()
    with running.session() as session:
        guest = session.net()
        guest.post(1, 2048)
        host.send(frame(length=100))
        host.send(frame(length=100))
        guest.receive()
        time.sleep(0.05)
        before = running.backend.cpu_ns()
        for _ in range(20000):
            host.send(frame(length=100))
        assert running.backend.cpu_ns() - before < 20_000_000


def test_an_idle_card_costs_nothing(card):
    """DESIGN 10: no wake-ups and no CPU when nothing happens."""
    running = card()
    host = running.wire()
    with running.session() as session:
        exchange(session.net(), host, count=3)
        time.sleep(0.1)
        before = running.backend.cpu_ns()
        time.sleep(0.5)
        assert running.backend.cpu_ns() - before < 1_000_000


def test_a_long_run_both_ways(card):
    """P7, 2.7.6: 70000 frames each way in bursts: none lost, changed or out of order."""
    running = card()
    host = running.wire()
    with running.session(base=60000, memory_len=64 << 20) as session:
        guest = session.net()
        ours, theirs = hashlib.sha256(), hashlib.sha256()
        guest.post(240, 256)
        count = 0
        while count < 7000:
            burst = [frame((count + n).to_bytes(4), length=60 + n % 100) for n in range(200)]
            for data in burst:
                host.send(data)
                ours.update(data)
            for _ in burst:
                theirs.update(guest.receive().frame)
            guest.post(len(burst), 256)
            burst = [frame((count + n).to_bytes(4), to=HOST, source=GUEST, length=60 + n % 100) for n in range(100)]
            for data in burst:
                guest.send(data)
                ours.update(data)
            guest.drain()
            for _ in burst:
                theirs.update(host.receive())
            count += 200
        assert ours.digest() == theirs.digest()
