"""The log of written pages (vhost-user, "Migration", SET_LOG_BASE, SET_LOG_FD)."""

import os

from vhostd.driver.conformance.case import BLOCK, NET, Mark, RingFeature, Row, case
from vhostd.driver.conformance.check import ALL_FEATURES, Check, Guest
from vhostd.driver.frames import frame
from vhostd.fds import Fd
from vhostd.protocol.messages import U64, Log
from vhostd.protocol.wire import encode
from vhostd.spec.vhost_user import VRING_ADDR_LOG, FrontendRequest, ProtocolFeature

R = FrontendRequest
P = ProtocolFeature
PAGE_LEN = 4096  # VHOST_LOG_PAGE
MIGRATION = 'vhost-user, "Migration"'
BASE = 'vhost-user, "Front-end message types", VHOST_USER_SET_LOG_BASE'
LOG_ALL = int(RingFeature.LOG_ALL)
LOG_LEN = 1 << 17  # bytes: 4 GiB of guest addresses


class DirtyLog:
    """A log of our own, and what is marked in it."""

    def __init__(self, check: Check, offset: int = 0) -> None:
        self.fd = check.keep(Fd(os.memfd_create("log", os.MFD_CLOEXEC)))
        self.offset = offset
        os.ftruncate(self.fd.number, offset + LOG_LEN)

    def clear(self) -> None:
        """Mark nothing."""
        os.pwrite(self.fd.number, bytes(LOG_LEN), self.offset)

    def pages(self) -> set[int]:
        """Return the pages that are marked."""
        data = os.pread(self.fd.number, LOG_LEN, self.offset)
        return {8 * at + bit for at, byte in enumerate(data) if byte for bit in range(8) if byte >> bit & 1}


def _pages(gpa: int, length: int) -> set[int]:
    return set(range(gpa // PAGE_LEN, (gpa + length - 1) // PAGE_LEN + 1))


def _log(check: Check, guest: Guest, *, offset: int = 0, rings: bool = True) -> DirtyLog:
    """Start logging on a running device as QEMU does."""
    log = DirtyLog(check, offset)
    guest.frontend.set_log(LOG_LEN, log.fd, offset)
    guest.frontend.set_features(guest.frontend.features | LOG_ALL)
    for ring, queue in enumerate(guest.queues):
        guest.frontend.set_addr(ring, queue, flags=VRING_ADDR_LOG if rings else 0)
    check.answers(guest.frontend)
    return log


@case("VU-LOG-01", BASE, protocol=P.LOG_SHMFD)
def answered(check: Check) -> None:
    """SET_LOG_BASE has a reply of its own when LOG_SHMFD was negotiated."""
    frontend = check.negotiated()
    log = DirtyLog(check)
    frontend.send(R.SET_LOG_BASE, encode(Log(LOG_LEN, 0)), [log.fd.number])
    frontend.reply(R.SET_LOG_BASE).close_fds()
    check.answers(frontend)


@case("VU-LOG-02", MIGRATION, protocol=P.LOG_SHMFD, features=LOG_ALL)
def logging_while_running(check: Check) -> None:
    """Logging starts and stops while rings run: they go on."""
    with check.guest(features=ALL_FEATURES) as guest:
        guest.works(2)
        _log(check, guest)
        guest.works(2)
        guest.frontend.set_features(guest.frontend.features)
        for ring, queue in enumerate(guest.queues):
            guest.frontend.set_addr(ring, queue)
        guest.works(2)


@case("VU-LOG-03", MIGRATION, protocol=P.LOG_SHMFD, features=LOG_ALL, rows={"0": 0, "4096": 4096, "1m": 1 << 20})
def used_ring_is_marked(check: Check, offset: int) -> None:
    """With VHOST_VRING_F_LOG the used ring's modifications are marked, from the log's offset in its file on."""
    with check.guest() as guest:
        log = _log(check, guest, offset=offset)
        log.clear()
        guest.works(1)
        want = _pages(guest.queue.used_gpa, 4)
        check.expect(want <= log.pages(), f"pages {sorted(want)} marked", f"{sorted(log.pages())[:16]}")


@case(
    "VU-LOG-04",
    MIGRATION,
    protocol=P.LOG_SHMFD,
    features=LOG_ALL,
    kinds=BLOCK,
    rows={"512": 512, "4096": 4096, "64k": 65536},
)
def what_was_read_is_marked(check: Check, length: int) -> None:
    """All modifications to memory pointed to by descriptors are marked: data that was read, and the status."""
    with check.guest() as guest:
        log = _log(check, guest)
        at = guest.arena.alloc(length + 8192, PAGE_LEN)
        head = at + length + 4096
        guest.arena.write(head, bytes(8) + check.scratch.first.to_bytes(8, "little"))
        log.clear()
        guest.add(guest.queue, [(head, 16)], [(at, length), (at + length, 1)])
        guest.queue.wait(check.timeout)
        want = _pages(at, length) | _pages(at + length, 1)
        missing = want - log.pages()
        check.expect(not missing, f"{len(want)} pages marked", f"{len(missing)} of them are not: {sorted(missing)[:8]}")


@case("VU-LOG-05", MIGRATION, protocol=P.LOG_SHMFD, features=LOG_ALL, kinds=NET, marks=[Mark.WIRE])
def what_was_received_is_marked(check: Check) -> None:
    """All modifications to memory pointed to by descriptors are marked: header and data of a received frame."""
    wire = check.wire()
    with check.guest() as guest:
        log = _log(check, guest)
        at = guest.arena.alloc(8192, PAGE_LEN)
        log.clear()
        guest.add(guest.queues[0], [], [(at + PAGE_LEN - 32, 2048)])
        wire.send(frame(length=1000))
        guest.queues[0].wait(check.timeout)
        want = _pages(at + PAGE_LEN - 32, 1012)
        check.expect(want <= log.pages(), f"pages {sorted(want)} marked", f"{sorted(log.pages())[:16]}")


@case("VU-LOG-06", MIGRATION, protocol=P.LOG_SHMFD, features=LOG_ALL)
def off_is_off(check: Check) -> None:
    """Without LOG_ALL nothing is marked any more."""
    with check.guest() as guest:
        log = _log(check, guest)
        guest.works(1)
        guest.frontend.set_features(guest.frontend.features)
        for ring, queue in enumerate(guest.queues):
            guest.frontend.set_addr(ring, queue)
        check.answers(guest.frontend)
        log.clear()
        guest.works(2)
        check.equal(sorted(log.pages()), [], "marked pages")


@case("VU-LOG-07", MIGRATION, protocol=P.LOG_SHMFD, features=LOG_ALL)
def rings_that_do_not_log(check: Check) -> None:
    """A used ring without VHOST_VRING_F_LOG need not be marked, and the ring works."""
    with check.guest() as guest:
        _log(check, guest, rings=False)
        guest.works(3)


@case("VU-LOG-08", MIGRATION, protocol=P.LOG_SHMFD, features=LOG_ALL)
def no_update_after_the_stop(check: Check) -> None:
    """Once the rings were stopped no further update is done before they are restarted."""
    with check.guest() as guest:
        log = _log(check, guest)
        guest.works(2)
        guest.session.stop()
        log.clear()
        guest.work().submit(kick=False)
        guest.queue.kick(force=True)
        check.quiet(guest.queue)
        check.equal(sorted(log.pages()), [], "marked pages")


@case("VU-LOG-09", BASE, protocol=P.LOG_SHMFD, features=LOG_ALL)
def replaced(check: Check) -> None:
    """A second SET_LOG_BASE replaces the log."""
    with check.guest() as guest:
        old = _log(check, guest)
        new = _log(check, guest)
        old.clear()
        guest.works(1)
        check.expect(_pages(guest.queue.used_gpa, 4) <= new.pages(), "the new log marked", "it is not")
        check.equal(sorted(old.pages()), [], "pages marked in the old log,")


@case(
    "VU-LOG-10", 'vhost-user, "Front-end message types", VHOST_USER_SET_LOG_FD', features=LOG_ALL, protocol=P.LOG_SHMFD
)
def log_fd(check: Check) -> None:
    """SET_LOG_FD gives an eventfd that may be used to tell that the log was modified: the connection lives on."""
    with check.guest() as guest:
        with Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)) as told:
            guest.frontend.send(R.SET_LOG_FD, b"", [told.number])
        check.answers(guest.frontend)
        guest.works(1)


@case("VU-LOG-11", MIGRATION, lacks=LOG_ALL, protocol=P.REPLY_ACK, rows={"features": Row(LOG_ALL)})
def not_offered(check: Check, bit: int) -> None:
    """A back-end that does not offer VHOST_F_LOG_ALL does not accept it."""
    frontend = check.negotiated()
    answer = check.acked(frontend, R.SET_FEATURES, U64(frontend.features | bit))
    check.expect(answer != 0, "a refusal", "0: accepted")
