"""Each front-end's order, played on a running back-end, with requests between."""

import os
import time

import pytest

from tests.protocol.conftest import PATTERN_LEN, pattern
from tests.support.net import GUEST, HOST, frame
from vhostd.driver.profiles import PROFILES, open_profile
from vhostd.errors import DeviceError, DeviceTimeout, LocalProtocolError
from vhostd.spec.vhost_user import ProtocolFeature

BLOCK = [name for name, profile in PROFILES.items() if "block" in profile.orders]

# What qemu-storage-daemon 7.2 does with an order that it does not serve: its own failures, each reproduced here.
QSD = {
    "spdk": (DeviceError, "GET_CONFIG: asked with 268 bytes, got 0"),  # refuses to give all 256 bytes there may be
}


def reads_and_writes(session, disk, sector):
    """Each ring reads what the image holds, and writes what it then holds."""
    for index in range(len(session.queues)):
        driver = session.block(index)
        assert driver.read(3, 4096) == pattern(3 * 512, 4096)
        data = os.urandom(1024)
        driver.write(sector + 8 * index, data)
        assert driver.read(sector + 8 * index, 1024) == data
        assert disk.on_disk(512 * (sector + 8 * index), 1024) == data


def through_its_life(session, disk, maker):
    """Whatever this front-end does to a device in its life."""
    sector = PATTERN_LEN // 512
    reads_and_writes(session, disk, sector)
    order = session.order
    if order.pause is not None:
        session.pause()
        driver = session.block()
        pending = driver.submit(0, 3, read_len=512)
        if maker == "vhostd":
            with pytest.raises(DeviceTimeout):
                driver.collect(0.1)
            session.resume()
            driver.complete(pending)
        else:  # "Ring states": a ring that is disabled is not processed. qemu-storage-daemon 7.2 goes on.
            assert driver.collect(1) == [pending], "a ring that is disabled is no longer served: good news"
            session.resume()
        assert pending.completion.data == pattern(3 * 512, 512)
    if order.restart is not None:
        bases = session.stop()
        assert bases == [queue.used_idx for queue in session.queues]
        session.start()
        reads_and_writes(session, disk, sector + 100)
    if order.reset is not None:
        session.reset()
        reads_and_writes(session, disk, sector + 200)
    if order.reconnect is not None:
        session.reconnect()
        reads_and_writes(session, disk, sector + 300)
    session.stop()


@pytest.mark.parametrize("name", BLOCK)
def test_a_disk_is_served_in_the_order_of(start, maker, name):
    """FEATURES 1.4 and the sources that each step names."""
    disk = start(queues=2)
    if maker == "qemu-storage-daemon" and name in QSD:
        kind, text = QSD[name]
        with pytest.raises(kind, match=text), open_profile(disk.socket, name, "block", timeout=1) as session:
            through_its_life(session, disk, maker)
        return
    with open_profile(disk.socket, name, "block", queues=2) as session:
        through_its_life(session, disk, maker)


@pytest.mark.parametrize("maker", ["vhostd"], indirect=True)
@pytest.mark.parametrize("name", BLOCK)
def test_one_order_after_another_on_one_back_end(disk, name):
    """A front-end's end, however abrupt, leaves the back-end ready for the next, which is another."""
    for each in (name, "qemu-11"):
        with open_profile(disk.socket, each, "block") as session:
            reads_and_writes(session, disk, PATTERN_LEN // 512)


@pytest.mark.parametrize("maker", ["vhostd"], indirect=True)
def test_what_is_agreed_is_the_front_ends_choice(disk):
    """Firecracker agrees to CONFIG alone, and drives its ring without indirect tables."""
    with open_profile(disk.socket, "firecracker", "block") as session:
        assert session.frontend.protocol_features == ProtocolFeature.CONFIG
        assert not session.queues[0].indirect
        with pytest.raises(LocalProtocolError, match="no restart"):
            session.start()


def test_a_profile_that_there_is_not(tmp_path):
    with pytest.raises(LocalProtocolError, match="no profile 'xen'"), open_profile(tmp_path, "xen", "block"):
        pass
    with pytest.raises(LocalProtocolError, match="spdk has no net"), open_profile(tmp_path, "spdk", "net"):
        pass


NET = [name for name, profile in PROFILES.items() if "net" in profile.orders]


@pytest.mark.root
@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("name", NET)
def test_a_card_is_served_in_the_order_of(card, name, pairs):
    """FEATURES 1.4 and the sources that each step names; frames cross both ways after each of them."""
    running = card(queues=2)
    host = running.wire()
    with open_profile(running.backend.socket, name, "net", queues=pairs, memory_len=64 << 20) as session:
        exchange_on_all(session, host, pairs)
        if session.order.pause is not None:
            session.pause()
            session.resume()
            exchange_on_all(session, host, pairs)
        if session.order.restart is not None:
            session.stop()
            session.start()
            exchange_on_all(session, host, pairs)
        if session.order.reset is not None:
            session.reset()
            exchange_on_all(session, host, pairs)
        if session.order.reconnect is not None:
            session.reconnect()
            exchange_on_all(session, host, pairs)
        session.stop()


def exchange_on_all(session, host, pairs):
    """Frames to the host by every pair, and from it by whichever pair it takes."""
    guests = [session.net(pair) for pair in range(pairs)]
    for guest in guests:
        guest.post(4, 2048)
    for n, guest in enumerate(guests):
        data = frame(bytes([n]) + os.urandom(8), to=HOST, source=GUEST, length=200)
        guest.send(data)
        assert host.receive() == data
        guest.drain()
    data = frame(os.urandom(8), length=300)
    host.send(data)
    deadline = time.monotonic() + 5
    while not (got := [guest for guest in guests if guest.rx.used_idx != guest.rx.last_used]):
        assert time.monotonic() < deadline, "no frame came"
        time.sleep(0.001)
    assert got[0].receive().frame == data
