"""A front-end's half for the tests of a session, and a host that performs every action by doing nothing."""

import copy
import os

from vhostd.errors import VhostdError
from vhostd.fds import Fd
from vhostd.protocol import actions as act
from vhostd.protocol import messages as m
from vhostd.protocol import wire
from vhostd.protocol.backend_session import BackendSession, Offer
from vhostd.protocol.framing import Frame
from vhostd.spec import vhost_user as spec
from vhostd.spec import virtio
from vhostd.spec.vhost_user import FrontendRequest as R
from vhostd.spec.vhost_user import ProtocolFeature as P

F = virtio.Feature
FEATURES = F.INDIRECT_DESC | F.EVENT_IDX | F.VERSION_1 | F.ANY_LAYOUT | F.NOTIFY_ON_EMPTY | 0x3F
ALL_PROTOCOL = (
    P.MQ
    | P.REPLY_ACK
    | P.CONFIG
    | P.BACKEND_REQ
    | P.BACKEND_SEND_FD
    | P.CONFIGURE_MEM_SLOTS
    | P.RESET_DEVICE
    | P.STATUS
    | P.NET_MTU
    | P.RARP
)
REGION = m.MemRegion(gpa=0x1000, length=0x100000, uva=0x7F0000000000, mmap_offset=0)
REGION2 = m.MemRegion(gpa=0x200000, length=0x100000, uva=0x7F0000200000, mmap_offset=0x100000)
UVA = REGION.uva


def addr(index=0, flags=0, *, desc=UVA, avail=UVA + 0x4000, used=UVA + 0x8000, log=0x1000):
    return m.VringAddr(index, flags, desc, used, avail, log)


def offer(**changes):
    base = {
        "features": int(FEATURES),
        "protocol_features": ALL_PROTOCOL,
        "queue_num": 4,
        "rings": 4,
        "mem_slots": 4,
        "config_len": 60,
    }
    return Offer(**(base | changes))


def null_fds(count):
    """Descriptors of /dev/null: the session passes them on and never looks at them."""
    return tuple(Fd(os.open("/dev/null", os.O_RDONLY)) for _ in range(count))


class Ack:
    """What came back to a message: one of three."""

    def __init__(self, action=None, reply=None, error=None):
        self.action, self.reply, self.error = action, reply, error

    @property
    def payload(self):
        return None if self.reply is None else self.reply.data[12:]

    @property
    def value(self):
        return int.from_bytes(self.payload, "little")

    @property
    def outcome(self):
        """ "done", "refused" (an answer that says no) or "closed"."""
        if self.error is None:
            return "done"
        return "closed" if self.reply is None else "refused"


class Peer:
    """Sends messages to a session."""

    def __init__(self, **changes):
        self.session = BackendSession(offer(**changes))

    def send(
        self,
        request,
        message=None,
        fds=0,
        *,
        need_reply=False,
        flags=spec.VERSION,
        payload=None,
        length=None,
        value=None,
    ):
        if payload is None:
            payload = wire.encode(message or m.Empty(), length)
        if need_reply:
            flags |= spec.FLAG_NEED_REPLY
        return self.give(Frame(request, flags, payload, null_fds(fds) if isinstance(fds, int) else fds), value)

    def give(self, frame, value=None):
        """One message, as a host handles it."""
        before = snapshot(self.session)
        try:
            try:
                action = self.session.receive(frame)
            except VhostdError as error:
                assert snapshot(self.session) == before, "a refused message changed the session"
                try:
                    reply = self.session.refuse(frame, error)
                except VhostdError as again:
                    assert again is error
                    reply = None
                assert snapshot(self.session) == before, "refusing changed the session"
                return Ack(error=error, reply=reply)
            assert snapshot(self.session) == before, "receive changed the session"
            return Ack(action, self.session.done(action, perform(action) if value is None else value))
        finally:
            frame.close_fds()
            assert all(fd.closed for fd in frame.fds)

    def ok(self, *args, **kwargs):
        ack = self.send(*args, **kwargs)
        if ack.error:
            raise ack.error
        return ack

    def negotiate(self, protocol=ALL_PROTOCOL, features=FEATURES | F.PROTOCOL_FEATURES):
        self.ok(R.GET_FEATURES)
        self.ok(R.GET_PROTOCOL_FEATURES)
        self.ok(R.SET_PROTOCOL_FEATURES, m.U64(protocol))
        self.ok(R.SET_OWNER)
        self.ok(R.SET_FEATURES, m.U64(features))
        return self

    def memory(self):
        self.ok(R.SET_MEM_TABLE, m.MemTable((REGION,)), 1)
        return self

    def configure(self, index=0, num=256):
        base = 0x20000 * index
        self.ok(R.SET_VRING_NUM, m.VringState(index, num))
        self.ok(R.SET_VRING_BASE, m.VringState(index, 0))
        self.ok(R.SET_VRING_ADDR, addr(index, desc=UVA + base, avail=UVA + base + 0x8000, used=UVA + base + 0x10000))
        return self

    def start(self, index=0):
        self.ok(R.SET_VRING_KICK, m.VringFd(index), 1)
        return self

    def enable(self, index=0):
        self.ok(R.SET_VRING_ENABLE, m.VringState(index, 1))
        return self


def perform(action):
    """The value that a host gives back."""
    if isinstance(action, act.StopRing):
        return 77
    if isinstance(action, act.GetConfig):
        return bytes(action.size)
    return None


def snapshot(session):
    """All the state that a message may change."""
    state = {k: copy.deepcopy(v) for k, v in vars(session).items() if k != "_pending"}
    state["offer"] = session.offer
    return state


STATES = {
    "fresh": lambda: Peer(),
    "owned": lambda: owned(),
    "negotiated": lambda: Peer().negotiate(),
    "configured": lambda: Peer().negotiate().memory().configure(),
    "started": lambda: Peer().negotiate().memory().configure().start(),
    "enabled": lambda: Peer().negotiate().memory().configure().start().enable(),
}


def owned():
    peer = Peer()
    peer.ok(R.SET_OWNER)
    return peer
