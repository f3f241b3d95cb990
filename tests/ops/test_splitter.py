"""QMP's stream: objects one after the other, with or without line ends between them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostd.control.splitter import Splitter
from vhostd.errors import ControlError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=4),
    st.sampled_from([b"", b"\n", b"\r\n", b" \t"]),
    st.data(),
)
def test_any_objects_in_any_pieces_come_out_whole(objects: list[dict], between: bytes, data: st.DataObject) -> None:
    stream = b"".join(json.dumps(o, ensure_ascii=False).encode() + between for o in objects)
    splitter, found, at = Splitter(1 << 20), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        found += splitter.feed(stream[at : at + size])
        at += size
    assert [json.loads(raw) for raw in found] == objects


def test_what_begins_no_object_is_refused_and_the_stream_goes_on() -> None:
    splitter = Splitter(100)
    for junk in (b"hello", b"[1]", b"]", b"}", b'"{"', b"\0"):
        with pytest.raises(ControlError, match="JSON parse error"):
            splitter.feed(junk)
        assert splitter.feed(b'{"a":1}') == [b'{"a":1}']


def test_an_object_past_the_limit_is_refused_before_it_is_whole() -> None:
    splitter = Splitter(100)
    with pytest.raises(ControlError, match="at most 100 bytes"):
        splitter.feed(b'{"a":"' + b"x" * 100)
    assert splitter.feed(b"{}") == [b"{}"]
    with pytest.raises(ControlError, match="at most 100 bytes"):
        splitter.feed(b'{"a":"' + b"x" * 100 + b'"}')
