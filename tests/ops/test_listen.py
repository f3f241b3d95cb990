"""Sockets by path and by number: made, refused, taken over (HOSTILE S163)."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vhostd.devices.listen import Listener, adopt, group_id
from vhostd.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.sock"


def test_the_mode_is_exact_whatever_the_umask(path: Path) -> None:
    for mask, mode in ((0o077, 0o660), (0, 0o600), (0o777, 0o606)):
        before = os.umask(mask)
        listener = Listener(path, mode=mode)
        os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        listener.close()
        assert not path.exists()


def test_the_group_is_set_by_number_and_by_name(path: Path) -> None:
    groups = [os.getgid()] if os.geteuid() else [os.getgid(), 12345]
    for gid in groups:
        listener = Listener(path, mode=0o660, group=str(gid))
        assert path.stat().st_gid == gid
        listener.close()
    assert group_id("root") == 0
    with pytest.raises(ConfigError, match="there is no group 'nosuchgroup'"):
        Listener(path, group="nosuchgroup")
    assert not path.exists()


def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = Listener(path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()


def test_a_socket_that_somebody_listens_to_is_left_alone(path: Path) -> None:
    first = Listener(path)
    with pytest.raises(ConfigError, match=f"another daemon listens there .process {os.getpid()}.: stop it"):
        Listener(path)
    assert first.is_there()
    first.close()


def test_a_socket_with_a_full_queue_counts_as_listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        with pytest.raises(ConfigError, match="another daemon listens there: stop it"):
            Listener(path)
        assert path.exists()


def test_a_symbolic_link_is_refused_wherever_it_leads(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    path.symlink_to(target)
    with pytest.raises(ConfigError, match="is a symbolic link"):
        Listener(path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(target))
    with pytest.raises(ConfigError, match="is a symbolic link"):
        Listener(path)
    assert path.is_symlink()
    assert target.exists()


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket: remove it"):
        Listener(path)
    assert path.read_text() == "precious"
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="is not a socket"):
        Listener(path)


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory: make the directory first"):
        Listener(tmp_path / "no" / "a.sock")


def test_close_does_not_remove_what_replaced_it(path: Path) -> None:
    first = Listener(path)
    path.unlink()
    second = Listener(path)
    first.close()
    assert second.is_there()
    second.close()


def test_again_makes_a_socket_where_there_is_none(path: Path) -> None:
    listener = Listener(path, mode=0o640)
    path.unlink()
    assert not listener.is_there()
    old = listener.socket
    fresh = listener.again()
    old.close()
    assert listener.is_there()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        fresh.accept()[0].close()
    listener.close()
    assert not path.exists()


def test_again_keeps_the_old_socket_when_the_path_cannot_be_had(path: Path) -> None:
    listener = Listener(path)
    path.unlink()
    path.write_text("precious")
    with pytest.raises(ConfigError):
        listener.again()
    listener.socket.getsockname()
    listener.close()
    assert path.read_text() == "precious"


def test_two_that_start_at_once_over_a_stale_socket_do_not_both_get_it(path: Path) -> None:
    """Between one's look at the socket and its bind, the other must not remove what the first has just made."""
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        code = (
            "import sys\nfrom pathlib import Path\n"
            "from vhostd.devices.listen import Listener\nfrom vhostd.errors import ConfigError\n"
            "sys.stdin.readline()\n"
            "try:\n    it = Listener(Path(sys.argv[1])); print('got', flush=True)\n"
            "except ConfigError: print('refused', flush=True)\n"
            "sys.stdin.readline()"
        )
        racers = [
            subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        for racer in racers:
            racer.stdin.write(b"\n")
            racer.stdin.flush()
        assert sorted(racer.stdout.readline() for racer in racers) == [b"got\n", b"refused\n"]
        for racer in racers:
            racer.communicate(b"\n")
        path.unlink(missing_ok=True)


def test_an_inherited_socket_is_listening_or_connected() -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("")
        listening.listen()
        taken, connected = adopt(os.dup(listening.fileno()))
        assert not connected
        assert not os.get_inheritable(taken.fileno())
        taken.close()
    for pair in (socket.socketpair(),):
        taken, connected = adopt(os.dup(pair[0].fileno()))
        assert connected
        taken.close()
        for end in pair:
            end.close()


def test_an_inherited_descriptor_that_will_not_do_is_told() -> None:
    with pytest.raises(ConfigError, match="--fd 987: Bad file descriptor"):
        adopt(987)
    with Path("/dev/null").open() as file, pytest.raises(ConfigError, match="is not a socket"):
        adopt(file.fileno())
    for made, says in (
        (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), "is not a unix stream socket"),
        (socket.socket(socket.AF_INET), "is not a unix stream socket"),
        (socket.socket(socket.AF_UNIX), "neither listens nor is connected"),
    ):
        with made, pytest.raises(ConfigError, match=says):
            adopt(made.fileno())
