"""proxy/faults: the little language, its errors, and what is decided."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostd.errors import ConfigError
from vhostd.proxy.faults import Faults, parse
from vhostd.proxy.record import Channel, Fault
from vhostd.spec.vhost_user import BackendRequest, FrontendRequest

KICK = int(FrontendRequest.SET_VRING_KICK)


@pytest.mark.parametrize(
    ("text", "action", "channel", "on_reply", "code", "number", "nth", "delay_s", "once"),
    [
        ("delay SET_VRING_KICK 200ms", Fault.DELAY, Channel.MAIN, False, KICK, 0, 0, 0.2, False),
        ("drop reply 7", Fault.DROP, Channel.MAIN, True, None, 7, 0, 0, False),
        ("disconnect at 12", Fault.DISCONNECT, Channel.MAIN, False, None, 12, 0, 0, False),
        ("DELAY set_vring_kick 2 1.5s once", Fault.DELAY, Channel.MAIN, False, KICK, 0, 2, 1.5, True),
        ("delay reply * 50us", Fault.DELAY, Channel.MAIN, True, None, 0, 0, 50e-6, False),
        ("delay 5 1s", Fault.DELAY, Channel.MAIN, False, None, 5, 0, 1, False),
        ("drop backend CONFIG_CHANGE_MSG once", Fault.DROP, Channel.BACKEND, False,
         int(BackendRequest.CONFIG_CHANGE_MSG), 0, 0, 0, True),
        ("disconnect at backend reply 1", Fault.DISCONNECT, Channel.BACKEND, True, None, 1, 0, 0, False),
    ],
)  # fmt: skip
def test_a_rule_as_it_is_written(text, action, channel, on_reply, code, number, nth, delay_s, once):
    rule = parse(text)
    assert (rule.action, rule.channel, rule.on_reply) == (action, channel, on_reply)
    assert (rule.code, rule.number, rule.nth, rule.once) == (code, number, nth, once)
    assert rule.delay_s == pytest.approx(delay_s)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "begins with one of drop, delay, disconnect"),
        ("lose 7", "begins with one of"),
        ("drop", "says no message"),
        ("drop reply", "says no message"),
        ("drop SET_VRING_KICKS", "no request 'SET_VRING_KICKS'"),
        ("drop CONFIG_CHANGE_MSG", "put `backend` before it"),
        ("drop backend GET_CONFIG", "leave out `backend` before it"),
        ("delay GET_CONFIG", "needs its time"),
        ("delay GET_CONFIG 2", "needs its time"),
        ("delay GET_CONFIG 200", "needs its time"),
        ("delay GET_CONFIG fast", "'fast' is no time"),
        ("delay * 0ms", "more than 0"),
        ("delay * 7200s", "at most 3600s"),
        ("drop 0", "count from 1"),
        ("drop 99999999999", "count from 1"),
        ("drop GET_CONFIG 200ms", "'200ms' is too much"),
        ("drop 7 once more", "'more' is too much"),
    ],
)
def test_a_wrong_rule_says_what_is_wrong_and_the_form(text, complaint):
    with pytest.raises(ConfigError, match="The form is ACTION") as caught:
        parse(text)
    assert complaint in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_rule_or_a_complaint(text):
    with contextlib.suppress(ConfigError):
        parse(text)


def judge(faults, connection=1, *, is_reply=False, code=KICK, number=1, nth=1):
    return faults.judge(connection, Channel.MAIN, is_reply=is_reply, code=code, number=number, nth=nth)


def test_delays_add_up_until_a_rule_ends_it():
    """In the order of the command line."""
    faults = Faults(tuple(map(parse, ["delay * 10ms", "delay SET_VRING_KICK 20ms", "drop 3", "delay * 1s"])))
    assert judge(faults).delay_s == pytest.approx(1.03)
    assert judge(faults).fault is Fault.DELAY
    dropped = judge(faults, number=3)
    assert (dropped.fault, dropped.delay_s) == (Fault.DROP, pytest.approx(0.03))
    assert judge(faults, is_reply=True).fault is Fault.NONE


def test_once_is_the_first_connection_in_which_it_happens():
    faults = Faults((parse("drop 3 once"), parse("disconnect at GET_CONFIG 2")))
    assert judge(faults, 1, number=2).fault is Fault.NONE
    assert judge(faults, 2, number=3).fault is Fault.DROP
    assert judge(faults, 3, number=3).fault is Fault.NONE
    get = int(FrontendRequest.GET_CONFIG)
    assert [judge(faults, c, code=get, nth=2).fault for c in (1, 2)] == [Fault.DISCONNECT] * 2
    assert judge(faults, code=get, nth=1).fault is Fault.NONE
