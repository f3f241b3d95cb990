"""How a tap is attached, made, taken over, and what an operator reads when it cannot be."""

import asyncio
import fcntl
import gc
import os
import struct

import pytest

from tests.support.net import GUEST, HOST, Wire, frame
from tests.unit.net.rig import FULL
from vhostd.backends.net.backend import NetBackend
from vhostd.backends.net.options import NetOptions
from vhostd.backends.net.tap import Tap, default_mac
from vhostd.errors import ConfigError, RemoteProtocolError
from vhostd.spec.net import Feature

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 1, 2, 0x1000, 0x4000, 0x100


def open_fd(netns, name, flags):
    """Open a queue of a tap by hand."""

    def opener():
        fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        return fd

    return netns.call(opener)


async def refused(where, match, **options):
    """Opening says what is wrong, and leaves no descriptor behind."""
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=match):
        await Tap.open(NetOptions(**{"tap": "tap0", "netns": where.path, **options}))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_tap_made_by_us_goes_with_us(netns):
    tap = await Tap.open(NetOptions(tap="tap0", create=True, netns=netns.path, mtu=9000))
    shown = netns.ip("-d", "link", "show", "tap0")
    assert "mtu 9000" in shown
    assert "vnet_hdr on" in shown
    assert "UP" in shown
    assert (tap.mtu, tap.multi_queue, len(tap.fds)) == (9000, False, 1)
    assert not os.get_blocking(tap.fds[0].number)
    assert not os.get_inheritable(tap.fds[0].number)
    tap.close()
    assert "tap0" not in netns.ip("link", "show")


@pytest.mark.parametrize(
    ("made", "pairs", "multi"), [((), 1, False), (("multi_queue",), 1, True), (("multi_queue",), 4, True)]
)
async def test_an_existing_tap_is_attached_and_stays(netns, made, pairs, multi):
    """Made with or without vnet_hdr, with one queue or many: its flags are found out."""
    netns.ip("tuntap", "add", "tap0", "mode", "tap", *made)
    tap = await Tap.open(NetOptions(tap="tap0", netns=netns.path, queues=pairs))
    assert (len(tap.fds), tap.multi_queue) == (pairs, multi)
    tap.close()
    assert "tap0" in netns.ip("link", "show")


async def test_what_an_operator_is_told(netns):
    await refused(netns, r"tap tap0: there is no such interface in netns .*: make it with `ip tuntap add tap0 mode tap")
    netns.ip("tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
    await refused(netns, r"tap tap0: 2 queue pairs need a multi-queue tap .*single queue", queues=2)
    await refused(netns, "tap lo: it is an interface, but not a tap", tap="lo")
    await refused(netns, "netns nowhere: /run/netns/nowhere: No such file", netns="nowhere")
    await refused(netns, "netns /etc/passwd: Invalid argument", netns="/etc/passwd")
    await refused(netns, "bridge br9: there is no such interface", bridge="br9")
    first = await Tap.open(NetOptions(tap="tap0", netns=netns.path))
    await refused(netns, "tap tap0: it is in use by another process")
    first.close()


async def test_without_privilege(netns):
    """A tap that belongs to nobody in particular: the message says how to give it away."""
    netns.ip("tuntap", "add", "tap0", "mode", "tap", "vnet_hdr", "user", "12345")

    def attempt():
        pid = os.fork()
        if pid == 0:
            try:
                os.chmod("/dev/net/tun", 0o666)
                os.setresuid(54321, 54321, 54321)
                Tap._attach(NetOptions(tap="tap0"))
            except ConfigError as error:
                os._exit(0 if "no permission" in str(error) and "user 54321" in str(error) else 2)
            os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    mode = os.stat("/dev/net/tun").st_mode & 0o777
    try:
        assert netns.call(attempt) == 0
    finally:
        os.chmod("/dev/net/tun", mode)


async def test_inherited_descriptors_are_checked(netns):
    for flags, match in (
        (IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, "tun device"),
        (IFF_TAP | IFF_NO_PI, "without vnet_hdr"),
    ):
        fd = open_fd(netns, "tap3", flags)
        with pytest.raises(ConfigError, match=match):
            await Tap.open(NetOptions(tap_fds=(fd,)))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    with pytest.raises(ConfigError, match="not an open tap"):
        await Tap.open(NetOptions(tap_fds=(os.open("/dev/null", os.O_RDWR),)))
    good = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    fds = (open_fd(netns, "tap3", good), open_fd(netns, "tap4", good))
    with pytest.raises(ConfigError, match="single queue"):
        await Tap.open(NetOptions(tap_fds=fds, queues=2))
    fds = tuple(open_fd(netns, name, good | IFF_MULTI_QUEUE) for name in ("tap5", "tap6"))
    with pytest.raises(ConfigError, match="one device has one tap"):
        await Tap.open(NetOptions(tap_fds=fds, queues=2))


async def test_inherited_descriptors_are_served(open_card, netns, wire):
    """Blocking or not, inheritable or not: they are as we need them afterwards. The MTU is in another namespace."""
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE
    fds = tuple(open_fd(netns, "tap0", flags) for _ in range(2))
    netns.ip("link", "set", "tap0", "up")
    card = await open_card(tap=None, create=False, netns=None, tap_fds=fds, queues=2)
    host = wire()
    guest, _ = await card.start(FULL, pairs=2)
    guest.post(4, 2048)
    guest.send(frame(to=HOST, source=GUEST, length=60))
    assert host.receive() == frame(to=HOST, source=GUEST, length=60)
    assert card.backend.describe()["tap"] == "tap0"
    assert card.backend.config_space[8] == 2


async def test_bridge_and_address(netns):
    """Both made on request; a second time, what is there already is no error."""
    options = NetOptions(tap="tap0", create=True, netns=netns.path, bridge="br0", address="192.0.2.1/24")
    for _ in range(2):
        tap = await Tap.open(options)
        assert "master br0" in netns.ip("link", "show", "tap0")
        assert "inet 192.0.2.1/24" in netns.ip("addr", "show", "br0")
        tap.close()
    tap = await Tap.open(NetOptions(tap="tap1", create=True, netns=netns.path, address="198.51.100.1/24"))
    assert "inet 198.51.100.1/24" in netns.ip("addr", "show", "tap1")
    tap.close()


async def test_a_bridge_made_for_a_start_that_fails_goes_again(netns):
    """Whether it fails in the tap's own configuration or later; one that was there before stays."""
    words = {"tap": "tap0", "create": True, "netns": netns.path, "bridge": "br7"}
    await refused(
        netns, "address 192.0.2.1/99", **{k: v for k, v in words.items() if k != "netns"}, address="192.0.2.1/99"
    )
    assert "br7" not in netns.ip("link", "show")
    (await Tap.open(NetOptions(**words))).close()
    assert "br7" not in netns.ip("link", "show")
    netns.ip("link", "add", "br7", "type", "bridge")
    (await Tap.open(NetOptions(**words))).close()
    assert "br7" in netns.ip("link", "show")


def test_the_default_mac():
    """Locally administered, not a group's, stable, and another for another name."""
    macs = {default_mac(f"net{n}") for n in range(100)}
    assert len(macs) == 100
    assert all(len(mac) == 6 and mac[0] & 3 == 2 for mac in macs)
    assert default_mac("net0") == default_mac("net0")


@pytest.mark.parametrize("mac", ["01:00:5e:00:00:01", "52:54:00", "00:00:00:00:00:00", "xx:54:00:12:34:56"])
async def test_a_mac_that_is_none(netns, mac):
    with pytest.raises(ConfigError, match="mac"):
        await NetBackend.open(NetOptions(tap="tap0", create=True, netns=netns.path, mac=mac))
    assert "tap0" not in netns.ip("link", "show")


@pytest.mark.parametrize("mtu", [0, 1, 67, 65536, 1 << 40])
async def test_n47_an_mtu_that_cannot_be(open_card, mtu):
    """5.1.4.1: 68 to 65535."""
    card = await open_card()
    with pytest.raises(RemoteProtocolError, match="NET_SET_MTU"):
        card.backend.set_mtu(mtu)
    assert card.backend.describe()["mtu"] == 1500


async def test_an_mtu_set_by_the_front_end(open_card, wire, netns):
    """The tap follows where it may, the configuration space tells it, and longer frames pass."""
    card = await open_card()
    host = wire()
    (guest,) = await card.start(FULL)
    card.backend.set_mtu(9000)
    assert "mtu 9000" in netns.ip("link", "show", "tap0")
    assert card.backend.config_space[10:] == struct.pack("<H", 9000)
    data = frame(to=HOST, source=GUEST, length=9014)
    guest.send(data)
    assert host.receive() == data
    guest.post(1, 10000)
    host.send(frame(length=9014))
    assert guest.receive().frame == frame(length=9014)


async def test_n47_an_announcement(open_card, wire):
    """vhost-user, SEND_RARP: a broadcast from the guest's address. With several queues too, none of them enabled."""
    card = await open_card(queues=2)
    host = wire()
    card.backend.announce(GUEST)
    got = host.receive()
    assert got[:14] == b"\xff" * 6 + GUEST + b"\x80\x35"
    assert got[14:42] == struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 3, GUEST, bytes(4), GUEST, bytes(4))
    assert len(got) == 60
    for bad in (b"", bytes(6), b"\x01" + bytes(5)):
        with pytest.raises(RemoteProtocolError, match="SEND_RARP"):
            card.backend.announce(bad)


async def test_the_configuration_space_is_read_only(open_card):
    card = await open_card()
    with pytest.raises(RemoteProtocolError, match="read-only"):
        card.backend.write_config(0, bytes(6))
    assert card.backend.features & Feature.MAC


async def test_the_caller_stays_in_its_namespace(netns):
    """Only a thread of its own enters the tap's."""
    here = os.readlink("/proc/self/ns/net")
    tap = await Tap.open(NetOptions(tap="tap0", create=True, netns=netns.path))
    assert os.readlink("/proc/thread-self/ns/net") == here
    assert await asyncio.to_thread(os.readlink, "/proc/thread-self/ns/net") == here
    wire = Wire(netns, "tap0")
    wire.close()
    tap.close()
