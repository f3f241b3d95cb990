"""Steps to messages, without I/O: who plays an order says what the rings are and what was answered."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from vhostd.driver.profiles.steps import NONE, Base, ConfigRead, Each, Kind, Over, Profile, Step, Steps
from vhostd.errors import LocalProtocolError
from vhostd.protocol.messages import (
    U64,
    Config,
    Empty,
    Inflight,
    MemRegion,
    MemTable,
    Message,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)
from vhostd.protocol.wire import encode
from vhostd.spec.vhost_user import MEM_REGION_LEN, FrontendRequest, ProtocolFeature
from vhostd.spec.virtio import Feature

R = FrontendRequest


@dataclass(frozen=True)
class Ring:
    """What messages say of a ring: entries, front-end addresses, and how to read both idx."""

    size: int
    desc_uva: int
    avail_uva: int
    used_uva: int
    log_gpa: int
    used_idx: Callable[[], int]
    avail_idx: Callable[[], int]


@dataclass(frozen=True)
class Sent:
    """A message to send, its payload in bytes.

    `fds` by name: kick0, call0, err0, region0, channel, inflight.
    """

    step: Step
    message: Message
    payload: bytes
    fds: tuple[str, ...]
    need_reply: bool

    @property
    def request(self) -> FrontendRequest:
        """The message's number."""
        return self.step.request


@dataclass
class Scene:
    """One device as one front-end sees it. `total` rings, of which the driver configures `rings`."""

    profile: Profile
    kind: Kind
    rings: Sequence[Ring]
    regions: Sequence[MemRegion]
    total: int
    mtu: int = 1500
    offered: int = 0
    protocol_offered: ProtocolFeature = NONE
    features: int = 0
    protocol: ProtocolFeature = NONE
    queue_num: int = 1
    mem_slots: int = 0
    status: int = 0
    bases: dict[int, int] = field(default_factory=dict)
    inflight: Inflight | None = None
    done: set[Step] = field(default_factory=set)  # of those that come once
    limit: int = (1 << 64) - 1  # what the driver can do
    protocol_limit: ProtocolFeature = ~NONE

    def plan(self, steps: Steps) -> Iterator[Sent]:
        """Yield each message in turn; conditions look at what `answered` has been told until then."""
        yield from self._run(steps, None, None)

    def answered(self, sent: Sent, answer: Message) -> None:
        """Take note of the reply of a message that has one of its own."""
        match sent.request, answer:
            case R.GET_FEATURES, U64(value):
                self.offered = value
                self.features = value & self.profile.features[self.kind] & self.limit
            case R.GET_PROTOCOL_FEATURES, U64(value):
                self.protocol_offered = ProtocolFeature(value)
            case R.GET_QUEUE_NUM, U64(value):
                self.queue_num = value
            case R.GET_MAX_MEM_SLOTS, U64(value):
                self.mem_slots = value
            case R.GET_STATUS, U64(value):
                self.status = value
            case R.GET_VRING_BASE, VringState(index, num):
                self.bases[index] = num
            case R.GET_INFLIGHT_FD, Inflight():
                self.inflight = answer
            case R.GET_CONFIG, Config():
                pass
            case _:
                raise LocalProtocolError(f"{sent.request.name}: {answer} answers nothing")

    def was_reset(self) -> None:
        """Forget what a guest's reset of the device ends: where the rings stood, and the in-flight buffer."""
        self.bases.clear()
        self.done.clear()

    def _run(self, steps: Steps, place: int | None, pair: int | None) -> Iterator[Sent]:
        for step in steps:
            if isinstance(step, Each):
                for at in self._places(step.over, pair):
                    inner = at if step.over in {Over.PAIRS, Over.FIRST_PAIR, Over.FURTHER_PAIRS} else pair
                    yield from self._run(step.steps, at, inner)
            elif self._wanted(step):
                yield self._sent(step, 0 if place is None else place)

    def _places(self, over: Over, pair: int | None) -> range:
        rings, pairs, regions = len(self.rings), len(self.rings) // 2, len(self.regions)
        return {
            Over.RINGS: range(rings),
            Over.RINGS_DOWN: range(rings - 1, -1, -1),
            Over.ALL: range(self.total),
            Over.OF_PAIR: range(2 * (pair or 0), 2 * (pair or 0) + 2),
            Over.RX: range(0, rings, 2),
            Over.TX: range(1, rings, 2),
            Over.PAIRS: range(pairs),
            Over.FIRST_PAIR: range(min(1, pairs)),
            Over.FURTHER_PAIRS: range(1, pairs),
            Over.REGIONS: range(regions),
            Over.FIRST_REGION: range(min(1, regions)),
            Over.FURTHER_REGIONS: range(1, regions),
        }[over]

    def _wanted(self, step: Step) -> bool:
        if step.once:
            if step in self.done or self.protocol & step.needs != step.needs:
                return False
            self.done.add(step)
        if step.request is R.SET_VRING_ENABLE and not self.features & Feature.PROTOCOL_FEATURES:
            return False
        return self.protocol & step.needs == step.needs and not self.protocol & step.lacks

    def _sent(self, step: Step, at: int) -> Sent:
        message, fds = self._message(step, at)
        payload = encode(message)
        if isinstance(message, MemTable):
            places = max(0, self.profile.table_places - len(message.regions))
            payload += bytes(MEM_REGION_LEN * places)
        if isinstance(message, Inflight):
            payload = encode(message, 24)  # the structure as compilers pad it
        ack = step.ack and bool(self.protocol & ProtocolFeature.REPLY_ACK)
        return Sent(step, message, payload, fds, ack)

    def _message(self, step: Step, at: int) -> tuple[Message, tuple[str, ...]]:
        no_fds: tuple[str, ...] = ()
        value = step.value
        match step.request:
            case R.SET_FEATURES:
                return U64(self.features), no_fds
            case R.SET_PROTOCOL_FEATURES:
                mine = self.profile.protocol_features[self.kind] & self.protocol_limit
                self.protocol = self.protocol_offered & mine
                return U64(int(self.protocol)), no_fds
            case R.SET_BACKEND_REQ_FD:
                return Empty(), ("channel",)
            case R.SET_STATUS:
                assert isinstance(value, int)
                self.status = self.status | value if value else 0
                return U64(self.status), no_fds
            case R.GET_CONFIG:
                assert isinstance(value, ConfigRead)
                return Config(value.offset, value.length, value.flags, bytes(value.length)), no_fds
            case R.NET_SET_MTU:
                return U64(self.mtu), no_fds
            case R.SET_MEM_TABLE:
                return MemTable(tuple(self.regions)), tuple(f"region{n}" for n in range(len(self.regions)))
            case R.ADD_MEM_REG:
                return SingleRegion(self.regions[at]), (f"region{at}",)
            case R.REM_MEM_REG:
                return SingleRegion(self.regions[at]), no_fds
            case R.GET_INFLIGHT_FD:
                return Inflight(0, 0, self.total, self.rings[0].size), no_fds
            case R.SET_INFLIGHT_FD:
                if self.inflight is None:
                    raise LocalProtocolError("SET_INFLIGHT_FD: nothing was got by GET_INFLIGHT_FD")
                return self.inflight, ("inflight",)
            case R.SET_VRING_NUM:
                return VringState(at, self.rings[at].size), no_fds
            case R.SET_VRING_BASE:
                assert isinstance(value, Base)
                return VringState(at, self._base(value, at)), no_fds
            case R.SET_VRING_ADDR:
                ring = self.rings[at]
                return VringAddr(at, 0, ring.desc_uva, ring.used_uva, ring.avail_uva, ring.log_gpa), no_fds
            case R.SET_VRING_KICK | R.SET_VRING_CALL | R.SET_VRING_ERR:
                return VringFd(at), (f"{step.request.name.removeprefix('SET_VRING_').lower()}{at}",)
            case R.SET_VRING_ENABLE:
                assert isinstance(value, int)
                return VringState(at, value), no_fds
            case R.GET_VRING_BASE:
                return VringState(at, 0), no_fds
            case _:
                return Empty(), no_fds

    def _base(self, base: Base, at: int) -> int:
        match base:
            case Base.RETURNED:
                return self.bases.get(at, 0)
            case Base.USED:
                return self.rings[at].used_idx()
            case Base.AVAIL:
                return self.rings[at].avail_idx()
            case Base.ZERO:
                return 0
