"""Descriptors of every kind, to send where another kind is expected."""

import contextlib
import os
import select
import signal
import socket
import struct
import tempfile
import time

EFD_SEMAPHORE = 1


def _pipe(end):
    ours = os.pipe()
    os.close(ours[1 - end])
    return ours[end]


def _file(flags=os.O_RDWR, length=1 << 20):
    number, path = tempfile.mkstemp()
    os.ftruncate(number, length)
    other = os.open(path, flags)
    os.unlink(path)
    os.close(number)
    return other


def _memfd(length=1 << 20, seals=0):
    number = os.memfd_create("kind", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(number, length)
    if seals:
        import fcntl

        fcntl.fcntl(number, fcntl.F_ADD_SEALS, seals)
    return number


def _memfd_read_only():
    number = _memfd()
    try:
        return os.open(f"/proc/self/fd/{number}", os.O_RDONLY)
    finally:
        os.close(number)


def _write_sealed():
    import fcntl

    return _memfd(seals=fcntl.F_SEAL_WRITE)


def _epoll(watching=None):
    poller = select.epoll()
    if watching is not None:
        poller.register(watching, select.EPOLLIN)
    number = os.dup(poller.fileno())
    poller.close()
    return number


def _epoll_ready():
    """An epoll that is readable for ever: what it watches has a byte and no reader."""
    read, write = os.pipe()
    os.write(write, b"x")
    try:
        return _epoll(read)
    finally:
        os.close(read)
        os.close(write)


def _libc():
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _timerfd():
    import ctypes

    number = _libc().timerfd_create(time.CLOCK_MONOTONIC, 0)
    spec = struct.pack("=qqqq", 0, 1_000_000, 0, 1_000_000)
    _libc().timerfd_settime(number, 0, ctypes.create_string_buffer(spec), None)
    return number


def _signalfd():
    import ctypes

    mask = ctypes.create_string_buffer(struct.pack("=Q", 1 << signal.SIGUSR2 - 1))
    return _libc().signalfd(-1, mask, 0)


def _socket(kind=socket.SOCK_STREAM, *, close_peer=False, listen=False):
    if listen:
        with socket.socket(socket.AF_UNIX, kind) as listener:
            listener.bind("")
            listener.listen(1)
            return os.dup(listener.fileno())
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs:
        if close_peer:
            theirs.close()
            return os.dup(ours.fileno())
        keep.append(os.dup(theirs.fileno()))
        return os.dup(ours.fileno())


def _socket_in_itself():
    """A socket in whose queue it is itself: only the kernel's collector can free it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(ours, [b"x"], [ours.fileno(), theirs.fileno()])
        return os.dup(theirs.fileno())


keep = []  # ends that must stay open while a kind is in use


def _eventfd(value=0, flags=0):
    return os.eventfd(value, flags | os.EFD_CLOEXEC)


KINDS = {
    "pipe-read-end": lambda: _pipe(0),
    "pipe-write-end": lambda: _pipe(1),
    "file": _file,
    "file-read-only": lambda: _file(os.O_RDONLY),
    "dev-null": lambda: os.open("/dev/null", os.O_RDWR),
    "dev-zero": lambda: os.open("/dev/zero", os.O_RDWR),
    "directory": lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
    "path": lambda: os.open("/", os.O_PATH),
    "socket": _socket,
    "socket-datagram": lambda: _socket(socket.SOCK_DGRAM),
    "socket-closed-peer": lambda: _socket(close_peer=True),
    "socket-listening": lambda: _socket(listen=True),
    "socket-in-itself": _socket_in_itself,
    "epoll": _epoll,
    "epoll-ready": _epoll_ready,
    "timerfd": _timerfd,
    "signalfd": _signalfd,
    "pidfd": lambda: os.pidfd_open(os.getpid()),
    "memfd": _memfd,
    "memfd-read-only": _memfd_read_only,
    "memfd-write-sealed": _write_sealed,
    "eventfd": _eventfd,
    "eventfd-semaphore": lambda: _eventfd(0, EFD_SEMAPHORE),
    "eventfd-full": lambda: _eventfd_full(blocking=False),
    "eventfd-full-blocking": lambda: _eventfd_full(blocking=True),
}


def _eventfd_full(*, blocking):
    number = _eventfd(0, 0 if blocking else os.EFD_NONBLOCK)
    os.eventfd_write(number, 0xFFFFFFFFFFFFFFFE)
    return number


@contextlib.contextmanager
def kind(name):
    """A descriptor of a kind, closed at the end with whatever kept it alive."""
    number = KINDS[name]()
    try:
        yield number
    finally:
        os.close(number)
        while keep:
            os.close(keep.pop())
