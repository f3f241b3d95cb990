"""Our end of the socket: a frame in, an action out; the outcome back in, a reply out.

A message is a transaction. `receive` decodes it and checks all of it against what has been negotiated and told before;
it changes nothing. The host performs the action. `done` then applies the change, which was worked out before, and
makes the reply; `refuse` leaves everything as it was.
Spec: vhost-user, "Front-end message types", "Ring states", "VHOST_USER_PROTOCOL_F_REPLY_ACK".
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from vhostd.errors import LocalProtocolError, RemoteProtocolError, VhostdError
from vhostd.protocol import actions as act
from vhostd.protocol import vring as vr
from vhostd.protocol import wire
from vhostd.protocol.checks import check_config, check_region, check_vring_fd, count, identity, span
from vhostd.protocol.framing import Frame
from vhostd.protocol.messages import (
    U64,
    Config,
    MemRegion,
    MemTable,
    Message,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)
from vhostd.protocol.rules import RULES, SERVED, ReplyKind, Rule, name_of
from vhostd.spec import net, virtio
from vhostd.spec import vhost_user as spec
from vhostd.spec.vhost_user import FrontendRequest, ProtocolFeature

_UNSHARED = (
    "guest memory is not shared: start QEMU with memory-backend-memfd,share=on "
    "(-object memory-backend-memfd,id=mem,size=SIZE,share=on -machine memory-backend=mem)"
)

_UNSERVED_FEATURES = virtio.Feature.LOG_ALL | virtio.Feature.ACCESS_PLATFORM | virtio.Feature.RING_PACKED


@dataclass(frozen=True)
class Offer:
    """What a device offers.

    `features` are virtio masks; PROTOCOL_FEATURES joins them by itself when there are protocol features. `queue_num`
    is GET_QUEUE_NUM's answer (queues of a disk, queue pairs of a network device), `rings` the number of vrings,
    `config_len` the bytes of configuration space.
    Raises LocalProtocolError for what this end does not perform.
    """

    features: int
    protocol_features: ProtocolFeature
    queue_num: int
    rings: int
    mem_slots: int = 509
    config_len: int = 0

    def __post_init__(self) -> None:
        if extra := self.protocol_features & ~int(SERVED):
            raise LocalProtocolError(f"cannot be offered: {ProtocolFeature(extra)!r}")
        if self.features & _UNSERVED_FEATURES:
            raise LocalProtocolError(f"cannot be offered: {virtio.Feature(self.features & _UNSERVED_FEATURES)!r}")
        if not 1 <= self.rings <= spec.VRINGS_MAX:
            raise LocalProtocolError(f"{self.rings} rings: an index has eight bits")
        if not 0 <= self.config_len <= spec.CONFIG_LEN_MAX:
            raise LocalProtocolError(f"{self.config_len} bytes of configuration space: a message has 256")


@dataclass(frozen=True)
class Reply:
    """Bytes to send, and descriptors to send with them, which stay the caller's."""

    data: bytes
    fds: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Step:
    """What follows from a message that passed: the action, the change it makes, the reply it has."""

    action: act.Action
    apply: Callable[[Any], None] | None = None
    answer: Callable[[Any], Message] | None = None
    takes_value: bool = False
    """The change wants what the host found, though no reply carries it."""


@dataclass(frozen=True)
class _Pending:
    frame: Frame
    step: _Step


class BackendSession:
    """What is known of one connection, and the rules that each message must keep.

    Attributes, for the host to read; only `needs_reset` is the host's to set:

        features            virtio features acknowledged; 0 before
        features_set        whether SET_FEATURES has come since the start or the last reset
        protocol_features   protocol features acknowledged
        vrings              one for each ring of the offer, told of or not
        regions             guest memory, in the order in which it came
        status              the driver's device status
        needs_reset         True lets GET_STATUS say DEVICE_NEEDS_RESET, until a reset
        owned               whether SET_OWNER has come; nothing depends on it
    """

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.features = 0
        self.features_set = False
        self.protocol_features = ProtocolFeature(0)
        self.vrings = [vr.Vring(index) for index in range(offer.rings)]
        self.regions: tuple[MemRegion, ...] = ()
        self._told: Counter[MemRegion] = Counter()  # how many times more than once a region was added
        self.status = 0
        self.needs_reset = False
        self.owned = False
        self._pending: _Pending | None = None

    @property
    def offered_features(self) -> int:
        """The answer to GET_FEATURES, a plain number: the complement of an IntFlag has no undefined bits."""
        return int(self.offer.features | (virtio.Feature.PROTOCOL_FEATURES if self.offer.protocol_features else 0))

    @property
    def any_started(self) -> bool:
        """Whether a ring is started; while none is, the device is suspended ("Suspended device state")."""
        return any(vring.started for vring in self.vrings)

    def receive(self, frame: Frame) -> act.Action:
        """Check a frame and return what is to be done; `done` or `refuse` must follow.

        Changes no state. Raises RemoteProtocolError for whatever breaks a rule, whichever bytes and descriptors the
        frame has; the frame keeps its descriptors.
        """
        self._pending = None
        step = self._check(frame)
        self._pending = _Pending(frame, step)
        return step.action

    def done(self, action: act.Action, value: Any = None, fds: tuple[int, ...] = ()) -> Reply | None:
        """Apply what the message of this action changes, and return the reply to send, if there is one.

        `value` is what the action's docstring asks for; `fds` go out with the reply.
        Raises LocalProtocolError for another action than `receive` last returned, or a value that is not asked for.
        """
        pending = self._pending
        if pending is None or pending.step.action is not action:
            raise LocalProtocolError(f"{action!r} is not what was asked for last")
        step, frame = pending.step, pending.frame
        answer = None if step.answer is None else wire.encode(step.answer(value))
        if step.answer is None and value is not None and not step.takes_value:
            raise LocalProtocolError(f"{action!r} has no value")
        self._pending = None
        if step.apply is not None:
            step.apply(value)
        if answer is not None:
            return self._reply(frame, answer, fds)
        if frame.need_reply and self.protocol_features & ProtocolFeature.REPLY_ACK:
            return self._reply(frame, wire.encode(U64(0)), fds)
        return None

    def refuse(self, frame: Frame, error: VhostdError) -> Reply:
        """Return the reply that says no to a frame: `receive` raised `error`, or the host could not do it.

        Raises the error again where the document leaves only closing: a stream that cannot be trusted, a request whose
        reply cannot say no, a request whose sender does not wait for an answer and would go on as if all were well.
        """
        self._pending = None
        if getattr(error, "fatal", False):
            raise error
        rule = RULES.get(frame.request)  # type: ignore[call-overload]  # an IntEnum hashes as its number
        if frame.request == FrontendRequest.GET_CONFIG and self.protocol_features & ProtocolFeature.CONFIG:
            return self._reply(frame, b"")
        if rule is not None and rule.reply is ReplyKind.VALUE:
            raise error
        if frame.need_reply and self.protocol_features & ProtocolFeature.REPLY_ACK:
            return self._reply(frame, wire.encode(U64(1)))
        raise error

    @staticmethod
    def _reply(frame: Frame, payload: bytes, fds: tuple[int, ...] = ()) -> Reply:
        return Reply(wire.frame_bytes(frame.request, spec.VERSION | spec.FLAG_REPLY, payload), fds)

    # What holds for every request.

    def _check(self, frame: Frame) -> _Step:
        name = name_of(frame.request)
        if frame.flags & spec.VERSION_MASK != spec.VERSION:
            raise RemoteProtocolError(
                f'{name}: version {frame.flags & spec.VERSION_MASK}, there is only 1 (vhost-user, "Header")', fatal=True
            )
        if frame.is_reply:
            raise RemoteProtocolError(f'{name}: a request with the reply flag (vhost-user, "Header")', fatal=True)
        # The other bits of the flags are not defined yet, and are let pass.
        rule = RULES.get(frame.request)  # type: ignore[call-overload]
        if rule is None:
            raise RemoteProtocolError(f'{name}: there is no such request (vhost-user, "Front-end message types")')
        self._check_gate(name, rule)
        if len(frame.fds) not in rule.fds:
            raise RemoteProtocolError(
                f'{name}: {count(len(frame.fds), "fd")}, it takes {span(rule.fds)} (vhost-user, "Communication")'
            )
        message = wire.decode(frame.request, frame.payload)
        return self._handlers[FrontendRequest(frame.request)](self, frame, message)

    def _check_gate(self, name: str, rule: Rule) -> None:
        have = self.offer.protocol_features if rule.offered else self.protocol_features
        if rule.needs & ~have:
            raise RemoteProtocolError(
                f"{name}: needs the protocol feature {rule.needs.name}, which was not "
                f'{"offered" if rule.offered else "negotiated"} (vhost-user, "Front-end message types")'
            )
        if not rule.served:
            raise RemoteProtocolError(f'{name}: not for this device (vhost-user, "Front-end message types")')

    def _vring(self, name: str, index: int, event: vr.Event) -> vr.Vring:
        if index >= len(self.vrings):
            raise RemoteProtocolError(
                f'{name}: ring {index}, the device has {len(self.vrings)} (vhost-user, "A vring state description")'
            )
        vring = self.vrings[index]
        if not vring.allows(event):
            raise RemoteProtocolError(
                f'{name}: ring {index} is started, stop it with GET_VRING_BASE first (vhost-user, "Ring states")'
            )
        return vring

    # Features.

    def _get_features(self, frame: Frame, message: Message) -> _Step:
        return _value(U64(self.offered_features))

    def _set_features(self, frame: Frame, message: U64) -> _Step:
        features = message.value
        if extra := features & ~self.offered_features:
            raise RemoteProtocolError(
                f'SET_FEATURES: {extra:#x} was not offered, {self.offered_features:#x} was (vhost-user, "SET_FEATURES")'
            )
        if self.any_started and features != self.features:
            raise RemoteProtocolError(
                f"SET_FEATURES: {features:#x} while a ring is started with {self.features:#x} "
                '(vhost-user, "Ring states"; virtio 2.2)'
            )
        enable_all = not features & virtio.Feature.PROTOCOL_FEATURES

        def apply(_: object) -> None:
            self.features, self.features_set = features, True
            if enable_all:
                for vring in self.vrings:
                    vring.enabled = True
                    vring.was_enabled |= vring.started

        return _Step(act.SetFeatures(features, enable_all), apply)

    def _need_protocol_features(self, name: str) -> None:
        if not self.offered_features & virtio.Feature.PROTOCOL_FEATURES:
            raise RemoteProtocolError(f'{name}: PROTOCOL_FEATURES was not offered (vhost-user, "{name}")')

    def _get_protocol_features(self, frame: Frame, message: Message) -> _Step:
        self._need_protocol_features("GET_PROTOCOL_FEATURES")
        return _value(U64(self.offer.protocol_features))

    def _set_protocol_features(self, frame: Frame, message: U64) -> _Step:
        self._need_protocol_features("SET_PROTOCOL_FEATURES")
        if extra := message.value & ~int(self.offer.protocol_features):
            raise RemoteProtocolError(
                f'SET_PROTOCOL_FEATURES: {extra:#x} was not offered (vhost-user, "Protocol features")'
            )
        if self.any_started and message.value != self.protocol_features:
            raise RemoteProtocolError(
                f"SET_PROTOCOL_FEATURES: {message.value:#x} while a ring is started with {self.protocol_features:#x} "
                '(vhost-user, "Protocol features")'
            )

        def apply(_: object) -> None:
            self.protocol_features = ProtocolFeature(message.value)

        return _Step(act.Nothing(), apply)

    def _get_queue_num(self, frame: Frame, message: Message) -> _Step:
        return _value(U64(self.offer.queue_num))

    def _set_owner(self, frame: Frame, message: Message) -> _Step:
        def apply(_: object) -> None:
            self.owned = True

        return _Step(act.Nothing(), apply)

    def _reset_owner(self, frame: Frame, message: Message) -> _Step:
        # "It is recommended that back-ends either ignore this message, or use it to disable all rings."
        return _Step(act.Nothing())

    # Memory.

    def _set_mem_table(self, frame: Frame, message: MemTable) -> _Step:
        regions = message.regions
        rule = '(vhost-user, "Multiple memory regions description")'
        if not regions:
            raise RemoteProtocolError(f"SET_MEM_TABLE: 0 regions, a device needs memory {rule}")
        if not frame.fds:
            raise RemoteProtocolError(f"SET_MEM_TABLE: {_UNSHARED}")
        if len(frame.fds) != len(regions):
            raise RemoteProtocolError(
                f"SET_MEM_TABLE: {count(len(frame.fds), 'fd')} for {count(len(regions), 'region')} {rule}"
            )
        for number, region in enumerate(regions):
            check_region("SET_MEM_TABLE", region, regions[:number])

        def apply(_: object) -> None:
            self.regions = regions
            self._told.clear()

        return _Step(act.SetMemTable(regions, frame.fds), apply)

    def _get_max_mem_slots(self, frame: Frame, message: Message) -> _Step:
        return _value(U64(self.offer.mem_slots))

    def _add_mem_reg(self, frame: Frame, message: SingleRegion) -> _Step:
        region = message.region
        if not frame.fds:
            raise RemoteProtocolError(f"ADD_MEM_REG: {_UNSHARED}")
        if region in self.regions:
            # QEMU 7.2 tells a network card's memory once for each queue pair, and takes it back as often.
            return _Step(act.Nothing(), lambda _: self._told.update([region]))
        if len(self.regions) >= self.offer.mem_slots:
            raise RemoteProtocolError(
                f'ADD_MEM_REG: all {self.offer.mem_slots} slots are taken (vhost-user, "GET_MAX_MEM_SLOTS")'
            )
        check_region("ADD_MEM_REG", region, self.regions)

        def apply(_: object) -> None:
            self.regions = (*self.regions, region)

        return _Step(act.AddRegion(region, frame.fds[0]), apply)

    def _rem_mem_reg(self, frame: Frame, message: SingleRegion) -> _Step:
        # A descriptor may come along, from front-ends that copied ADD_MEM_REG: the frame closes it, unused.
        wanted = identity(message.region)
        found = next((region for region in self.regions if identity(region) == wanted), None)
        if found is None:
            raise RemoteProtocolError(
                f"REM_MEM_REG: no region has gpa {wanted[0]:#x}, size {wanted[1]:#x}, user address {wanted[2]:#x} "
                '(vhost-user, "REM_MEM_REG")'
            )

        if self._told[found]:
            return _Step(act.Nothing(), lambda _: self._told.subtract([found]))

        def apply(_: object) -> None:
            self.regions = tuple(region for region in self.regions if region is not found)

        return _Step(act.RemoveRegion(found), apply)

    # Rings.

    def _set_vring_num(self, frame: Frame, message: VringState) -> _Step:
        # A size for a ring that was disabled and not stopped begins another: User-Mode Linux has freed the old one.
        again = message.index < len(self.vrings) and self.vrings[message.index].abandoned
        vring = self._vring("SET_VRING_NUM", message.index, vr.Event.STOP if again else vr.Event.NUM)
        if misfit := vr.misfit_of_num(message.num):
            raise RemoteProtocolError(f"SET_VRING_NUM: ring {message.index}: {misfit}")

        def apply(_: object) -> None:
            vring.num = message.num

        def begin(stood: int) -> None:
            vring.move(vr.Event.STOP)
            vring.base, vring.num = stood, message.num

        return _Step(act.StopRing(vring.index), begin, takes_value=True) if again else _Step(act.Nothing(), apply)

    def _set_vring_addr(self, frame: Frame, message: VringAddr) -> _Step:
        name = f"SET_VRING_ADDR: ring {message.index}"
        if message.index < len(self.vrings) and self.vrings[message.index].addr == message:
            return _Step(act.Nothing())  # told again, as front-ends do to switch logging, and nothing is new
        vring = self._vring("SET_VRING_ADDR", message.index, vr.Event.ADDR)
        if message.flags & spec.VRING_ADDR_LOG:
            raise RemoteProtocolError(f'{name}: to be logged, but LOG_ALL was not offered (vhost-user, "Migration")')
        if message.flags:
            raise RemoteProtocolError(
                f'{name}: flags {message.flags:#x} are not known (vhost-user, "A vring address description")'
            )
        self._need_memory(name)
        misfit = vr.misfit_of_addr(message)
        if misfit is None and vring.num:
            misfit = vr.misfit_of_geometry(vring.num, message, event_idx=self._event_idx)
        if misfit:
            raise RemoteProtocolError(f"{name}: {misfit}")

        def apply(_: object) -> None:
            vring.addr = message

        return _Step(act.Nothing(), apply)

    def _set_vring_base(self, frame: Frame, message: VringState) -> _Step:
        vring = self._vring("SET_VRING_BASE", message.index, vr.Event.BASE)
        if message.num > 0xFFFF:
            raise RemoteProtocolError(
                f"SET_VRING_BASE: ring {message.index}: {message.num:#x} has more than 16 bits "
                '(vhost-user, "A vring descriptor index for split virtqueues")'
            )

        def apply(_: object) -> None:
            vring.base, vring.stood = message.num, None

        return _Step(act.Nothing(), apply)

    def _get_vring_base(self, frame: Frame, message: VringState) -> _Step:
        # The num of the request is reserved, and not looked at: front-ends have put things there.
        vring = self._vring("GET_VRING_BASE", message.index, vr.Event.STOP)
        if not vring.started:
            return _value(VringState(vring.index, vring.base if vring.stood is None else vring.stood))

        def answer(value: Any) -> Message:
            if not isinstance(value, int) or not 0 <= value <= 0xFFFF:
                raise LocalProtocolError(f"{value!r} is not the next available index of a split ring")
            return VringState(vring.index, value)

        def apply(value: int) -> None:
            vring.move(vr.Event.STOP)
            vring.base = value

        return _Step(act.StopRing(vring.index), apply, answer)

    def _set_vring_kick(self, frame: Frame, message: VringFd) -> _Step:
        name = f"SET_VRING_KICK: ring {message.index}"
        vring = self._vring("SET_VRING_KICK", message.index, vr.Event.KICK)
        check_vring_fd(name, frame, message)
        if message.no_fd:
            raise RemoteProtocolError(
                f'{name}: no descriptor and so polling, which this back-end does not do (vhost-user, "SET_VRING_KICK")'
            )
        if not self.features_set:
            raise RemoteProtocolError(f'{name}: before SET_FEATURES (vhost-user, "Ring states"; virtio 3.1.1)')
        self._need_memory(name)
        if not vring.num or vring.addr is None:
            missing = "SET_VRING_ADDR" if vring.num else "SET_VRING_NUM"
            raise RemoteProtocolError(f'{name}: before {missing} (vhost-user, "Ring states")')
        if misfit := vr.misfit_of_geometry(vring.num, vring.addr, event_idx=self._event_idx):
            raise RemoteProtocolError(f"{name}: {misfit}")

        def apply(_: object) -> None:
            vring.move(vr.Event.KICK)

        return _Step(act.SetKick(vring.index, frame.fds[0], vring.started), apply)

    def _set_vring_call(self, frame: Frame, message: VringFd) -> _Step:
        vring = self._vring("SET_VRING_CALL", message.index, vr.Event.CALL)
        check_vring_fd(f"SET_VRING_CALL: ring {message.index}", frame, message)

        def apply(_: object) -> None:
            vring.call_set = not message.no_fd

        return _Step(act.SetCall(vring.index, frame.fds[0] if frame.fds else None), apply)

    def _set_vring_err(self, frame: Frame, message: VringFd) -> _Step:
        vring = self._vring("SET_VRING_ERR", message.index, vr.Event.ERR)
        check_vring_fd(f"SET_VRING_ERR: ring {message.index}", frame, message)

        def apply(_: object) -> None:
            vring.err_set = not message.no_fd

        return _Step(act.SetErr(vring.index, frame.fds[0] if frame.fds else None), apply)

    def _set_vring_enable(self, frame: Frame, message: VringState) -> _Step:
        self._need_protocol_features("SET_VRING_ENABLE")
        vring = self._vring("SET_VRING_ENABLE", message.index, vr.Event.ENABLE)
        if message.num > 1:
            raise RemoteProtocolError(
                f'SET_VRING_ENABLE: ring {message.index}: {message.num} is neither 0 nor 1 (vhost-user, "Ring states")'
            )

        def apply(_: object) -> None:
            vring.enabled = bool(message.num)
            vring.was_enabled |= vring.started and vring.enabled

        return _Step(act.EnableRing(vring.index, bool(message.num)), apply)

    @property
    def _event_idx(self) -> bool:
        return bool(self.features & virtio.Feature.EVENT_IDX)

    def _need_memory(self, name: str) -> None:
        if not self.regions:
            raise RemoteProtocolError(f"{name}: before any memory; if none is to come, {_UNSHARED}")

    # Configuration, status, and what belongs to one kind of device.

    def _get_config(self, frame: Frame, message: Config) -> _Step:
        offset = check_config("GET_CONFIG", message, spec.CONFIG_LEN_MAX)

        def answer(value: Any) -> Message:
            if not isinstance(value, bytes) or len(value) != message.size:
                raise LocalProtocolError(f"{value!r} is not {message.size} bytes of configuration space")
            return Config(message.offset, message.size, message.flags, value)

        return _Step(act.GetConfig(offset, message.size), answer=answer)

    def _set_config(self, frame: Frame, message: Config) -> _Step:
        offset = check_config("SET_CONFIG", message, self.offer.config_len)
        return _Step(act.SetConfig(offset, message.flags, message.payload))

    def _set_backend_req_fd(self, frame: Frame, message: Message) -> _Step:
        return _Step(act.SetBackendChannel(frame.fds[0]))

    def _reset_device(self, frame: Frame, message: Message) -> _Step:
        return _Step(act.ResetDevice(), self._reset, takes_value=True)

    def _reset(self, stood: dict[int, int] | None) -> None:
        # The connection, its protocol features and guest memory outlive a reset: front-ends do not tell them again.
        # `stood` is where the rings stood that the reset has stopped.
        for vring in self.vrings:
            vring.stood = (stood or {}).get(vring.index, vring.stood if vring.stood is not None else vring.base)
            vring.move(vr.Event.RESET)
        self.features, self.features_set = 0, False
        self.status, self.needs_reset = 0, False

    def _set_status(self, frame: Frame, message: U64) -> _Step:
        if message.value > 0xFF:
            raise RemoteProtocolError(f"SET_STATUS: {message.value:#x} has more than eight bits (virtio 2.1)")
        if message.value == 0:
            return _Step(act.ResetDevice(), self._reset, takes_value=True)
        status = message.value
        if not self.features_set:
            # The driver must not believe that features are agreed upon before they are (virtio 3.1.1).
            status &= ~int(virtio.Status.FEATURES_OK)

        def apply(_: object) -> None:
            self.status = status

        return _Step(act.SetStatus(status), apply)

    def _get_status(self, frame: Frame, message: Message) -> _Step:
        return _value(U64(self.status | (virtio.Status.DEVICE_NEEDS_RESET if self.needs_reset else 0)))

    def _net_set_mtu(self, frame: Frame, message: U64) -> _Step:
        if not net.MIN_MTU <= message.value <= net.MAX_MTU:
            raise RemoteProtocolError(
                f"NET_SET_MTU: {message.value} is not between {net.MIN_MTU} and {net.MAX_MTU} (virtio 5.1.4.1)"
            )
        return _Step(act.SetMtu(message.value))

    def _send_rarp(self, frame: Frame, message: U64) -> _Step:
        return _Step(act.SendRarp(message.value.to_bytes(8, "little")[:6]))

    _handlers: ClassVar[dict[FrontendRequest, Callable[["BackendSession", Frame, Any], _Step]]] = {
        FrontendRequest.GET_FEATURES: _get_features,
        FrontendRequest.SET_FEATURES: _set_features,
        FrontendRequest.SET_OWNER: _set_owner,
        FrontendRequest.RESET_OWNER: _reset_owner,
        FrontendRequest.SET_MEM_TABLE: _set_mem_table,
        FrontendRequest.SET_VRING_NUM: _set_vring_num,
        FrontendRequest.SET_VRING_ADDR: _set_vring_addr,
        FrontendRequest.SET_VRING_BASE: _set_vring_base,
        FrontendRequest.GET_VRING_BASE: _get_vring_base,
        FrontendRequest.SET_VRING_KICK: _set_vring_kick,
        FrontendRequest.SET_VRING_CALL: _set_vring_call,
        FrontendRequest.SET_VRING_ERR: _set_vring_err,
        FrontendRequest.GET_PROTOCOL_FEATURES: _get_protocol_features,
        FrontendRequest.SET_PROTOCOL_FEATURES: _set_protocol_features,
        FrontendRequest.GET_QUEUE_NUM: _get_queue_num,
        FrontendRequest.SET_VRING_ENABLE: _set_vring_enable,
        FrontendRequest.SEND_RARP: _send_rarp,
        FrontendRequest.NET_SET_MTU: _net_set_mtu,
        FrontendRequest.SET_BACKEND_REQ_FD: _set_backend_req_fd,
        FrontendRequest.GET_CONFIG: _get_config,
        FrontendRequest.SET_CONFIG: _set_config,
        FrontendRequest.RESET_DEVICE: _reset_device,
        FrontendRequest.GET_MAX_MEM_SLOTS: _get_max_mem_slots,
        FrontendRequest.ADD_MEM_REG: _add_mem_reg,
        FrontendRequest.REM_MEM_REG: _rem_mem_reg,
        FrontendRequest.SET_STATUS: _set_status,
        FrontendRequest.GET_STATUS: _get_status,
    }


def _value(message: Message) -> _Step:
    return _Step(act.Nothing(message), answer=lambda _: message)
