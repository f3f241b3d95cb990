"""Holds any vhost-user back-end, disk or card, to the two documents.

LIFE      A Target is probed once. Each case gets a Check, opens what it needs through it, and all of it is closed when
          the case ends. After each case a fresh guest must be served.
OWNERS    A case runs on a thread of its own; the runner waits for it, and cuts its connections when its time is over.
TRUST     The back-end is what is being tested: each wait has a deadline, no answer is believed, and it may die.
FAILURE   A rule that does not hold raises Failed with what was expected and seen. What the back-end does not claim is
          "not offered", what we were not given "needs", and a mistake of ours "broke off": never "passed".
NOT HERE  Opinions. A case quotes its rule, document and heading; MUST and SHOULD are the document's.
"""

import importlib
import pkgutil

from vhostd.driver.conformance import chapters, hostile
from vhostd.driver.conformance.case import REGISTRY, Case, Mark


def all_cases(*, hostile_ones: bool = False) -> list[Case]:
    """Return the cases of every chapter in order of the chapters; the hostile ones instead with `hostile_ones`."""
    for package in (chapters, hostile):
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return [case for case in REGISTRY.values() if (Mark.HOSTILE in case.marks) == hostile_ones]


__all__ = ["all_cases"]
