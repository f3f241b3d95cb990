"""Linux's virtio-blk driver on a disk of ours. Every comparison is of digests taken on both sides."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from tests.guest.lab import MIB, Lab, file_digest, pattern, settle, sha256, wait_in
from tests.guest.markers import LEGACY, both
from tests.guest.peers import counters
from vhostd.demo.programs import output_of

BUSYBOX = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()  # the guest's /bin/busybox
SLACK = 128  # sectors that the host's file system may take to describe a hole


@both
async def test_the_guest_reads_what_the_image_holds(lab: Lab, legacy: bool) -> None:
    """5.2.6: VIRTIO_BLK_T_IN, by the modern and by the legacy interface (2.4.3)."""
    image = lab.image(16)
    guest = await lab.guest(await lab.disk(image, legacy=legacy))
    version_1 = (await guest.guest.run("cut -c33 /sys/block/vda/device/features")) == "1"
    assert version_1 is not legacy
    assert await guest.guest.run("cat /sys/block/vda/size") == str(16 * MIB // 512)
    assert await guest.guest.digest("/dev/vda") == file_digest(image)


@both
async def test_the_image_holds_what_the_guest_wrote(lab: Lab, legacy: bool) -> None:
    """5.2.6: VIRTIO_BLK_T_OUT of many sizes, then VIRTIO_BLK_T_FLUSH; sectors beside them keep what they held."""
    image = lab.image(8)
    want = bytearray(image.read_bytes())
    guest = await lab.guest(await lab.disk(image, legacy=legacy))
    writes = ((512, 3, 1), (512, 1001, 7), (4096, 500, 31), (65536, 50, 16), (1 << 20, 6, 1))
    await guest.guest.run(
        " && ".join(
            f"dd if=/bin/busybox of=/dev/vda bs={size} seek={start} count={count} oflag=direct 2>/dev/null"
            for size, start, count in writes
        )
        + " && sync"
    )
    for size, start, count in writes:
        want[size * start : size * (start + count)] = BUSYBOX[: size * count]
    assert file_digest(image) == sha256(want)
    assert await guest.guest.digest("/dev/vda") == sha256(want)


async def test_four_queues_serve_four_cpus(lab: Lab) -> None:
    """5.2.3: VIRTIO_BLK_F_MQ, num_queues. Each CPU writes and reads its own part through its own queue."""
    image = lab.image(16)
    guest = await lab.guest(await lab.disk(image, queues=4), cpus=4)
    assert await guest.guest.run("ls /sys/block/vda/mq | wc -l") == "4"
    jobs = " ".join(
        f"(dd if=/dev/urandom of=/tmp/part{cpu} bs=1M count=2 2>/dev/null;"
        f" taskset {1 << cpu:x} dd if=/tmp/part{cpu} of=/dev/vda bs=64k seek={cpu * 64} oflag=direct 2>/dev/null;"
        f" taskset {1 << cpu:x} dd if=/dev/vda of=/tmp/back{cpu} bs=64k skip={cpu * 64} count=32 iflag=direct"
        " 2>/dev/null) &"
        for cpu in range(4)
    )
    await guest.guest.run(f"{jobs} wait; sync")
    sums = (await guest.guest.run("cd /tmp; sha256sum part? back?")).split()[::2]
    assert sums[:4] == sums[4:]
    for cpu in range(4):
        assert file_digest(image, cpu * 4 * MIB, 2 * MIB) == sums[cpu]
    interrupts = await guest.guest.run("grep -E 'virtio[0-9]+-req' /proc/interrupts")
    used = [sum(int(word) for word in line.split()[1:5]) for line in interrupts.splitlines()]
    assert len(used) == 4
    assert min(used) > 0, "a queue was never used"


@pytest.mark.parametrize(
    ("legacy", "queues"),
    [(False, 1), (False, 4), pytest.param(True, 1, marks=LEGACY)],
    ids=["modern", "four-queues", "legacy"],
)
async def test_ext4_is_made_filled_remounted_and_clean(lab: Lab, legacy: bool, queues: int) -> None:
    """A file system's own checks, in the guest and on the host, after it was remounted with the page cache dropped."""
    image = lab.name("disk")
    image.touch()
    os.truncate(image, 64 * MIB)
    guest = await lab.guest(await lab.disk(image, legacy=legacy, queues=queues), cpus=queues)
    shell = guest.guest
    await shell.run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt", deadline=60)
    await shell.run(
        "cd /mnt; for d in 1 2 3 4; do mkdir $d; cp -r /bin/busybox /modules /usr /lib $d/; done;"
        " dd if=/dev/urandom of=random bs=64k count=64 2>/dev/null; rm -r 2; ln 1/busybox hard;"
        " find . -type f | sort | xargs sha256sum >/tmp/sums; sync",
        deadline=90,
    )
    await shell.run("umount /mnt && echo 3 >/proc/sys/vm/drop_caches && mount /dev/vda /mnt")
    assert "FAILED" not in await shell.run("cd /mnt && sha256sum -c /tmp/sums", deadline=60)
    random = (await shell.run("sha256sum /mnt/random")).split()[0]
    await shell.run("umount /mnt && e2fsck -fn /dev/vda", deadline=60)
    await output_of("/usr/sbin/e2fsck", "-fn", image)
    copy = lab.name("random")
    await output_of("/usr/sbin/debugfs", "-R", f"dump random {copy}", image)
    assert file_digest(copy) == random


async def test_discard_makes_a_hole_and_reads_as_zeroes(lab: Lab) -> None:
    """5.2.6: VIRTIO_BLK_T_DISCARD: the host gets its blocks back; what lies beside is untouched."""
    image = lab.image(16)
    before = image.stat().st_blocks
    want = bytearray(image.read_bytes())
    guest = await lab.guest(await lab.disk(image))
    await guest.guest.run(f"/usr/sbin/blkdiscard -o {4 * MIB} -l {6 * MIB} /dev/vda")
    want[4 * MIB : 10 * MIB] = bytes(6 * MIB)
    assert image.stat().st_blocks <= before - 6 * MIB // 512 + SLACK
    assert await guest.guest.digest("/dev/vda") == sha256(want)
    assert file_digest(image) == sha256(want)


async def test_write_zeroes_with_and_without_unmap(lab: Lab) -> None:
    """5.2.6: VIRTIO_BLK_T_WRITE_ZEROES; with the unmap flag the host gets its blocks back."""
    image = lab.image(16)
    want = bytearray(image.read_bytes())
    guest = await lab.guest(await lab.disk(image))
    assert int(await guest.guest.run("cat /sys/block/vda/queue/write_zeroes_max_bytes")) > 0
    await guest.guest.run(f"/usr/sbin/blkdiscard -z -o {MIB} -l {3 * MIB} /dev/vda")
    want[MIB : 4 * MIB] = bytes(3 * MIB)
    assert await guest.guest.digest("/dev/vda") == sha256(want)
    before = image.stat().st_blocks
    await guest.guest.run(f"/usr/sbin/fallocate -p -o {8 * MIB} -l {4 * MIB} /dev/vda")
    want[8 * MIB : 12 * MIB] = bytes(4 * MIB)
    assert await guest.guest.digest("/dev/vda") == sha256(want)
    assert file_digest(image) == sha256(want)
    assert image.stat().st_blocks <= before - 4 * MIB // 512 + SLACK


@pytest.mark.ours("it counts nothing that we could ask for")
async def test_fsync_reaches_the_disk_as_a_flush(lab: Lab) -> None:
    """5.2.6: with a write-back cache the guest flushes: fsync in the guest is a flush here."""
    image = lab.image(8)
    disk = await lab.disk(image)
    guest = await lab.guest(disk)
    assert await guest.guest.run("cat /sys/block/vda/queue/write_cache") == "write back"
    flushes = "awk '{print $16}' /sys/block/vda/stat"  # kernel: Documentation/block/stat.rst
    before = int(await guest.guest.run(flushes))
    await guest.guest.run("for i in 1 2 3 4 5; do dd if=/bin/busybox of=/dev/vda bs=64k count=4 conv=fsync; done")
    assert int(await guest.guest.run(flushes)) >= before + 5
    assert counters(disk.socket)["total"]["flushes"] >= 5
    assert file_digest(image, 0, 4 * 65536) == sha256(BUSYBOX[: 4 * 65536])


async def test_a_read_only_disk_stays_as_it_was(lab: Lab) -> None:
    """5.2.3: VIRTIO_BLK_F_RO: the guest sees it, reads, and its writes fail."""
    image = lab.image(8)
    before = file_digest(image)
    guest = await lab.guest(await lab.disk(image, read_only=True))
    assert await guest.guest.run("cat /sys/block/vda/ro") == "1"
    assert (await guest.guest.call("dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync")).status != 0
    assert await guest.guest.digest("/dev/vda") == before
    assert file_digest(image) == before


@pytest.mark.ours("its exports have no serial")
async def test_the_guest_sees_the_serial(lab: Lab) -> None:
    """5.2.6: VIRTIO_BLK_T_GET_ID: up to 20 bytes, with no NUL when all are used."""
    guest = await lab.guest(await lab.disk(lab.image(1), serial="VH-0123456789abcdef_"))
    assert await guest.guest.run("cat /sys/block/vda/serial") == "VH-0123456789abcdef_"


@both
async def test_reboot_finds_the_disk_again(lab: Lab, legacy: bool) -> None:
    """A reset device starts anew: a guest that reboots, and a machine that is reset in the middle of a write."""
    image = lab.image(8)
    guest = await lab.guest(await lab.disk(image, legacy=legacy))
    assert await guest.guest.digest("/dev/vda") == file_digest(image)
    await guest.guest.send("reboot -f")
    await guest.guest.ready()
    await wait_in(guest, "[ -b /dev/vda ]")
    assert await guest.guest.digest("/dev/vda") == file_digest(image)
    await guest.guest.run(
        "(while dd if=/dev/urandom of=/dev/vda bs=64k count=64 oflag=direct; do :; done) >/dev/null 2>&1 &"
    )
    await settle(0.3)
    await guest.qmp.execute("system_reset")
    await guest.guest.ready()
    await wait_in(guest, "[ -b /dev/vda ]")
    assert await guest.guest.digest("/dev/vda") == file_digest(image)
    assert file_digest(image, 4 * MIB) == sha256(pattern(8 * MIB)[4 * MIB :])


async def test_a_disk_is_there_at_boot_on_q35(lab: Lab) -> None:
    """The cold-plugged path: the device is reset by the firmware, then taken by the kernel; PCI Express bridges."""
    image = lab.image(8)
    guest = await lab.boot(await lab.disk(image), machine="q35")
    assert await guest.guest.digest("/dev/vda") == file_digest(image)


async def test_stop_and_cont_lose_nothing(lab: Lab) -> None:
    """vhost-user, "Ring states": the front-end stops the rings with requests in flight and starts them again."""
    image = lab.image(16)
    guest = await lab.guest(await lab.disk(image))
    await guest.guest.run("dd if=/dev/urandom of=/tmp/new bs=1M count=8 2>/dev/null")
    new = (await guest.guest.run("sha256sum /tmp/new")).split()[0]
    await guest.guest.run(
        "(for i in $(seq 8); do dd if=/tmp/new of=/dev/vda bs=16k oflag=direct 2>/tmp/err || break; done;"
        " echo done >/tmp/done) >/dev/null &"
    )
    for _ in range(10):
        await settle(0.1)
        await guest.stop()
        held = file_digest(image)
        await settle(0.05)
        assert file_digest(image) == held, "a stopped machine's disk was written to"
        await guest.resume()
    await wait_in(guest, "[ -f /tmp/done ]", 60)
    assert file_digest(image, 0, 8 * MIB) == new
    assert await guest.guest.digest("/dev/vda", start=0, length=8 * MIB) == new
    assert file_digest(image, 8 * MIB) == sha256(pattern(16 * MIB)[8 * MIB :])


async def test_hot_plug_and_unplug_again_and_again(lab: Lab) -> None:
    """The back-end outlives its front-ends: the same socket serves each new device; no fd is left behind."""
    image = lab.image(4)
    disk = await lab.disk(image)
    guest = await lab.guest()
    descriptors = []
    for round_number in range(4):
        await guest.plug(disk)
        await wait_in(guest, "[ -b /dev/vda ]")
        assert await guest.guest.digest("/dev/vda") == file_digest(image)
        await guest.guest.run(
            f"dd if=/dev/urandom of=/dev/vda bs=64k count=4 seek={round_number * 4} conv=fsync 2>/dev/null"
        )
        assert await guest.guest.digest("/dev/vda") == file_digest(image)
        await guest.unplug(disk)
        await wait_in(guest, "[ ! -b /dev/vda ]")
        descriptors.append(len(list(Path(f"/proc/{lab.programs[0].pid}/fd").iterdir())))
    assert descriptors[-1] <= descriptors[0]


async def test_memory_is_plugged_while_the_disk_works(lab: Lab) -> None:
    """vhost-user, "Memory region description" and ADD_MEM_REG: buffers lie in memory that came after the device."""
    image = lab.image(64)
    guest = await lab.guest(await lab.disk(image))
    shell = guest.guest
    before = int(await shell.run("awk '/MemTotal/{print $2}' /proc/meminfo"))
    await shell.run("(while dd if=/dev/vda of=/dev/null bs=64k iflag=direct; do :; done) >/dev/null 2>&1 &")
    for slot in range(2):
        await guest.qmp.execute_with(
            "object-add",
            {"qom-type": "memory-backend-memfd", "id": f"more{slot}", "size": 128 * MIB, "share": True},
        )
        await guest.qmp.execute_with("device_add", {"driver": "pc-dimm", "id": f"dimm{slot}", "memdev": f"more{slot}"})
    await wait_in(guest, f"[ $(awk '/MemTotal/{{print $2}}' /proc/meminfo) -ge {before + 200 * 1024} ]")
    await shell.run("killall dd; mount -o remount,size=200m /tmp")
    await shell.run("dd if=/dev/vda of=/tmp/all bs=1M iflag=direct 2>/dev/null", deadline=60)
    await shell.run("cp /tmp/all /tmp/again")  # 128 MiB of files: more than the machine had at first
    assert (await shell.run("sha256sum /tmp/again", deadline=60)).split()[0] == file_digest(image)
    await shell.run("dd if=/dev/urandom of=/tmp/again bs=1M count=16 conv=notrunc 2>/dev/null")
    await shell.run("dd if=/tmp/again of=/dev/vda bs=1M conv=fsync 2>/dev/null", deadline=60)
    assert (await shell.run("sha256sum /tmp/again", deadline=60)).split()[0] == file_digest(image)


@both
async def test_the_driver_is_unbound_and_bound(lab: Lab, legacy: bool) -> None:
    """2.1.2: the driver resets the device and negotiates anew, with requests before and after."""
    image = lab.image(4)
    guest = await lab.guest(await lab.disk(image, legacy=legacy))
    shell = guest.guest
    device = Path(await shell.run("readlink -f /sys/block/vda/device")).name
    for _ in range(8):
        await shell.run(f"echo {device} >/sys/bus/virtio/drivers/virtio_blk/unbind")
        await shell.run(f"echo {device} >/sys/bus/virtio/drivers/virtio_blk/bind")
        await wait_in(guest, "[ -b /dev/vda ]")
        await shell.run("dd if=/dev/urandom of=/dev/vda bs=4k count=8 conv=fsync 2>/dev/null")
        assert await shell.digest("/dev/vda") == file_digest(image)


async def test_two_disks_of_two_back_ends(lab: Lab) -> None:
    """Two processes share the guest's memory: one disk copied onto the other."""
    one, two = lab.image(8, seed=1), lab.image(8, seed=2)
    guest = await lab.guest(await lab.disk(one), await lab.disk(two))
    names = {name: await guest.guest.digest(f"/dev/{name}") for name in ("vda", "vdb")}
    assert sorted(names.values()) == sorted([file_digest(one), file_digest(two)])
    await guest.guest.run("dd if=/dev/vda of=/dev/vdb bs=256k conv=fsync 2>/dev/null")
    assert file_digest(one) == file_digest(two) == names["vda"]


async def test_a_loop_of_small_requests_at_depth(lab: Lab) -> None:
    """Many small direct requests from four processes at once, each on its own part, read back by digest."""
    image = lab.image(8)
    guest = await lab.guest(await lab.disk(image))
    jobs = " ".join(
        f"(dd if=/dev/urandom of=/tmp/p{n} bs=512 count=600 2>/dev/null;"
        f" dd if=/tmp/p{n} of=/dev/vda bs=512 seek={n * 4096} oflag=direct 2>/dev/null) &"
        for n in range(4)
    )
    await guest.guest.run(f"{jobs} wait; sync", deadline=60)
    sums = (await guest.guest.run("sha256sum /tmp/p?")).split()[::2]
    with image.open("rb") as file:
        for number, want in enumerate(sums):
            file.seek(number * 4096 * 512)
            assert hashlib.sha256(file.read(600 * 512)).hexdigest() == want
