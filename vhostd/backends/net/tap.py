"""The tap: attached by name, made, or taken over as open descriptors; addressed and bridged on request.

Everything here happens on the control thread, before the process gives anything up, but for the offloads and the MTU,
which follow what a driver negotiates; the ioctls for those need no privilege (offloads) or are refused (MTU).
A name lives in a namespace: all that concerns one is done by a thread of its own that has entered it, and ends.
"""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from vhostd.backends.net.options import NetOptions
from vhostd.errors import BackendError, ConfigError
from vhostd.fds import Fd, close_all

log = logging.getLogger(__name__)
_T = TypeVar("_T")

_DEVICE = "/dev/net/tun"

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNGETIFF = 0x800454D2
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_TUNSETQUEUE = 0x400454D9
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_MULTI_QUEUE = 0x0100
_IFF_ATTACH_QUEUE = 0x0200
_IFF_DETACH_QUEUE = 0x0400
F_CSUM = 0x01
F_TSO4 = 0x02
F_TSO6 = 0x04
F_TSO_ECN = 0x08

# linux/sockios.h, net/if.h
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCGIFMTU = 0x8921
_SIOCSIFMTU = 0x8922
_SIOCBRDELBR = 0x89A1
_IFF_UP = 0x1

_IFREQ_LEN = 40
_CLONE_NEWNET = 0x40000000
VNET_HDR_LEN = 10  # before each frame on the tap, whatever a driver negotiates: struct virtio_net_hdr


def _ifreq(name: str, value: bytes = b"") -> bytearray:
    return bytearray(struct.pack("16s", name.encode()) + value.ljust(_IFREQ_LEN - 16, b"\0"))


def default_mac(name: str) -> bytes:
    """Return 6 bytes, locally administered: the same each time on this host for `name`, others on another host."""
    try:
        host = Path("/etc/machine-id").read_bytes()
    except OSError:
        host = socket.gethostname().encode()
    digest = hashlib.sha256(b"vhostd mac\0" + host.strip() + b"\0" + name.encode()).digest()
    return bytes([(digest[0] & 0xFC) | 0x02]) + digest[1:6]


def _enter(netns: str | None) -> None:
    """Move this thread, and only it, into a network namespace. Raises ConfigError."""
    if netns is None:
        return
    path = netns if "/" in netns else f"/run/netns/{netns}"
    try:
        fd = Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise ConfigError(f"netns {netns}: {path}: {error.strerror}: give the name or path of a namespace") from error
    with fd:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd.number, _CLONE_NEWNET) < 0:
            number = ctypes.get_errno()
            hint = ": entering a namespace needs CAP_SYS_ADMIN" if number == errno.EPERM else ""
            raise ConfigError(f"netns {netns}: {os.strerror(number)}{hint}")


async def _in_netns(netns: str | None, function: Callable[[], _T]) -> _T:
    """Call `function` on a new thread that has entered `netns` and ends with the call."""

    def call() -> _T:
        _enter(netns)
        return function()

    with ThreadPoolExecutor(1, thread_name_prefix="netns") as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, call)


class Tap:
    """An open tap: a non-blocking descriptor for each pair of queues. Close it once no worker uses them."""

    def __init__(self, name: str, fds: tuple[Fd, ...], control: Fd, *, multi_queue: bool) -> None:
        """Take over `fds` and `control`, a socket in the tap's namespace."""
        self.name = name
        self.fds = fds
        self.multi_queue = multi_queue
        self.offload = 0  # TUN_F_* as the kernel took them
        self._control = control
        self._made_bridge: str | None = None

    @classmethod
    async def open(cls, options: NetOptions) -> Self:
        """Open, check and configure what `options` name. Raises ConfigError, which says what to do."""
        if options.tap_fds:
            tap = cls._take_over(options.tap_fds)
        else:
            tap = await _in_netns(options.netns, lambda: cls._attach(options))
        try:
            await _in_netns(options.netns, lambda: tap.configure(options))
        except BaseException:
            tap.close()
            raise
        return tap

    @classmethod
    def _attach(cls, options: NetOptions) -> Self:
        name = options.tap or ""
        try:
            socket.if_nametoindex(name)
        except OSError:
            where = f" in netns {options.netns}" if options.netns else ""
            if not options.create:
                raise ConfigError(
                    f"tap {name}: there is no such interface{where}: "
                    f"make it with `ip tuntap add {name} mode tap vnet_hdr`, or let vhostd make it with --create"
                ) from None
        many = options.queues > 1
        fds: list[Fd] = []
        try:
            try:
                fds.append(_open_queue(name, many=many))
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # One flag says whether a tap has one queue or may have many; the kernel wants it named right.
                many = not many
                fds.append(_open_queue(name, many=many))
                if options.queues > 1:
                    raise ConfigError(
                        f"tap {name}: {options.queues} queue pairs need a multi-queue tap "
                        f"(`ip tuntap add {name} mode tap multi_queue vnet_hdr`); this one has a single queue"
                    ) from None
            fds.extend(_open_queue(name, many=True) for _ in range(1, options.queues))
        except OSError as error:
            close_all(fds)
            raise ConfigError(f"tap {name}: {_attach_hint(name, error, options)}") from error
        except BaseException:
            close_all(fds)
            raise
        return cls(name, tuple(fds), _control_socket(), multi_queue=many)

    @classmethod
    def _take_over(cls, numbers: tuple[int, ...]) -> Self:
        fds = tuple(Fd(number) for number in numbers)
        name = ""
        many = False
        try:
            for fd in fds:
                name, many = _identify(fd, name, several=len(fds) > 1)
                os.set_inheritable(fd.number, False)
                os.set_blocking(fd.number, False)
        except BaseException:
            close_all(fds)
            raise
        return cls(name, fds, _control_socket(), multi_queue=many)

    def configure(self, options: NetOptions) -> None:
        """Set header length, offloads (none), MTU, bridge, address, and up. In the tap's namespace; ConfigError."""
        try:
            fcntl.ioctl(self.fds[0].number, _TUNSETVNETHDRSZ, struct.pack("i", VNET_HDR_LEN))
        except OSError as error:
            raise ConfigError(f"tap {self.name}: its header length cannot be set: {error.strerror}") from error
        self.set_offload(0)
        for index in range(len(self.fds)):
            self.set_queue(index, attached=False)
        if options.mtu is not None and self.mtu not in (options.mtu, None):
            try:
                self._set_mtu(options.mtu)
            except OSError as error:
                raise ConfigError(
                    f"tap {self.name}: its MTU is {self.mtu}, and {options.mtu} cannot be set ({error.strerror}): "
                    f"`ip link set {self.name} mtu {options.mtu}`"
                ) from error
        if options.bridge or options.address:
            asyncio.run(self._configure_links(options))
        if not options.tap_fds:
            self._bring_up()

    async def _configure_links(self, options: NetOptions) -> None:
        """Bridge and address, by netlink, in the namespace of this thread. Raises ConfigError."""
        # 0.3 s: only those pay who ask.
        from pyroute2 import AsyncIPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        doing = "netlink"
        try:
            async with AsyncIPRoute() as ipr:

                async def index_of(ifname: str) -> int | None:
                    found = await ipr.link_lookup(ifname=ifname)
                    return int(found[0]) if found else None

                tap = await index_of(self.name)
                target = tap
                if options.bridge:
                    doing = f"bridge {options.bridge}"
                    target = await index_of(options.bridge)
                    if target is None:
                        if not options.create:
                            raise ConfigError(
                                f"bridge {options.bridge}: there is no such interface: make it with "
                                f"`ip link add {options.bridge} type bridge`, or let vhostd make it with --create"
                            )
                        await ipr.link("add", ifname=options.bridge, kind="bridge")
                        self._made_bridge = options.bridge
                        target = await index_of(options.bridge)
                        await ipr.link("set", index=target, state="up")
                    await ipr.link("set", index=tap, master=target)
                if options.address:
                    doing = f"address {options.address}"
                    await _add_address(ipr, target, options.address)
        except NetlinkError as error:
            hint = ": it needs CAP_NET_ADMIN" if error.code == errno.EPERM else ""
            raise ConfigError(f"tap {self.name}: {doing}: {os.strerror(error.code)}{hint}") from error

    def _bring_up(self) -> None:
        try:
            answer = fcntl.ioctl(self._control.number, _SIOCGIFFLAGS, bytes(_ifreq(self.name)))
            (flags,) = struct.unpack_from("H", answer, 16)
            if not flags & _IFF_UP:
                request = bytes(_ifreq(self.name, struct.pack("H", flags | _IFF_UP)))
                fcntl.ioctl(self._control.number, _SIOCSIFFLAGS, request)
        except OSError as error:
            log.warning("the tap is down and cannot be brought up", extra={"tap": self.name, "error": error.strerror})

    @property
    def mtu(self) -> int | None:
        """Its MTU in bytes; None when it cannot be asked: gone, or in a namespace that we only have descriptors of."""
        try:
            answer = fcntl.ioctl(self._control.number, _SIOCGIFMTU, bytes(_ifreq(self.name)))
        except OSError:
            return None
        (mtu,) = struct.unpack_from("i", answer, 16)
        return int(mtu)

    def try_mtu(self, mtu: int) -> bool:
        """Have the tap's MTU be `mtu` bytes, or at least that when it is not ours to set. Whether it is."""
        now = self.mtu
        if now is None or now == mtu:
            return True
        try:
            self._set_mtu(mtu)
        except OSError:
            return now >= mtu
        return True

    def _set_mtu(self, mtu: int) -> None:
        fcntl.ioctl(self._control.number, _SIOCSIFMTU, bytes(_ifreq(self.name, struct.pack("i", mtu))))

    def set_offload(self, wanted: int) -> int:
        """Let the kernel hand us frames with these TUN_F_* left undone; what an old one refuses it does itself.

        Return what was set. Raises BackendError when not even none can be set.
        """
        for mask in dict.fromkeys((wanted, wanted & ~F_TSO_ECN, wanted & F_CSUM, 0)):
            try:
                fcntl.ioctl(self.fds[0].number, _TUNSETOFFLOAD, mask)
            except OSError as error:
                if mask == 0:
                    raise BackendError(f"tap {self.name}: TUNSETOFFLOAD", error) from error
                continue
            self.offload = mask
            break
        return self.offload

    def set_queue(self, index: int, *, attached: bool) -> None:
        """Have the kernel choose queue `index` for frames, or not; a tap of one queue has no choice.

        A detached queue is empty: what waited in it is dropped.
        """
        if not self.multi_queue:
            return
        flag = _IFF_ATTACH_QUEUE if attached else _IFF_DETACH_QUEUE
        with contextlib.suppress(OSError):  # EINVAL: it is so already
            fcntl.ioctl(self.fds[index].number, _TUNSETQUEUE, bytes(_ifreq("", struct.pack("H", flag))))

    def send(self, frame: bytes) -> None:
        """Put a frame of ours on the wire, without its checksum. Raises BackendError."""
        try:
            os.write(self.fds[0].number, bytes(VNET_HDR_LEN) + frame)
        except OSError as error:
            raise BackendError(f"tap {self.name}: write", error) from error

    def close(self) -> None:
        """Close all descriptors. A tap that was made for them goes with the last.

        A bridge that we made goes, too, while we still may remove it: until privileges are given up a close means that
        the start failed. Later the bridge stays, for it may have got other ports.
        """
        close_all(self.fds)
        if self._made_bridge is not None:
            name, self._made_bridge = self._made_bridge, None
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._control.number, _SIOCSIFFLAGS, bytes(_ifreq(name)))  # down, or it is EBUSY
                fcntl.ioctl(self._control.number, _SIOCBRDELBR, bytes(_ifreq(name)))
        self._control.close()


def _control_socket() -> Fd:
    return Fd(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC).detach())


def _open_queue(name: str, *, many: bool) -> Fd:
    fd = Fd(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if many else 0)
    try:
        fcntl.ioctl(fd.number, _TUNSETIFF, bytes(_ifreq(name, struct.pack("H", flags))))
    except BaseException:
        fd.close()
        raise
    return fd


def _identify(fd: Fd, others: str, *, several: bool) -> tuple[str, bool]:
    """Return the name of an inherited tap and whether it is multi-queue. Raises ConfigError unless we can serve it.

    That it has IFF_NO_PI must be believed: the kernel says so of every tap.
    """
    try:
        answer = fcntl.ioctl(fd.number, _TUNGETIFF, bytes(_IFREQ_LEN))
    except OSError as error:
        raise ConfigError(f"tap fd {fd.number}: not an open tap ({error.strerror})") from error
    name = answer[:16].split(b"\0")[0].decode(errors="replace")
    (flags,) = struct.unpack_from("H", answer, 16)
    if not flags & _IFF_TAP:
        raise ConfigError(f"tap fd {fd.number}: {name} is a tun device (IFF_TUN): it carries no Ethernet frames")
    if not flags & _IFF_VNET_HDR:
        raise ConfigError(f"tap fd {fd.number}: {name} was opened without vnet_hdr (IFF_VNET_HDR)")
    if others and name != others:
        raise ConfigError(f"tap fd {fd.number} is of {name}, and others are of {others}: one device has one tap")
    if several and not flags & _IFF_MULTI_QUEUE:
        raise ConfigError(f"tap fd {fd.number}: {name} has a single queue (no IFF_MULTI_QUEUE): one descriptor only")
    return name, bool(flags & _IFF_MULTI_QUEUE)


def _attach_hint(name: str, error: OSError, options: NetOptions) -> str:
    """Say what an errno of open or TUNSETIFF means here."""
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return (
                f"no permission ({error.strerror}): run with CAP_NET_ADMIN, or give the tap to this user: "
                f"`ip tuntap add {name} mode tap vnet_hdr user {os.geteuid()}`"
            )
        case errno.EBUSY:
            return "it is in use by another process: each queue has one user"
        case errno.EINVAL:
            return "it is an interface, but not a tap"
        case errno.E2BIG:
            return f"it cannot have {options.queues} more queues"
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return f"{_DEVICE}: {error.strerror}: this kernel has no tun module loaded"
        case _:
            return error.strerror or str(error)


async def _add_address(ipr: Any, index: int | None, address: str) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    host, _, prefix_len = address.partition("/")
    try:
        await ipr.addr("add", index=index, address=host, prefixlen=int(prefix_len))
    except NetlinkError as error:
        if error.code != errno.EEXIST:  # as it was asked for
            raise
