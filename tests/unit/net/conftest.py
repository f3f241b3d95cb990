"""Taps and namespaces of our own: these tests need root."""

import pytest

from tests.support.net import Netns, Wire
from tests.unit.net.rig import Card


def pytest_collection_modifyitems(items):
    for item in items:
        if "netns" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.root)


@pytest.fixture
def netns():
    """A network namespace of its own."""
    made = Netns()
    yield made
    made.close()


@pytest.fixture
async def open_card(netns):
    """Open cards with options; they are closed at the end."""
    opened = []

    async def opener(**options):
        card = await Card.open(netns, **options)
        opened.append(card)
        return card

    yield opener
    for card in opened:
        await card.close()


@pytest.fixture
def wire(netns):
    """Open the host's end of a tap, by name."""
    opened = []

    def opener(name="tap0", **options):
        opened.append(Wire(netns, name, **options))
        return opened[-1]

    yield opener
    for each in opened:
        each.close()
