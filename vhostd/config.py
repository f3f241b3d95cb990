"""The operator's settings: what may be said of a disk and of a network card, in a file or in flags.

A setting has one name: the TOML key `socket-path` is the flag `--socket-path` is the field `socket_path`. The structs
are frozen and checked when they are made, so whoever holds one need not look again. What only a look at the host can
tell (does the image exist, is the tap taken) is checked by the back-end that opens it.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import msgspec.inspect
from msgspec import Meta

from vhostd.errors import ConfigError

SOCKET_PATH_LIMIT = 107  # sun_path of unix(7), without its NUL
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# A guest cuts a serial at the first byte outside this set, and two serials may then be one: so nothing else is taken.
_SERIAL = re.compile(r"[A-Za-z0-9_-]{1,20}")
_MODE = re.compile(r"0?[0-7]{3}")
_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_INTERFACE = re.compile(r"[^\s/:]{1,15}")
_ADDRESS = re.compile(r"[0-9A-Fa-f.:]+/[0-9]{1,3}")

T = TypeVar("T", bound=msgspec.Struct)


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """What disks and network cards have in common."""

    name: Annotated[str, Meta(description="the device's name: its socket, its word in `vhostd status`")]
    socket_path: Annotated[
        str | None, Meta(description="unix socket to listen on (default: NAME.sock in the runtime directory)")
    ] = None
    socket_mode: Annotated[
        str | None, Meta(description="permissions of the socket in octal (default: 0600, or 0660 with socket-group)")
    ] = None
    socket_group: Annotated[str | None, Meta(description="group of the socket, by name or number")] = None
    connect: Annotated[
        str | None, Meta(description="unix socket on which the front-end listens; we connect, and again when it went")
    ] = None
    workers: Annotated[
        int, Meta(ge=0, le=256, description="threads that serve the queues (0: one, or more when there are CPUs)")
    ] = 0
    poll_us: Annotated[
        int, Meta(ge=0, le=10_000, description="microseconds a worker polls after work before it sleeps (0: never)")
    ] = 50

    def __post_init__(self) -> None:
        self._check("name", _NAME, "1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit")
        self._check("socket_mode", _MODE, 'three octal digits, as in "0660"')
        if self.socket_path is not None and self.connect is not None:
            raise ValueError("connect: the front-end listens, so there is no socket of ours: leave socket-path away")
        for field in ("socket_path", "connect"):
            path = getattr(self, field)
            if path is not None and not 0 < len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
                raise ValueError(f"{_key(field)}: a unix socket's path has 1 to {SOCKET_PATH_LIMIT} bytes: {path!r}")

    def _check(self, field: str, shape: re.Pattern[str], wanted: str) -> None:
        value = getattr(self, field)
        if value is not None and not shape.fullmatch(value):
            raise ValueError(f"{_key(field)}: {value!r} is not {wanted}")

    @property
    def mode(self) -> int:
        """The permissions of the socket, as chmod takes them."""
        if self.socket_mode is not None:
            return int(self.socket_mode, 8)
        return 0o600 if self.socket_group is None else 0o660

    @property
    def poll_ns(self) -> int:
        """`poll_us` in nanoseconds, as workers take it."""
        return self.poll_us * 1000

    def listen_path(self) -> Path:
        """Return the path of the listening socket. Raises ConfigError when there is no runtime directory."""
        path = Path(self.socket_path) if self.socket_path is not None else runtime_dir() / f"{self.name}.sock"
        if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
            raise ConfigError(
                f"{self.name}: the socket {path} would have more than {SOCKET_PATH_LIMIT} bytes, which no unix socket "
                "can: give a shorter --socket-path"
            )
        return path


class Disk(Device, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """One `[[disk]]` of the file, or the flags of `vhostd blk`."""

    image: Annotated[str, Meta(description="raw image file or block device")]
    queues: Annotated[int, Meta(ge=0, le=256, description="request queues on offer (0: as many as can be)")] = 0
    serial: Annotated[
        str | None, Meta(description="what the guest sees as serial number: 1 to 20 of A-Z a-z 0-9 _ -")
    ] = None
    read_only: Annotated[bool, Meta(description="the guest may not write; the image is opened for reading")] = False
    aio: Annotated[
        Literal["auto", "mapped", "io_uring", "sync"],
        Meta(description="how requests reach the host (auto: by copies where the image can be mapped, else io_uring)"),
    ] = "auto"
    direct: Annotated[bool, Meta(description="pass by the host's page cache (O_DIRECT)")] = False
    format: Annotated[
        Literal["raw"] | None, Meta(description="take the bytes as they are, even if they look like another format")
    ] = None
    block_size: Annotated[int, Meta(description="logical block size in bytes: 512, 1024, 2048 or 4096")] = 512
    physical_block_size: Annotated[
        int, Meta(description="physical block size in bytes, a power of two (0: as the host says)")
    ] = 0
    seg_max: Annotated[int, Meta(ge=1, le=254, description="most data segments of one request")] = 126
    discard: Annotated[bool, Meta(description="offer discard, which punches holes")] = True
    write_zeroes: Annotated[bool, Meta(description="offer write-zeroes")] = True
    write_cache: Annotated[
        bool, Meta(description="volatile write cache until the guest says otherwise (off: each write is durable)")
    ] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("serial", _SERIAL, "1 to 20 of A-Z a-z 0-9 _ - (guests cut at the first other character)")
        if not self.image:
            raise ValueError("image: the path is empty")
        if self.block_size not in (512, 1024, 2048, 4096):
            raise ValueError(f"block-size: {self.block_size} is not 512, 1024, 2048 or 4096")
        size = self.physical_block_size
        if size and (size & (size - 1) or not self.block_size <= size <= self.block_size << 15):
            raise ValueError(f"physical-block-size: {size} is not a power of two of at least block-size")


class Net(Device, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """One `[[net]]` of the file, or the flags of `vhostd net`."""

    tap: Annotated[str | None, Meta(description="the tap interface's name")] = None
    tap_fds: Annotated[
        tuple[int, ...], Meta(description="open tap descriptors, one for each queue pair, instead of a name")
    ] = ()
    queues: Annotated[int, Meta(ge=1, le=128, description="queue pairs on offer")] = 1
    create: Annotated[bool, Meta(description="make the tap if it is not there, and remove it at the end")] = False
    bridge: Annotated[
        str | None, Meta(description="bridge the tap joins (with create: made if not there, and stays)")
    ] = None
    netns: Annotated[str | None, Meta(description="network namespace of the tap, by name or path")] = None
    address: Annotated[str | None, Meta(description="the host's address on the tap, as in 192.0.2.1/24")] = None
    mac: Annotated[str | None, Meta(description="the guest's address, as in 52:54:00:12:34:56")] = None
    mtu: Annotated[
        Annotated[int, Meta(ge=68, le=65535)] | None, Meta(description="MTU of the tap, told to the guest")
    ] = None
    mrg_rxbuf: Annotated[bool, Meta(description="a frame for the guest may span several of its buffers")] = True
    csum: Annotated[bool, Meta(description="take frames with partial checksums from the guest")] = True
    guest_csum: Annotated[bool, Meta(description="hand frames with partial checksums to the guest")] = True
    host_tso: Annotated[bool, Meta(description="take TCP segments of up to 64 KiB from the guest (needs csum)")] = True
    guest_tso: Annotated[
        bool, Meta(description="hand TCP segments of up to 64 KiB to the guest (needs guest-csum)")
    ] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("tap", _INTERFACE, "an interface name: 1 to 15 characters without blanks, slashes or colons")
        self._check("bridge", _INTERFACE, "an interface name: 1 to 15 characters without blanks, slashes or colons")
        self._check("mac", _MAC, "six hex pairs with colons, as in 52:54:00:12:34:56")
        self._check("address", _ADDRESS, "an address with its prefix length, as in 192.0.2.1/24")
        if self.address is not None:
            import ipaddress  # only those pay who ask

            try:
                ipaddress.ip_interface(self.address)
            except ValueError:
                raise ValueError(
                    f"address: {self.address!r} is not an address with its prefix length, as in 192.0.2.1/24"
                ) from None
        if self.mac is not None and int(self.mac[:2], 16) & 1:
            raise ValueError(f"mac: {self.mac} is a group address; a card's own has an even first byte")
        if (self.tap is None) == (not self.tap_fds):
            raise ValueError("tap: give the tap's name, or open descriptors in tap-fds, and not both")
        if self.tap_fds and len(self.tap_fds) != self.queues:
            raise ValueError(f"tap-fds: {len(self.tap_fds)} descriptors for {self.queues} queue pairs: give one each")
        if self.tap_fds and (self.create or self.netns):
            raise ValueError("tap-fds: a tap that is already open is neither created nor moved")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """The whole file: what `vhostd serve` runs."""

    disk: tuple[Disk, ...] = ()
    net: tuple[Net, ...] = ()
    control: Annotated[
        str | None,
        Meta(description="the control socket (default: FILE's stem and .control in the runtime directory)"),
    ] = None

    @property
    def devices(self) -> tuple[Disk | Net, ...]:
        """Every device, disks first, each in the file's order."""
        return (*self.disk, *self.net)

    def __post_init__(self) -> None:
        _unique("name", [(f"a [[{kind_of(d)}]]", d.name) for d in self.devices])
        _unique("serial", [(d.name, d.serial) for d in self.disk])
        # Two disks on one image, and one of them writes: no file system survives it.
        images = {d: os.path.realpath(d.image) for d in self.disk}
        written = {image for d, image in images.items() if not d.read_only}
        _unique("image", [(d.name, image) for d, image in images.items() if image in written])
        _unique("socket-path", [(d.name, d.socket_path) for d in self.devices])
        _unique("connect", [(d.name, d.connect) for d in self.devices])
        _unique("tap", [(d.name, f"{d.tap} in {d.netns}" if d.tap and d.netns else d.tap) for d in self.net])
        _unique("mac", [(d.name, d.mac and d.mac.lower()) for d in self.net])


def kind_of(device: Disk | Net) -> Literal["disk", "net"]:
    """Return the table's name in the file: what kind of device this is."""
    return "disk" if isinstance(device, Disk) else "net"


def runtime_dir() -> Path:
    """Return where sockets lie when nobody says otherwise: what systemd gave, /run/vhostd for root, else the user's.

    Raises ConfigError when a plain user has no runtime directory.
    """
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/vhostd")
    home = os.environ.get("XDG_RUNTIME_DIR")
    if not home:
        raise ConfigError("there is no runtime directory (XDG_RUNTIME_DIR is not set): say where with --socket-path")
    return Path(home) / "vhostd"


def control_path(socket_path: Path) -> Path:
    """Return where a device's control socket lies when nobody says otherwise: .control in place of .sock, or behind."""
    return socket_path.with_name(socket_path.name.removesuffix(".sock") + ".control")


def load(path: Path) -> Config:
    """Read and check the operator's file.

    Raises ConfigError that names the file, the line, the setting, and what it takes.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text, as TOML must be ({error})") from None
    return parse(text, str(path))


def parse(text: str, origin: str) -> Config:
    """Check the text of an operator's file; `origin` names it in errors. Raises ConfigError as `load` does."""
    try:
        config = msgspec.toml.decode(text, type=Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), text, origin)) from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{origin}: is not TOML: {error}") from None
    if not config.devices:
        raise ConfigError(f"{origin}: no device is in it: add a [[disk]] with name and image, or a [[net]] with tap")
    return config


def from_words(kind: type[T], words: dict[str, Any]) -> T:
    """Make a struct from flags: `words` maps field names to strings (or booleans, or lists of strings).

    Raises ConfigError that names the flag and what it takes.
    """
    try:
        return msgspec.convert({_key(k): v for k, v in words.items()}, kind, strict=False)
    except msgspec.ValidationError as error:
        fault = _take_apart(str(error))
        purpose = "" if fault.complete else _purpose(fault.key, kind)
        raise ConfigError(f"--{fault.key}: {fault.what}{purpose}") from None


class Setting(msgspec.Struct, frozen=True):
    """One setting as flags and error texts need it."""

    field: str
    form: Literal["switch", "list", "word"]
    default: object
    required: bool
    choices: tuple[str, ...]
    purpose: str

    @property
    def key(self) -> str:
        """Its name in the file, and behind `--`."""
        return _key(self.field)


def settings(kind: type[msgspec.Struct]) -> Iterator[Setting]:
    """Yield the settings of a struct in the order they stand."""
    info = msgspec.inspect.type_info(kind)
    for field in getattr(info, "fields", ()):
        meta, purpose = field.type, ""
        if isinstance(field.type, msgspec.inspect.Metadata):
            meta, purpose = field.type.type, str((field.type.extra_json_schema or {}).get("description", ""))
        variants = meta.types if isinstance(meta, msgspec.inspect.UnionType) else (meta,)
        choices = tuple(str(v) for t in variants if isinstance(t, msgspec.inspect.LiteralType) for v in t.values)
        form: Literal["switch", "list", "word"] = "word"
        if isinstance(meta, msgspec.inspect.BoolType):
            form = "switch"
        elif isinstance(meta, msgspec.inspect.VarTupleType):
            form = "list"
        yield Setting(field.name, form, field.default, field.required, choices, purpose)


def _key(field: str) -> str:
    return field.replace("_", "-")


def _unique(key: str, values: list[tuple[str, str | None]]) -> None:
    """Refuse two devices with one value; the error carries the key first, where `_take_apart` looks for it."""
    owners: dict[str, str] = {}
    for owner, value in values:
        if value is None:
            continue
        if value in owners:
            raise ValueError(f"{key}: {value!r} is given twice (by {owners[value]} and {owner}); each needs its own")
        owners[value] = owner


class _Fault(msgspec.Struct, frozen=True):
    table: str  # "disk", "net" or "" for the top of the file
    index: int
    key: str
    what: str
    complete: bool = False  # the text says what would be right, so the setting's purpose need not be added


_WHERE = re.compile(r" - at `\$(?:\.(disk|net)(?:\[(\d+|\.\.\.)\])?)?(?:\.([a-z-]+))?(?:\[(?:\d+|\.\.\.)\])?`$")
_OURS = re.compile(r"([a-z-]+): (.*)", re.DOTALL)


def _take_apart(message: str) -> _Fault:
    """Split msgspec's text, or one of our own from `__post_init__`, into the place and what is wrong there."""
    table, index, key = "", 0, ""
    where = _WHERE.search(message)
    if where:
        message = message[: where.start()]
        table, key = where[1] or "", where[3] or ""
        index = int(where[2]) if (where[2] or "").isdigit() else 0
    named = re.fullmatch(r"Object (contains unknown|missing required) field `([^`]*)`", message)
    if named:
        what = "is needed and is not there" if named[1].startswith("missing") else "there is no such setting"
        return _Fault(table, index, named[2], what)
    ours = _OURS.fullmatch(message)
    if ours and not key:
        return _Fault(table, index, ours[1], ours[2], complete=True)
    return _Fault(table, index, key, _plain(message))


def _plain(message: str) -> str:
    """Put msgspec's words into the operator's."""
    for theirs, word in (("str", "text"), ("int", "whole number"), ("bool", "true or false"), ("array", "list")):
        message = message.replace(f"`{theirs} | null`", word).replace(f"`{theirs}`", word)
    message = message.replace("whole number >= ", "at least ").replace("whole number <= ", "at most ")
    return message[:1].lower() + message[1:]


def _purpose(key: str, kind: type[msgspec.Struct]) -> str:
    """Return what the setting is for; for a name that is none, the nearest that is."""
    known = {s.key: s for s in settings(kind)}
    if key in known:
        values = f"; one of {', '.join(known[key].choices)}" if known[key].choices else ""
        return f" ({known[key].purpose}{values})" if known[key].purpose else ""
    import difflib

    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _explain(message: str, text: str, origin: str) -> str:
    fault = _take_apart(message)
    line = _line_of(text, fault)
    place = f"{origin}:{line}" if line else origin
    if fault.table and not fault.key:
        return f"{place}: {fault.table}: write [[{fault.table}]] with two brackets, once for each: there may be several"
    if not fault.table:
        if fault.what == "there is no such setting":
            return f"{place}: {fault.key}: {fault.what}; at the top of the file stand control, [[disk]] and [[net]]"
        return f"{place}: {fault.key}: {fault.what}"
    purpose = "" if fault.complete else _purpose(fault.key, Disk if fault.table == "disk" else Net)
    return f"{place}: [[{fault.table}]] number {fault.index + 1}: {fault.key}: {fault.what}{purpose}"


_HEADER = re.compile(r"\s*\[\[?\s*([A-Za-z0-9_-]+)\s*\]\]?")
_ASSIGNMENT = re.compile(r"\s*\"?([A-Za-z0-9_-]+)\"?\s*=")


def _line_of(text: str, fault: _Fault) -> int:
    """Return the line of the setting, else of its table, else 0. A help to the eye: it reads lines, not TOML."""
    table, seen, start = "", {"disk": -1, "net": -1}, 0
    for number, line in enumerate(text.splitlines(), 1):
        if head := _HEADER.match(line):
            table = head[1]
            if table in seen:
                seen[table] += 1
            if not fault.table and table == fault.key:
                return number
            if table == fault.table and seen[table] == fault.index:
                start = number
        elif table == fault.table and seen.get(table, 0) == fault.index:
            key = _ASSIGNMENT.match(line)
            if key and key[1] == fault.key:
                return number
    return start
