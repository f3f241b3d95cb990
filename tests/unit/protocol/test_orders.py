"""The orders in which front-ends really speak, replayed."""

import pytest

from vhostd.driver.profiles import PROFILES, Ring, Scene, walk
from vhostd.driver.profiles.replay import REPLIED
from vhostd.protocol import actions as act
from vhostd.protocol import messages as m
from vhostd.protocol.wire import decode_reply
from vhostd.spec.vhost_user import FrontendRequest as R

from .peer import ALL_PROTOCOL, FEATURES, REGION, REGION2, UVA, F, Peer, addr

RINGS = 4


class Stage:
    """A session, and a front-end of a profile that speaks to it: two of four rings are configured, as QEMU may."""

    def __init__(self, name, kind="block", *, configured=2):
        self.peer = Peer()
        self.session = self.peer.session
        self.profile = PROFILES[name]
        self.order = self.profile.orders[kind]
        at = [UVA + 0x20000 * n for n in range(configured)]
        rings = [Ring(128, a, a + 0x8000, a + 0x10000, 0x1000, lambda: 9, lambda: 12) for a in at]
        self.scene = Scene(self.profile, kind, rings, [REGION, REGION2], RINGS)
        self.sent = []

    def play(self, steps, *, bases=77):
        """Every message is done at once; `bases` is where the rings stand that are stopped."""
        for sent in self.scene.plan(steps):
            value = None
            if sent.request == R.GET_VRING_BASE and self.started[sent.message.index]:
                value = bases
            elif sent.request == R.SET_VRING_NUM and self.started[sent.message.index]:
                value = bases  # a ring that was only disabled is stopped now
            elif sent.request == R.SET_STATUS and sent.message.value == 0:
                value = {n: bases for n, started in enumerate(self.started) if started}
            ack = self.peer.ok(
                sent.request, payload=sent.payload, fds=len(sent.fds), need_reply=sent.need_reply, value=value
            )
            if sent.request in REPLIED:
                self.scene.answered(sent, decode_reply(sent.request, ack.payload))
            elif sent.need_reply:
                assert ack.value == 0, sent
            else:
                assert ack.reply is None
            self.sent.append((sent, ack))
        return self

    @property
    def started(self):
        return [vring.started for vring in self.session.vrings]

    @property
    def enabled(self):
        return [vring.enabled for vring in self.session.vrings]


EVERY = [(name, kind) for name, profile in PROFILES.items() for kind in profile.orders]


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_order_starts_and_stops(name, kind):
    """Each message of each order is accepted, and the rings are then as that front-end means them to be."""
    stage = Stage(name, kind)
    order = stage.order
    stage.play(order.connect).play(order.start)
    assert stage.started == [True, True, False, False]
    assert stage.enabled[:2] == [True, True]
    assert stage.session.regions == (REGION, REGION2)
    if order.pause is not None:
        stage.play(order.pause)
        assert (stage.started[:2], stage.enabled[:2]) == ([True] * 2, [False] * 2)
        stage.play(order.resume)
        assert stage.enabled[:2] == [True, True]
    stage.play(order.stop)
    asked = [sent.message.index for sent, _ in stage.sent if sent.request == R.GET_VRING_BASE]
    assert [n for n in range(2) if not stage.started[n]] == asked
    if name == "uml":
        ring = stage.session.vrings[0]
        stage.peer.ok(R.SET_VRING_ENABLE, m.VringState(0, 1), need_reply=True)
        assert stage.peer.send(R.SET_VRING_NUM, m.VringState(0, 64), need_reply=True).outcome == "refused"
        stage.peer.ok(R.SET_VRING_ENABLE, m.VringState(0, 0), need_reply=True)
        begun = stage.peer.ok(R.SET_VRING_NUM, m.VringState(0, 64), need_reply=True, value=77)
        assert (begun.action, begun.value) == (act.StopRing(0), 0)
        assert (ring.started, ring.num, ring.base) == (False, 64, 77)
        return
    if order.restart is not None:
        stage.play(order.restart)
        assert stage.started == [True, True, False, False]
        assert [vring.base for vring in stage.session.vrings[:2]] == [77, 77]
    if order.reset is not None:
        stage.play(order.reset)
        stage.scene.was_reset()
        stage.play(order.again or order.start)
        assert stage.started == [True, True, False, False]


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_every_order_of_one_that_comes_back(name, kind):
    """After the connection was lost: a new session, and BASE as this front-end finds it in guest memory."""
    stage = Stage(name, kind)
    if stage.order.reconnect is None:
        stage.play(stage.order.connect).play(stage.order.start)
        assert stage.started[0]
        return
    stage.scene.protocol_offered, stage.scene.offered = ALL_PROTOCOL, FEATURES
    stage.play(stage.order.reconnect)
    assert stage.started == [True, True, False, False]
    assert {vring.base for vring in stage.session.vrings[:2]} == {12 if name == "cloud-hypervisor" else 9}


def test_every_step_bears_its_source():
    """A repository, path and function, or a version that was traced."""
    for name, kind in EVERY:
        for steps in vars(PROFILES[name].orders[kind]).values():
            for step in walk(steps or ()):
                assert step.source.startswith("traced: ") or "/" in step.source or "vhost-user" in step.source, step


def test_qemu_enables_rings_that_are_never_set_up():
    """QEMU 11.1 with a disk: SET_FEATURES twice, ENABLE for all four rings, RESET_DEVICE before there is anything."""
    stage = Stage("qemu-11")
    stage.play(stage.order.connect)
    assert [sent.request for sent, _ in stage.sent][-2:] == [R.RESET_DEVICE] * 2
    config, answer = next((sent, ack) for sent, ack in stage.sent if sent.request == R.GET_CONFIG)
    assert len(answer.payload) == len(config.payload) == 12 + 57
    stage.play(stage.order.start)
    assert stage.enabled == [True] * 4
    assert stage.session.status == 0xF
    assert [sent.request for sent, _ in stage.sent].count(R.SET_FEATURES) == 2


def test_qemu_does_not_tell_its_memory_again():
    """QEMU with slots: stop and start, reset and start."""
    for name in ("qemu-7.2", "qemu-11"):
        stage = Stage(name)
        stage.play(stage.order.connect).play(stage.order.start)
        told = [sent.request for sent, _ in stage.sent].count(R.ADD_MEM_REG)
        stage.play(stage.order.stop).play(stage.order.restart)
        assert [sent.request for sent, _ in stage.sent].count(R.ADD_MEM_REG) == told == 2
        assert stage.session.regions == (REGION, REGION2)


def test_qemu_7_resets_before_it_asks_where_the_rings_stand():
    """QEMU 7.2 with a disk, stop and cont: SET_STATUS 0, ENABLE 0, then GET_VRING_BASE, whose answer it starts from."""
    stage = Stage("qemu-7.2")
    peer = stage.peer
    stage.play(stage.order.connect).play(stage.order.start)
    peer.ok(R.SET_STATUS, m.U64(0), value={0: 389, 1: 12})
    peer.ok(R.SET_STATUS, m.U64(0), value={})
    for index, stood in ((0, 389), (1, 12), (2, 0)):
        peer.ok(R.SET_VRING_ENABLE, m.VringState(index, 0), need_reply=True)
        asked = peer.ok(R.GET_VRING_BASE, m.VringState(index, 0))
        assert asked.payload == bytes([index, 0, 0, 0]) + stood.to_bytes(4, "little")
    # A driver that was reset starts its rings at 0, told or not.
    assert stage.session.vrings[0].base == 0
    stage.scene.bases.update({0: 389, 1: 12})
    stage.play(stage.order.restart)
    assert [vring.base for vring in stage.session.vrings[:2]] == [389, 12]


def test_qemu_net_enables_before_features_and_calls_after_kick():
    """QEMU 11.1 with a network card of two pairs, and what it says of the second before the guest asks for it."""
    stage = Stage("qemu-11", "net", configured=4)
    stage.play(stage.order.connect)
    assert stage.enabled == [True, True, False, False]
    assert R.SET_FEATURES not in [sent.request for sent, _ in stage.sent]
    stage.play(stage.order.start)
    said = [(sent.request, sent.message) for sent, _ in stage.sent]
    assert said.index((R.SET_VRING_KICK, m.VringFd(0))) < len(said) - 1 - said[::-1].index(
        (R.SET_VRING_CALL, m.VringFd(0))
    )
    same = [ack.action for sent, ack in stage.sent if sent.request == R.SET_FEATURES]
    assert len(same) == 2
    assert same[0] == same[1] == act.SetFeatures(stage.scene.features, enable_all=False)
    assert all(stage.started)
    stage.play(stage.order.stop)
    assert not any(stage.started)
    enables = [sent.message.num for sent, _ in stage.sent if sent.request == R.SET_VRING_ENABLE]
    assert enables[-2:] == [1, 1]  # ENABLE 0 does not come


def test_cloud_hypervisor_asks_for_configuration_as_if_it_lay_behind_others():
    """GET_CONFIG with offset 0x100, which is where it lies in a PCI device: the reply says so again."""
    stage = Stage("cloud-hypervisor")
    stage.play(stage.order.connect)
    asked, answer = next((sent, ack) for sent, ack in stage.sent if sent.request == R.GET_CONFIG)
    assert answer.action == act.GetConfig(0, 60)
    assert answer.payload == asked.payload


def test_uml_wants_an_answer_to_what_agrees_to_answers():
    """User-Mode Linux: NEED_REPLY on the SET_PROTOCOL_FEATURES that brings REPLY_ACK, and a table with a place left."""
    stage = Stage("uml")
    stage.play(stage.order.connect)
    sent, ack = next(pair for pair in stage.sent if pair[0].request == R.SET_PROTOCOL_FEATURES)
    assert sent.need_reply
    assert ack.value == 0


def test_a_front_end_without_protocol_features_has_its_rings_enabled():
    """ "Ring states": SET_FEATURES without PROTOCOL_FEATURES enables all rings; legacy features are accepted."""
    peer = Peer()
    peer.ok(R.SET_OWNER)
    legacy = int(F.INDIRECT_DESC | F.ANY_LAYOUT)
    assert peer.ok(R.SET_FEATURES, m.U64(legacy)).action == act.SetFeatures(legacy, enable_all=True)
    assert all(v.enabled for v in peer.session.vrings)
    peer.memory().configure().start()
    assert peer.session.vrings[0].started


def test_a_size_that_comes_last_is_checked_at_the_start():
    """ADDR before NUM is no error; rings that overlap at the size that came are."""
    peer = Peer().negotiate().memory()
    peer.ok(R.SET_VRING_ADDR, addr(0, desc=UVA, avail=UVA + 0x1000, used=UVA + 0x2000))
    peer.ok(R.SET_VRING_NUM, m.VringState(0, 512))
    refused = peer.send(R.SET_VRING_KICK, m.VringFd(0), 1, need_reply=True)
    assert refused.outcome == "refused"
    assert "overlaps the descriptor table" in str(refused.error)
    peer.ok(R.SET_VRING_NUM, m.VringState(0, 256))
    peer.start()
