"""Linux's virtio-net driver on a card of ours: the far end is a tap in a network of the test's own."""

import asyncio
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.guest.lab import GUEST_ADDRESS, HOST_ADDRESS, MIB, Lab, pattern, sha256, wait_in
from tests.guest.peers import counters
from vhostd.demo.host import Namespace, sink, source
from vhostd.demo.qemu import Machine

pytestmark = pytest.mark.root  # a namespace and a tap

NO_OFFLOADS = dict.fromkeys(
    [
        *("csum", "gso", "host_tso4", "host_tso6", "host_ecn", "host_ufo"),
        *("guest_csum", "guest_tso4", "guest_tso6", "guest_ecn", "guest_ufo"),
    ],
    False,
)
NO_MERGE = {"mrg_rxbuf": False}


async def bring_up(guest: Machine, mtu: int | None = None) -> None:
    if mtu is not None:
        assert await guest.guest.run("cat /sys/class/net/eth0/mtu") == str(mtu), "5.1.4: the device tells the MTU"
    await guest.guest.run(f"ip address add {GUEST_ADDRESS}/24 dev eth0 && ip link set eth0 up")


async def ping(guest: Machine, *, count: int = 5, size: int = 56) -> None:
    """Ping the host; every answer must come, with the bytes that were sent (ping compares them)."""
    said = await guest.guest.run(f"ping -c {count} -i 0.05 -s {size} -W 2 {HOST_ADDRESS}")
    assert re.search(rf"{count} packets transmitted, {count} packets received", said), said


async def ping_back(namespace: Namespace, *, count: int = 5, size: int = 56) -> None:
    """Ping the guest from the host."""
    said = await namespace.output_of(
        "busybox", "ping", "-c", str(count), "-i", "0.05", "-s", str(size), "-W", "2", GUEST_ADDRESS
    )
    assert re.search(rf"{count} packets transmitted, {count} packets received", said), said


async def bulk(guest: Machine, namespace: Namespace, *, mib: int = 8) -> None:
    """TCP both ways; what arrived is what was sent, by digest."""
    data = pattern(mib * MIB)
    with namespace.listen(HOST_ADDRESS) as listener:
        sent = asyncio.create_task(source(listener, [data]))
        port = listener.getsockname()[1]
        await guest.guest.run(f"nc {HOST_ADDRESS} {port} </dev/null >/tmp/bulk", deadline=60)
        await sent
        assert (await guest.guest.run("sha256sum /tmp/bulk")).split()[0] == sha256(data)
        taken = asyncio.create_task(sink(listener))
        await guest.guest.run(f"nc {HOST_ADDRESS} {port} </tmp/bulk", deadline=60)
        arrived = await taken
    assert (arrived.length, arrived.digest) == (len(data), sha256(data))


@pytest.mark.parametrize("legacy", [False, True], ids=["modern", "legacy"])
async def test_ping_both_ways_and_all_sizes(lab: Lab, legacy: bool) -> None:
    """5.1.6: frames of every size, and more than one frame for each packet; the legacy header is 10 bytes (5.1.6.1)."""
    nic, namespace = await lab.nic(legacy=legacy)
    guest = await lab.guest(nic)
    await bring_up(guest)
    for size in (0, 1, 17, 56, 1472):
        await ping(guest, count=2, size=size)
    await ping(guest, count=3, size=20000)
    await ping_back(namespace)
    await ping_back(namespace, count=3, size=20000)
    assert await guest.guest.run("cat /sys/class/net/eth0/address") == nic.mac


@pytest.mark.parametrize(
    ("properties", "legacy"),
    [
        ({}, False),
        (NO_MERGE, False),
        (NO_OFFLOADS, False),
        (NO_OFFLOADS | NO_MERGE, False),
        ({}, True),
        (NO_MERGE, True),
    ],
    ids=["all", "no-merge", "no-offloads", "neither", "legacy", "legacy-no-merge"],
)
async def test_bulk_both_ways(lab: Lab, properties: dict[str, Any], legacy: bool) -> None:
    """5.1.3: checksums and segmentation left to the device or not, buffers merged or not: the same bytes arrive."""
    nic, namespace = await lab.nic(legacy=legacy, properties=properties)
    guest = await lab.guest(nic)
    await bring_up(guest)
    features = await guest.guest.run("cat /sys/class/net/eth0/device/features")
    assert features[15] == ("0" if "mrg_rxbuf" in properties else "1")
    assert features[0] == ("0" if "csum" in properties else "1")
    await bulk(guest, namespace)
    total = counters(nic.socket)["total"]
    assert (total["tx_gso"] > 0) is ("gso" not in properties), "segments of up to 64 KiB pass in one piece, or none do"
    assert (total["rx_merged"] > 0) is (properties == {}), "and come in over several buffers, or never"
    assert total["ring_errors"] == total["rx_errors"] == total["tx_errors"] == 0


@pytest.mark.parametrize("properties", [{}, NO_MERGE, NO_OFFLOADS], ids=["all", "no-merge", "no-offloads"])
async def test_jumbo_frames(lab: Lab, properties: dict[str, Any]) -> None:
    """5.1.4: VIRTIO_NET_F_MTU: the guest takes 9000 from the device, and frames of that size pass whole."""
    nic, namespace = await lab.nic(mtu=9000, properties=properties)
    guest = await lab.guest(nic)
    await bring_up(guest, mtu=9000)
    packets = "cat /sys/class/net/eth0/statistics/tx_packets"
    before = int(await guest.guest.run(packets))
    await ping(guest, count=5, size=8972)
    assert int(await guest.guest.run(packets)) - before < 10, "the packets were fragmented"
    await ping_back(namespace, size=8972)
    await bulk(guest, namespace)


async def test_two_queue_pairs_both_work(lab: Lab) -> None:
    """5.1.2, 5.1.6.5.5: two pairs, four CPUs; frames go out by both transmit queues and every flow is whole."""
    nic, namespace = await lab.nic(pairs=2)
    guest = await lab.guest(nic, cpus=4)
    await bring_up(guest)
    assert await guest.guest.run("ls -d /sys/class/net/eth0/queues/tx-* | wc -l") == "2"
    data = pattern(4 * MIB)
    listeners = [namespace.listen(HOST_ADDRESS) for _ in range(4)]
    ports = [listener.getsockname()[1] for listener in listeners]

    async def on_each_cpu(what: str) -> None:
        jobs = " ".join(
            f"(taskset {1 << cpu:x} nc {HOST_ADDRESS} {port} {what.format(cpu)}) &" for cpu, port in enumerate(ports)
        )
        await guest.guest.run(f"{jobs} wait", deadline=60)

    sent = [asyncio.create_task(source(listener, [data])) for listener in listeners]
    await on_each_cpu("</dev/null >/tmp/b{}")
    await asyncio.gather(*sent)
    assert set((await guest.guest.run("sha256sum /tmp/b?")).split()[::2]) == {sha256(data)}
    taken = [asyncio.create_task(sink(listener)) for listener in listeners]
    await on_each_cpu("</tmp/b{}")
    assert {each.digest for each in await asyncio.gather(*taken)} == {sha256(data)}
    for listener in listeners:
        listener.close()
    rings = counters(nic.socket)["rings"]
    assert rings["0"]["rx_frames"] > 0
    assert rings["2"]["rx_frames"] > 0
    assert rings["1"]["tx_frames"] > 0
    assert rings["3"]["tx_frames"] > 0


async def test_the_card_comes_and_goes(lab: Lab) -> None:
    """Hot-plug and unplug on one socket; ping each time; no fd is left in the back-end."""
    nic, _ = await lab.nic()
    guest = await lab.guest()
    descriptors = []
    for _ in range(3):
        await guest.plug(nic)
        await wait_in(guest, "[ -d /sys/class/net/eth0 ]")
        await bring_up(guest)
        await ping(guest, count=3)
        await guest.unplug(nic)
        await wait_in(guest, "[ ! -d /sys/class/net/eth0 ]")
        descriptors.append(len(list(Path(f"/proc/{lab.programs[0].pid}/fd").iterdir())))
    assert descriptors[-1] <= descriptors[0]


async def test_the_card_survives_what_a_machine_goes_through(lab: Lab) -> None:
    """Driver unbound and bound (2.1.2), stop and cont, reset, reboot: it pings and carries bulk after each."""
    nic, namespace = await lab.nic()
    guest = await lab.guest(nic)
    await bring_up(guest)
    device = Path(await guest.guest.run("readlink -f /sys/class/net/eth0/device")).name
    for _ in range(4):
        await guest.guest.run(f"echo {device} >/sys/bus/virtio/drivers/virtio_net/unbind")
        await guest.guest.run(f"echo {device} >/sys/bus/virtio/drivers/virtio_net/bind")
        await wait_in(guest, "[ -d /sys/class/net/eth0 ]")
        await bring_up(guest)
        await ping(guest, count=2)
    for _ in range(4):
        await guest.stop()
        await guest.resume()
        await ping(guest, count=2)
    await bulk(guest, namespace, mib=2)
    await guest.qmp.execute("system_reset")
    await guest.guest.ready()
    await wait_in(guest, "[ -d /sys/class/net/eth0 ]")
    await bring_up(guest)
    await bulk(guest, namespace, mib=2)
    await guest.guest.send("reboot -f")
    await guest.guest.ready()
    await wait_in(guest, "[ -d /sys/class/net/eth0 ]")
    await bring_up(guest)
    await ping(guest)


async def test_frames_wait_for_no_one_when_the_guest_has_no_buffers(lab: Lab) -> None:
    """A card that is down takes nothing: the host's frames are dropped, and pings pass as soon as it is up."""
    nic, namespace = await lab.nic()
    guest = await lab.guest(nic)
    await bring_up(guest)
    await ping(guest, count=1)
    hardware = await guest.guest.run("cat /sys/class/net/eth0/address")
    await namespace.output_of("ip", "neighbour", "replace", GUEST_ADDRESS, "lladdr", hardware, "dev", "tap0")
    await guest.guest.run("ip link set eth0 down")
    with namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as flood:
        for _ in range(3000):  # more than the ring and the tap's own queue hold
            flood.sendto(bytes(1400), (GUEST_ADDRESS, 9))
    await guest.guest.run("ip link set eth0 up")
    await ping(guest)
    await ping_back(namespace)


async def test_memory_is_plugged_while_the_card_works(lab: Lab) -> None:
    """vhost-user, ADD_MEM_REG: the map grows under running rings; bulk goes on into the new memory."""
    nic, namespace = await lab.nic()
    guest = await lab.guest(nic)
    await bring_up(guest)
    await bulk(guest, namespace, mib=2)
    await guest.qmp.execute_with(
        "object-add", {"qom-type": "memory-backend-memfd", "id": "more", "size": 128 * MIB, "share": True}
    )
    await guest.qmp.execute_with("device_add", {"driver": "pc-dimm", "id": "dimm", "memdev": "more"})
    await wait_in(guest, "[ $(awk '/MemTotal/{print $2}' /proc/meminfo) -ge 200000 ]")
    await guest.guest.run("mount -o remount,size=150m /tmp")
    await bulk(guest, namespace, mib=40)


async def test_a_card_is_there_at_boot_beside_a_disk(lab: Lab) -> None:
    """Both devices, cold-plugged on q35, working at once."""
    image = lab.image(8)
    nic, namespace = await lab.nic()
    guest = await lab.boot(await lab.disk(image), nic, machine="q35")
    await bring_up(guest)
    await guest.guest.run("(while dd if=/dev/vda of=/dev/null bs=64k iflag=direct; do :; done) >/dev/null 2>&1 &")
    await bulk(guest, namespace)
    assert await guest.guest.digest("/dev/vda") == sha256(image.read_bytes())
