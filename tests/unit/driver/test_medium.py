"""The image that back-ends are compared on (docs/bench.md, "Comparing"): one state before each round."""

import os

import pytest

from vhostd.driver.load.errors import BenchError
from vhostd.driver.load.medium import Medium

LENGTH = 3 << 20


@pytest.fixture
def calls(monkeypatch):
    """What of the image is written to the disk, laid out and dropped, in order."""
    seen = []

    def tap(name, say):
        real = getattr(os, name)

        def call(fd, *args):
            seen.append((say, os.path.realpath(f"/proc/self/fd/{fd}")))
            return real(fd, *args)

        monkeypatch.setattr(os, name, call)

    tap("fsync", "synced")
    tap("posix_fadvise", "advised")
    return seen


@pytest.mark.parametrize("folios", ["small", "large"])
def test_what_a_round_wrote_is_on_the_disk_before_the_next(tmp_path, calls, folios):
    """Who writes more would else slow down who comes after him: the state of the page cache is equal for all."""
    medium = Medium(tmp_path / "image", LENGTH)
    medium.prepare("hot", folios)
    calls.clear()
    with medium.path.open("r+b") as file:
        file.write(b"a round")
    medium.prepare("hot", folios)
    assert calls == [("synced", str(medium.path))], "and a hot image is not laid out twice"
    assert medium.path.read_bytes()[:7] == b"a round"


def test_a_cold_image_is_dropped_each_time(tmp_path, calls):
    medium = Medium(tmp_path / "image", LENGTH)
    for _ in range(2):
        calls.clear()
        medium.prepare("cold", "small")
        assert [say for say, _ in calls] == ["synced", "advised"]


def test_it_is_laid_out_anew_for_another_state(tmp_path, calls):
    """Dropped, read in again page by page or piece by piece: the content stays."""
    medium = Medium(tmp_path / "image", LENGTH)
    medium.prepare("hot", "small")
    content = medium.path.read_bytes()
    assert len(content) == LENGTH
    calls.clear()
    medium.prepare("hot", "large")
    assert ("advised", str(medium.path)) in calls
    assert medium.path.read_bytes() == content


def test_what_was_there_stays_there(tmp_path):
    """An image that the user names has its own length, and is not removed."""
    path = tmp_path / "own"
    path.write_bytes(bytes(1 << 20))
    medium = Medium(path, LENGTH)
    medium.prepare("hot", "small")
    assert medium.length == 1 << 20
    medium.remove()
    assert path.exists()
    other = Medium(tmp_path / "made", LENGTH)
    other.prepare("hot", "small")
    other.remove()
    assert not other.path.exists()


def test_where_it_cannot_be_it_says_so(tmp_path):
    with pytest.raises(BenchError, match="name a file to write with --image"):
        Medium(tmp_path / "no" / "image", LENGTH).prepare("hot", "small")
