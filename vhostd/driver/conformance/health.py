"""What a case leaves behind: whether the back-end lives and serves the next guest, what it keeps, whether it spins."""

import contextlib
import time
from collections.abc import Callable

from vhostd.driver import procfs
from vhostd.driver.conformance.case import BOTH, Case, Level, Mark
from vhostd.driver.conformance.case import Needs as NeedsOffer
from vhostd.driver.conformance.check import Check
from vhostd.driver.conformance.target import Target, refresh
from vhostd.driver.conformance.verdict import Failed, Fault
from vhostd.errors import DeviceError, VhostdError

SETTLE = 1.0  # seconds a back-end has to close what a connection left
SPIN_SECONDS = 0.1  # over which the CPU time of an idle back-end is measured
SPIN_SHARE = 0.3
FRESH = Case("-", "-", "A fresh guest is served.", Level.MUST, BOTH, NeedsOffer(), frozenset(), "-", lambda _: None)


class Health:
    """Measured before each case, compared after it; descriptors and CPU only for hostile cases."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._fds: int | None = None
        self._warm = False
        self._polls = False  # it uses a CPU by design: that is no case's doing

    def before(self, case: Case) -> None:
        """Remember what there is, once a first guest has been served: what that opens for good is no leak."""
        if Mark.HOSTILE in case.marks and not self._warm:
            with contextlib.suppress(VhostdError):
                self.serves()
            time.sleep(SETTLE / 4)
            self._warm = True
            self._polls = bool(self.target.pid) and self._spins() is not None
        self._fds = procfs.fd_count(self.target.pid) if Mark.HOSTILE in case.marks and self.target.pid else None

    def after(self, case: Case) -> tuple[Fault, str] | None:
        """Return what is wrong now, in words, or None."""
        if not self.target.lives():
            return self._died()
        try:
            if Mark.WRITES in case.marks or Mark.HOSTILE in case.marks:
                self._again(lambda: refresh(self.target))
            self.serves()
        except Failed as failure:
            return Fault.WRONG_ANSWER, f"the next guest expected {failure.expected}; saw {failure.seen}"
        except VhostdError as error:
            if self._is_dying():
                return self._died()
            return Fault.WEDGE, f"a fresh guest is not served any more: {error}"
        if Mark.HOSTILE in case.marks:
            return self._kept() or (None if self._polls else self._spins())
        return None

    def serves(self) -> None:
        """Have a fresh guest do a piece of work. Raises what a case raises."""
        self._again(self._serves)

    def _serves(self) -> None:
        check = Check(self.target, FRESH)
        profile, self.target.profile = self.target.profile, None
        try:
            with check.guest() as guest:
                guest.works(1)
        finally:
            self.target.profile = profile
            check.close()

    def _again(self, work: Callable[[], None]) -> None:
        """Do what needs a connection: a back-end may take a moment to see that the last front-end has gone."""
        deadline = time.monotonic() + self.target.timeout
        while True:
            try:
                work()
            except DeviceError:
                if time.monotonic() > deadline or not self.target.lives():
                    raise
                time.sleep(0.05)
            else:
                return

    def _is_dying(self) -> bool:
        """Whether it is gone, or is within a moment: a process takes a while to die that leaves a core."""
        deadline = time.monotonic() + SETTLE
        while self.target.lives():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _died(self) -> tuple[Fault, str]:
        end = self.target.process.end if self.target.process is not None else "its process is gone"
        return Fault.CRASH, f"the back-end died: {end}"

    def _kept(self) -> tuple[Fault, str] | None:
        if self._fds is None:
            return None
        deadline = time.monotonic() + SETTLE
        now = procfs.fd_count(self.target.pid)
        while now is not None and now > self._fds and time.monotonic() < deadline:
            time.sleep(0.02)
            now = procfs.fd_count(self.target.pid)
        if now is not None and now > self._fds:
            return Fault.FD_LEAK, f"{now - self._fds} more descriptors are open than before the case"
        return None

    def _spins(self) -> tuple[Fault, str] | None:
        if not self.target.pid:
            return None
        before = procfs.cpu_ns(self.target.pid)
        time.sleep(0.01)
        if procfs.cpu_ns(self.target.pid) - before < 2_000_000:
            return None
        # It does something: it has time to finish before it counts.
        time.sleep(SPIN_SECONDS)
        before, start = procfs.cpu_ns(self.target.pid), time.monotonic_ns()
        time.sleep(SPIN_SECONDS)
        used, passed = procfs.cpu_ns(self.target.pid) - before, time.monotonic_ns() - start
        if used > SPIN_SHARE * passed:
            return Fault.CPU_SPIN, f"it uses {100 * used // passed} % of a CPU with nothing to do"
        return None
