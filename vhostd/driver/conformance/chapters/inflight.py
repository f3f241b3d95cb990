"""In-flight I/O (vhost-user, "Inflight I/O tracking", GET_INFLIGHT_FD, SET_INFLIGHT_FD)."""

import mmap
import os
import struct

from vhostd.driver.conformance.case import BLOCK, Mark, case
from vhostd.driver.conformance.check import Check, Guest
from vhostd.fds import Fd
from vhostd.protocol.messages import Inflight
from vhostd.protocol.wire import encode
from vhostd.spec.blk import Request
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature

R = FrontendRequest
P = ProtocolFeature
TRACKING = 'vhost-user, "Inflight I/O tracking"'
GET = 'vhost-user, "Front-end message types", VHOST_USER_GET_INFLIGHT_FD'
SET = 'vhost-user, "Front-end message types", VHOST_USER_SET_INFLIGHT_FD'
HEAD_LEN, ENTRY_LEN = 16, 16  # QueueRegionSplit: features, version, desc_num, last_batch_head, used_idx; then entries


def _get(check: Check, guest: Guest, queues: int = 1, size: int = 128, length: int = 24) -> tuple[Inflight, Fd]:
    frontend = guest.frontend
    answer, fds = frontend.ask(R.GET_INFLIGHT_FD, Inflight, Inflight(0, 0, queues, size), length=length)
    check.equal(len(fds), 1, "so many descriptors with the answer,")
    return answer, check.keep(fds[0])


@case("VU-INFL-01", GET, protocol=P.INFLIGHT_SHMFD, rows={"1x128": (1, 128), "1x256": (1, 256), "1x1024": (1, 1024)})
def a_buffer_is_given(check: Check, shape: tuple[int, int]) -> None:
    """GET_INFLIGHT_FD returns a buffer with room for so many queues of so many entries, and its descriptor."""
    queues, size = shape
    with check.guest(start=False) as guest:
        answer, fd = _get(check, guest, queues, size)
        room = queues * (HEAD_LEN + ENTRY_LEN * size)
        check.expect(answer.mmap_size >= room, f"at least {room} bytes", f"{answer.mmap_size}")
        length = os.fstat(fd.number).st_size
        check.expect(length >= answer.mmap_offset + answer.mmap_size, "a file as long as that", f"{length} bytes")
        check.equal((answer.num_queues, answer.queue_size), shape, "the shape asked for,")


@case("VU-INFL-02", GET, protocol=P.INFLIGHT_SHMFD)
def it_is_zeroed(check: Check) -> None:
    """The buffer that GET_INFLIGHT_FD returns records nothing in flight."""
    with check.guest(start=False) as guest:
        answer, fd = _get(check, guest)
        data = os.pread(fd.number, answer.mmap_size, answer.mmap_offset)
        entries = range(HEAD_LEN, HEAD_LEN + 128 * ENTRY_LEN, ENTRY_LEN)
        check.expect(not any(data[at] for at in entries), "no entry in flight", "some are")


@case("VU-INFL-03", GET, protocol=P.INFLIGHT_SHMFD, rows={"20": 20, "24": 24})
def answered_in_kind(check: Check, length: int) -> None:
    """The description has 20 bytes, 24 as compilers pad it: the answer is as long as the request."""
    with check.guest(start=False) as guest:
        guest.frontend.send(R.GET_INFLIGHT_FD, encode(Inflight(0, 0, 1, 128), length))
        frame = guest.frontend.reply(R.GET_INFLIGHT_FD)
        frame.close_fds()
        check.equal(len(frame.payload), length, "a payload of so many bytes,")


def _start(check: Check, guest: Guest) -> tuple[Inflight, Fd]:
    inflight, fd = _get(check, guest, 1, guest.queue.size)
    guest.frontend.set_features()
    guest.frontend.set_inflight(inflight, fd)
    guest.session.start()
    return inflight, fd


@case("VU-INFL-04", SET, protocol=P.INFLIGHT_SHMFD, rows={"20": 20, "24": 24})
def it_is_taken(check: Check, length: int) -> None:
    """SET_INFLIGHT_FD gives the buffer back before the rings start, and the rings work with it."""
    with check.guest(start=False) as guest:
        inflight, fd = _get(check, guest, 1, guest.queue.size)
        guest.frontend.set_features()
        guest.frontend.send(R.SET_INFLIGHT_FD, encode(inflight, length), [fd.number])
        guest.session.start()
        guest.works(4)


@case("VU-INFL-05", TRACKING, protocol=P.INFLIGHT_SHMFD, kinds=BLOCK)
def head_of_the_region(check: Check) -> None:
    """A split ring's region has version 1, the ring's size as desc_num, and used_idx in step with the used ring."""
    with check.guest(start=False) as guest:
        inflight, fd = _start(check, guest)
        guest.works(5)
        data = os.pread(fd.number, HEAD_LEN, inflight.mmap_offset)
        _, version, count, _, used = struct.unpack("<QHHHH", data)
        check.equal(version, 1, "version")
        check.equal(count, guest.queue.size, "desc_num")
        check.equal(used, guest.queue.used_idx, "used_idx")


@case("VU-INFL-06", TRACKING, protocol=P.INFLIGHT_SHMFD, kinds=BLOCK)
def nothing_is_left(check: Check) -> None:
    """An entry's inflight flag is cleared when its used element is visible: a ring at rest has none."""
    with check.guest(start=False) as guest:
        inflight, fd = _start(check, guest)
        guest.works(20)
        data = os.pread(fd.number, inflight.mmap_size, inflight.mmap_offset)
        left = [n for n in range(guest.queue.size) if data[HEAD_LEN + n * ENTRY_LEN]]
        check.equal(left, [], "entries in flight")


@case("VU-INFL-07", TRACKING, protocol=P.INFLIGHT_SHMFD, kinds=BLOCK, rows={"1": 1, "3": 3})
def resubmitted(check: Check, count: int) -> None:
    """What the buffer says was in flight is processed again after a reconnection, in the order of its counters."""
    with check.guest(start=False, size=64) as guest:
        inflight, fd = _get(check, guest, 1, 64)
        driver = guest.block()
        pending = [
            driver.submit(Request.IN, check.scratch.first + n, read_len=512, indirect=False, kick=False)
            for n in range(count)
        ]
        guest.queue.publish()
        with mmap.mmap(fd.number, inflight.mmap_offset + inflight.mmap_size) as area:
            at = inflight.mmap_offset
            area[at : at + HEAD_LEN] = struct.pack("<QHHHH", 0, 1, 64, 0, 0)
            for n in range(count):
                entry = at + HEAD_LEN + 3 * n * ENTRY_LEN  # a direct read has three descriptors
                area[entry : entry + ENTRY_LEN] = struct.pack("<B5xHQ", 1, 0, n + 1)
        check.note(f"the in-flight buffer marks {count} heads; the rings start at base {count}")
        guest.frontend.set_features()
        guest.frontend.set_inflight(inflight, fd)
        guest.frontend.bases[0] = count
        guest.session.start()
        for n, each in enumerate(pending):
            done = driver.complete(each)
            check.equal(done.data, check.scratch.known[512 * n :][:512], "the sector's bytes,")
        check.equal(guest.queue.used_idx, count, "used elements")


@case("VU-INFL-08", TRACKING, protocol=P.INFLIGHT_SHMFD, kinds=BLOCK, marks=[Mark.WRITES])
def over_a_reconnection(check: Check) -> None:
    """The same buffer goes on to the next connection: a ring at rest starts with nothing to do again."""
    with check.guest(start=False) as guest:
        inflight, fd = _start(check, guest)
        guest.works(3)
        check.equal(guest.session.stop()[0], 3, "base")
        guest.frontend.set_inflight(inflight, fd)
        guest.session.start()
        check.expect(check.quiet(guest.queue), "nothing to be done again", "something was used")
        guest.works(2)


@case("VU-INFL-09", GET, protocol=P.INFLIGHT_SHMFD)
def several_times(check: Check) -> None:
    """GET_INFLIGHT_FD may come again, for another shape."""
    with check.guest(start=False) as guest:
        for size in (64, 128, 256):
            _get(check, guest, 1, size)
        check.answers(guest.frontend)
