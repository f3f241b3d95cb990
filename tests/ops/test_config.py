"""The operator's file: what it takes, and what it says of each mistake."""

import pytest

from vhostd import config
from vhostd.config import Config, Disk, Net
from vhostd.errors import ConfigError

DISK = '[[disk]]\nname = "a"\nimage = "x"\n'
NET = '[[net]]\nname = "n"\ntap = "t"\n'


def parse(text: str) -> Config:
    return config.parse(text, "vm.toml")


def test_a_file_becomes_frozen_structs_with_every_default() -> None:
    made = parse(DISK + 'queues = 4\nsocket-mode = "0660"\n' + NET + 'mac = "52:54:00:12:34:56"\nmtu = 9000\n')
    assert made.devices == (made.disk[0], made.net[0])
    assert (made.disk[0].queues, made.disk[0].mode, made.disk[0].aio) == (4, 0o660, "auto")
    assert (made.net[0].mtu, made.net[0].mode, made.net[0].queues) == (9000, 0o600, 1)
    with pytest.raises(AttributeError):
        made.disk[0].queues = 5


def test_a_group_opens_the_socket_to_it_unless_a_mode_is_given() -> None:
    assert parse(DISK + 'socket-group = "kvm"').disk[0].mode == 0o660
    assert parse(DISK + 'socket-group = "kvm"\nsocket-mode = "600"').disk[0].mode == 0o600


def test_one_image_may_be_read_by_two() -> None:
    assert len(parse(DISK + "read-only = true\n" + DISK.replace('"a"', '"b"') + "read-only = true").disk) == 2


def test_an_address_of_either_family_is_taken() -> None:
    for address in ("192.0.2.1/24", "2001:db8::1/64"):
        assert parse(NET + f'address = "{address}"').net[0].address == address


WRONG = {
    "unknown at the top": ("x = 1", "vm.toml:1: x: there is no such setting"),
    "unknown table": ("[[dsk]]", "vm.toml:1: dsk: there is no such setting"),
    "one bracket": ('[disk]\nname = "a"', "vm.toml:1: disk: write [[disk]] with two brackets"),
    "missing": ('\n[[disk]]\nname = "a"', "vm.toml:2: [[disk]] number 1: image: is needed"),
    "misspelt": (
        DISK + "queus = 1",
        "vm.toml:4: [[disk]] number 1: queus: there is no such setting; did you mean queues?",
    ),
    "underscore": (DISK + "read_only = true", "did you mean read-only?"),
    "too many": (DISK + "queues = 257", "vm.toml:4: [[disk]] number 1: queues: expected at most 256"),
    "negative": (DISK + "queues = -1", "expected at least 0"),
    "word for number": (DISK + 'queues = "4"', "expected whole number, got text"),
    "word for switch": (DISK + 'read-only = "yes"', "expected true or false, got text"),
    "the second table": (
        DISK + NET + DISK.replace('"a"', '"b"') + "direct = 1",
        "vm.toml:10: [[disk]] number 2: direct",
    ),
    "name": (DISK.replace('"a"', '"a/b"'), "vm.toml:2: [[disk]] number 1: name: 'a/b' is not 1 to 64 letters"),
    "name twice": (DISK + NET.replace('"n"', '"a"'), "name: 'a' is given twice (by a [[disk]] and a [[net]])"),
    "serial twice": (
        DISK + 'serial = "S"\n' + DISK.replace('"a"', '"b"') + 'serial = "S"',
        "serial: 'S' is given twice (by a and b)",
    ),
    "socket twice": (
        DISK + 'socket-path = "/s"\n' + NET + 'socket-path = "/s"',
        "socket-path: '/s' is given twice (by a and n)",
    ),
    "serial": (DISK + 'serial = "a b"', "serial: 'a b' is not 1 to 20 of A-Z a-z 0-9 _ -"),
    "serial length": (DISK + f'serial = "{"a" * 21}"', "is not 1 to 20 of"),
    "aio": (DISK + 'aio = "threads"', "one of auto, io_uring, mapped, sync"),
    "format": (DISK + 'format = "qcow2"', "one of raw"),
    "block size": (DISK + "block-size = 513", "block-size: 513 is not 512, 1024, 2048 or 4096"),
    "physical below logical": (DISK + "block-size = 4096\nphysical-block-size = 512", "at least block-size"),
    "mode": (DISK + 'socket-mode = "999"', "socket-mode: '999' is not three octal digits"),
    "mode as number": (DISK + "socket-mode = 0o660", "socket-mode: expected text"),
    "long path": (DISK + f'socket-path = "/{"s" * 108}"', "a unix socket's path has 1 to 107 bytes"),
    "both ends listen": (DISK + 'socket-path = "/a"\nconnect = "/b"', "leave socket-path away"),
    "image twice": (DISK + DISK.replace('"a"', '"b"').replace('"x"', '"./x"'), "/x' is given twice (by a and b)"),
    "image read and written": (
        DISK + "read-only = true\n" + DISK.replace('"a"', '"b"'),
        "/x' is given twice (by a and b)",
    ),
    "address": (NET + 'address = "300.1.1.1/24"', "address: '300.1.1.1/24' is not an address with its prefix length"),
    "prefix": (NET + 'address = "192.0.2.1/33"', "address: '192.0.2.1/33' is not an address"),
    "no prefix": (NET + 'address = "192.0.2.1"', "address: '192.0.2.1' is not an address"),
    "mtu": (NET + "mtu = 67", "mtu: expected at least 68"),
    "group mac": (NET + 'mac = "01:00:5e:00:00:01"', "is a group address"),
    "no tap": ('[[net]]\nname = "n"', "tap: give the tap's name"),
    "tap and fds": (NET + "tap-fds = [3]", "and not both"),
    "fds and queues": ('[[net]]\nname = "n"\ntap-fds = [3]\nqueues = 2', "1 descriptors for 2 queue pairs"),
    "long interface": (NET.replace('"t"', f'"{"t" * 16}"'), "tap: 'tttttttttttttttt' is not an interface name"),
    "same tap": (NET + NET.replace('"n"', '"m"'), "tap: 't' is given twice (by n and m)"),
    "nothing": ("", "no device is in it"),
    "no TOML": ("a =", "vm.toml: is not TOML"),
}


@pytest.mark.parametrize(("text", "says"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_told_with_its_place_and_the_remedy(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert str(caught.value).startswith("vm.toml")
    assert "\n" not in str(caught.value)


def test_flags_take_words_and_are_named_in_errors() -> None:
    made = config.from_words(Disk, {"name": "a", "image": "b", "queues": "4", "read_only": True})
    assert (made.queues, made.read_only) == (4, True)
    fds = config.from_words(Net, {"name": "n", "tap_fds": ["3", "4"], "queues": "2"})
    assert fds.tap_fds == (3, 4)
    with pytest.raises(ConfigError, match=r"^--queues: expected whole number"):
        config.from_words(Disk, {"name": "a", "image": "b", "queues": "x"})
    with pytest.raises(ConfigError, match=r"^--serial: "):
        config.from_words(Disk, {"name": "a", "image": "b", "serial": "ä"})


@pytest.mark.parametrize("kind", [Disk, Net])
def test_every_setting_says_what_it_is_for(kind: type[Disk] | type[Net]) -> None:
    for setting in config.settings(kind):
        assert setting.purpose, setting.key
        assert "_" not in setting.key


def test_the_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd's word first, then /run/vhostd for root, then the user's own; without any, the operator must say."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/a:/run/b")
    assert str(config.runtime_dir()) == "/run/a"
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert str(config.runtime_dir()) == "/run/vhostd"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert str(config.runtime_dir()) == "/run/user/1000/vhostd"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(ConfigError, match="--socket-path"):
        config.runtime_dir()


def test_a_socket_path_that_no_socket_can_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/" + "r" * 100)
    with pytest.raises(ConfigError, match="shorter --socket-path"):
        Disk(name="disk0", image="x").listen_path()
