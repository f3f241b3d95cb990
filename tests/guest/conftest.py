"""Guests under QEMU: built once a session, restored for each test."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.guest.lab import Images, Lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.guest)


@pytest.fixture(scope="session")
def images() -> Images:
    cache = os.environ.get("VHOSTD_CACHE")
    folder = Path(cache) if cache else Path(__file__).parents[2] / ".cache"
    return asyncio.run(Images.make(folder.resolve() / "guest"))


@pytest.fixture
async def lab(tmp_path: Path, images: Images) -> AsyncIterator[Lab]:
    made = Lab(tmp_path, images)
    try:
        yield made
    finally:
        await made.close()
