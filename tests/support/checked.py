"""A run of the conformance tester, in this process, on one of the back-ends in Python."""

import contextlib
import os

from vhostd.driver.conformance import all_cases
from vhostd.driver.conformance.report import Report
from vhostd.driver.conformance.runner import run
from vhostd.driver.conformance.selection import select
from vhostd.driver.conformance.target import probe, scratch


@contextlib.contextmanager
def checked(backend_type, tmp_path, expression, *wrong, hostile=False):
    """Yield the report of the cases that `expression` names, on a `backend_type` that is `wrong` in these ways."""
    path = tmp_path / "wrong.sock"
    backend = backend_type(path, *wrong)
    try:
        target = probe(str(path), timeout=0.5)
        assert target.pid == os.getpid()
        target.pid = 0  # it is ourselves, and never idle
        chosen = [case for case in select(all_cases(hostile_ones=hostile), expression) if "block" in case.kinds]
        report = Report(target, chosen)
        with scratch(target):
            report.outcomes = list(run(target, chosen))
        yield report
    finally:
        backend.close()
