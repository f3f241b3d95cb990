"""Runs cases on a target, one after another, each with connections and a time of its own.

A case runs on a thread, so that a back-end that never answers costs its time-out and no more: its connections are then
cut, which ends every wait. After each case the back-end must live and serve a fresh guest.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from vhostd.driver import procfs
from vhostd.driver.conformance.case import Case, Level, Mark
from vhostd.driver.conformance.check import Check
from vhostd.driver.conformance.health import Health
from vhostd.driver.conformance.target import Target
from vhostd.driver.conformance.verdict import Evidence, Failed, Fault, Needs, NotOffered, Outcome, Verdict
from vhostd.errors import DeviceError, LocalProtocolError, VhostdError

WAITS_MAX = 8  # answers that a case waits for in vain, one after another
GRACE = 5.0  # seconds a case has to end after its connections were cut
CRASHES_MAX = 3  # starts that fail in a row, after which nobody is there

LASTING = {Fault.CRASH, Fault.WEDGE, Fault.FD_LEAK, Fault.CPU_SPIN}  # others than the one who did it suffer

Progress = Callable[[Case, Outcome | None], None]


def run(target: Target, cases: Iterable[Case], progress: Progress | None = None) -> Iterator[Outcome]:
    """Run each case and yield its outcome. `progress` is told before (None) and after each."""
    health = Health(target)
    gone = ""
    for case in cases:
        if progress is not None:
            progress(case, None)
        if gone:
            outcome = Outcome(case.id, Verdict.BROKE_OFF, gone)
        else:
            outcome = excused(target, case) or _one(target, case, health)
            if outcome.fault in {Fault.CRASH, Fault.WEDGE} and not _back(target, health):
                gone = f"the back-end is gone since {case.id}; with --start COMMAND it is started again"
        if progress is not None:
            progress(case, outcome)
        yield outcome


def excused(target: Target, case: Case) -> Outcome | None:
    """Return why a case is not for this target, or None when it is."""
    missing = case.needs.missing(target.kind, target.offer.features, target.offer.protocol, target.offer.queues)
    if missing:
        return Outcome(case.id, Verdict.NOT_OFFERED, missing)
    if Mark.WIRE in case.marks and target.interface is None:
        return Outcome(case.id, Verdict.NEEDS, "--interface NAME")
    if Mark.PROC in case.marks and (not target.pid or procfs.fd_count(target.pid) is None):
        return Outcome(case.id, Verdict.NEEDS, "the back-end's /proc: in our process namespace, and ours to read")
    if Mark.WRITES in case.marks and target.scratch is not None and not target.scratch.writable:
        return Outcome(case.id, Verdict.NEEDS, "a disk that may be written to")
    return None


def _one(target: Target, case: Case, health: Health) -> Outcome:
    health.before(case)
    start = time.monotonic()
    outcome = _on_thread(target, case)
    wrong = health.after(case)
    if wrong is not None and outcome.verdict is not Verdict.NEEDS:
        fault, seen = wrong
        if outcome.fault is None or fault in {Fault.CRASH, Fault.WEDGE}:
            outcome.evidence.seen = f"{outcome.evidence.seen}; then {seen}" if outcome.evidence.seen else seen
            outcome.evidence.expected = outcome.evidence.expected or "the back-end to live and to serve the next guest"
            outcome.verdict, outcome.fault = Verdict.FAILED, fault
    outcome.seconds = time.monotonic() - start
    return outcome


def _on_thread(target: Target, case: Case) -> Outcome:
    check = Check(target, case)
    result: list[Outcome] = []

    def body() -> None:
        try:
            result.append(_verdict(check))
        finally:
            check.close()

    thread = threading.Thread(target=body, name=case.id, daemon=True)
    thread.start()
    limit = max(case.timeout, WAITS_MAX * target.timeout)
    thread.join(limit)
    if thread.is_alive():
        check.abandon()
        thread.join(GRACE)
        evidence = Evidence(list(check.evidence.sent), "an end", f"none within {limit:g} seconds")
        return Outcome(case.id, Verdict.FAILED, "", Fault.WEDGE, evidence)
    return result[0] if result else Outcome(case.id, Verdict.BROKE_OFF, "the case ended without a verdict")


def _verdict(check: Check) -> Outcome:
    """Run a case to its end on this thread."""
    case, evidence = check.case, check.evidence
    try:
        case.run(check)
    except NotOffered as reason:
        return Outcome(case.id, Verdict.NOT_OFFERED, str(reason), None, evidence)
    except Needs as reason:
        return Outcome(case.id, Verdict.NEEDS, str(reason), None, evidence)
    except Failed as failure:
        evidence.expected, evidence.seen = failure.expected, failure.seen
        return Outcome(case.id, Verdict.FAILED, "", failure.fault, evidence)
    except DeviceError as error:
        evidence.expected, evidence.seen = evidence.expected or case.rule, str(error)
        # Whether it has died, or serves nobody any more, is seen after the case.
        return Outcome(case.id, Verdict.FAILED, "", Fault.WRONG_ANSWER, evidence)
    except LocalProtocolError as error:
        return Outcome(case.id, Verdict.BROKE_OFF, str(error), None, evidence)
    except (VhostdError, OSError) as error:
        return Outcome(case.id, Verdict.BROKE_OFF, f"{type(error).__name__}: {error}", None, evidence)
    except Exception as error:  # noqa: BLE001 - one case's mistake ends that case
        return Outcome(case.id, Verdict.BROKE_OFF, f"{type(error).__name__}: {error}", None, evidence)
    return Outcome(case.id, Verdict.PASSED, "", None, evidence)


def _back(target: Target, health: Health) -> bool:
    """Have the back-end there again; return whether it is."""
    for _ in range(CRASHES_MAX):
        try:
            if target.process is not None:
                target.restart()
            health.serves()
        except VhostdError:
            if target.process is None:
                return False
        else:
            return True
    return False


def conforms(outcomes: Iterable[Outcome], cases: dict[str, Case], *, strict: bool = False) -> bool:
    """Whether nothing that is a MUST failed or broke off; with `strict` nothing that is a SHOULD either."""
    return not any(counts(outcome, cases[outcome.case_id], strict=strict) for outcome in outcomes)


def counts(outcome: Outcome, case: Case, *, strict: bool = False) -> bool:
    """Whether an outcome says that the back-end does not conform."""
    if outcome.verdict is Verdict.BROKE_OFF:
        return True
    return outcome.verdict is Verdict.FAILED and (strict or held_at(outcome, case) is Level.MUST)


def held_at(outcome: Outcome, case: Case) -> Level:
    """Return how strongly a back-end is held to what it failed in."""
    if outcome.fault is Fault.SILENT_RING_ERROR:
        # virtio 2.1.2: a device SHOULD say that it is broken; that it then is, and uses nothing, is not the fault.
        return Level.SHOULD
    return Level.MUST if outcome.fault in LASTING else case.level
