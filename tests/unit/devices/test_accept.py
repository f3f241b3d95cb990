"""Whoever connects is served once, and a socket that was let go of is not looked at again (HOSTILE F40, S163)."""

import asyncio
import os
import socket

import pytest

from vhostd.devices.listen import Acceptor


def listening(path):
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen(16)
    return made


def client(path, word):
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(path))
    made.sendall(word)
    return made


@pytest.fixture
async def complaints():
    """What the event loop would have logged: errors in callbacks."""
    found = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


async def word_of(acceptor):
    async with asyncio.timeout(2):
        taken = await acceptor.accept()
    with taken:
        return taken.recv(16)


async def test_connections_come_in_order(tmp_path):
    acceptor = Acceptor(listening(tmp_path / "s"))
    clients = [client(tmp_path / "s", b"%d" % n) for n in range(5)]
    assert [await word_of(acceptor) for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    acceptor.close()
    for one in clients:
        one.close()


async def test_a_socket_that_is_replaced_in_the_very_moment_somebody_connects(tmp_path, complaints):
    """The connection is known to the event loop, and before it is taken the socket goes: no error, nobody forgotten."""
    loop = asyncio.get_running_loop()
    acceptor = Acceptor(listening(tmp_path / "old"))
    waiting = asyncio.ensure_future(word_of(acceptor))
    await asyncio.sleep(0)  # it waits
    first = client(tmp_path / "old", b"first")
    fresh = listening(tmp_path / "new")
    # Runs in the same round of the event loop as the readiness of the old socket, and before it.
    loop.call_soon(acceptor.move, fresh)
    assert await waiting == b"first"
    second = client(tmp_path / "new", b"second")
    assert await word_of(acceptor) == b"second"
    assert complaints == []
    acceptor.close()
    first.close()
    second.close()


async def test_moves_without_a_pause(tmp_path, complaints):
    """HOSTILE F40: SIGHUP after SIGHUP; all who connected meanwhile are served, and no descriptor stays behind."""
    before = len(os.listdir("/proc/self/fd"))
    acceptor = Acceptor(listening(tmp_path / "0"))
    waiting = asyncio.ensure_future(word_of(acceptor))
    clients, got = [], []
    for n in range(1, 50):
        clients.append(client(tmp_path / str(n - 1), b"%d" % n))
        acceptor.move(listening(tmp_path / str(n)))
        if n % 3 == 0:
            await asyncio.sleep(0)
        if n % 7 == 0:
            got.append(await waiting)
            waiting = asyncio.ensure_future(word_of(acceptor))
    got.append(await waiting)
    got += [await word_of(acceptor) for _ in range(len(clients) - len(got))]
    assert got == [b"%d" % n for n in range(1, 50)]
    acceptor.close()
    for one in clients:
        one.close()
    assert complaints == []
    assert len(os.listdir("/proc/self/fd")) == before


async def test_cancelled_it_takes_nobody_with_it(tmp_path):
    acceptor = Acceptor(listening(tmp_path / "s"))
    waiting = asyncio.ensure_future(acceptor.accept())
    await asyncio.sleep(0)
    with client(tmp_path / "s", b"here"):
        waiting.cancel()
        await asyncio.wait([waiting])
        assert await word_of(acceptor) == b"here"
    acceptor.close()


async def test_who_is_still_waiting_at_the_end_is_let_go(tmp_path):
    acceptor = Acceptor(listening(tmp_path / "old"))
    with client(tmp_path / "old", b"") as there:
        acceptor.move(listening(tmp_path / "new"))
        acceptor.close()
        assert there.recv(1) == b""
