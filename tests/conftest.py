"""What holds for all tests: where everything can run, nothing is skipped.

A run that is of something else, of sanitizers or of another back-end, leaves out what is marked as no part of it.
"""

import os

import pytest

AS_ROOT = "needs root: namespaces, taps, a systemd of its own, the descriptors of a daemon"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is no part of this run, and skip what is marked `root` for everybody else."""
    absent = ["unsanitized"] * ("VHOSTD_SANITIZED" in os.environ)
    absent += ["ours"] * (os.environ.get("VHOSTD_PEER", "vhostd") != "vhostd")
    out = [item for item in items if any(item.get_closest_marker(name) for name in absent)]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason=AS_ROOT))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was skipped though it must run: CI is root, on a machine that `run` has prepared."""
    skipped = terminalreporter.stats.get("skipped", [])
    if os.environ.get("CI") and skipped:
        terminalreporter.section("skipped where nothing may be")
        for report in skipped:
            terminalreporter.line(f"{report.nodeid}: {report.longrepr}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run in CI that skipped something."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and exitstatus == 0 and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
