"""Devices that misbehave in any way a test says."""

import contextlib

import pytest

from tests.support.puppet import Puppet


@pytest.fixture
def puppet(tmp_path):
    """Make puppets; each has its own socket, `.path`."""
    with contextlib.ExitStack() as stack:
        made = []

        def maker(**options):
            path = tmp_path / f"{len(made)}.sock"
            made.append(stack.enter_context(Puppet(path, **options)))
            made[-1].path = path
            return made[-1]

        yield maker
