"""A vhost-user disk in plain Python that can be told to do one thing wrong, to see whether the tester notices.

It serves split rings of one queue from memory, on a thread, and is right unless `wrong` says otherwise.
"""

import array
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time

VERSION, REPLY, NEED_REPLY = 1, 4, 8
FEATURES = 1 << 32 | 1 << 30 | 1 << 28 | 1 << 9 | 1 << 6 | 1 << 2
PROTOCOL = 1 << 0 | 1 << 3 | 1 << 9 | 1 << 16  # MQ, REPLY_ACK, CONFIG, STATUS
DISK_LEN = 8 << 20
NEXT, WRITE, INDIRECT = 1, 2, 4


class BadChain(Exception):  # noqa: N818 - it is the guest's
    """What no driver makes: the ring stops, and that is said."""


class WrongBackend:
    """Listens at `path`; `wrong` names its mistakes."""

    features = FEATURES
    protocol = PROTOCOL

    def session(self, connection):
        return Session(self, connection)

    def __init__(self, path, *wrong):
        self.wrong = set(wrong)
        self.disk = bytearray(DISK_LEN)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(8)
        self.closing = False
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def close(self):
        self.closing = True
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.listener.close()

    def _serve(self):
        while not self.closing:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.session(connection).run()


class Session:
    def __init__(self, owner, connection):
        self.owner, self.connection = owner, connection
        self.wrong = owner.wrong
        self.features = self.protocol = self.status = 0
        self.regions, self.fds = [], {}
        self.size = self.base = 0
        self.addr = None
        self.enabled = self.started = False

    def run(self):
        try:
            while True:
                wanted = [self.connection]
                if self.started and "kick" in self.fds:
                    wanted.append(self.fds["kick"])
                ready = select.select(wanted, [], [], 0.5)[0]
                if self.connection in ready:
                    self.message()
                elif ready:
                    os.eventfd_read(self.fds["kick"])
                    self.ring()
        except (EOFError, OSError):
            pass
        finally:
            for fd in self.fds.values():
                os.close(fd)
            for _, _, _, area in self.regions:
                area.close()

    def message(self):
        head, fds = self.receive(12)
        request, flags, size = struct.unpack("<III", head)
        payload = self.receive(size)[0] if size else b""
        if request == 3 and fds:  # SET_OWNER takes no descriptors
            self.misbehave(fds)
        handler = getattr(self, f"on_{request}", None)
        answer = handler(payload, fds) if handler else None
        if answer is not None:
            self.reply(request, answer)
        elif flags & NEED_REPLY and (self.protocol & 1 << 3 or "acks unasked" in self.wrong):
            self.reply(request, struct.pack("<Q", 1 if "says no" in self.wrong else 0))

    def misbehave(self, fds):
        if "leaks" not in self.wrong:
            for fd in fds:
                os.close(fd)
        if "dies" in self.wrong:
            os.kill(os.getpid(), signal.SIGABRT)
        if "wedges" in self.wrong:
            time.sleep(3600)
        if "spins" in self.wrong:
            threading.Thread(target=spin, daemon=True).start()

    def receive(self, length):
        data, fds = b"", []
        while len(data) < length:
            part, ancillary, _, _ = self.connection.recvmsg(length - len(data), socket.CMSG_SPACE(64))
            if not part:
                raise EOFError
            for _, _, body in ancillary:
                found = array.array("i")
                found.frombytes(body[: len(body) // 4 * 4])
                fds += list(found)
            data += part
        return data, fds

    def reply(self, request, payload):
        flags = VERSION | (0 if "no reply flag" in self.wrong else REPLY)
        if isinstance(payload, tuple):
            payload, fd = payload
            with open(fd, "rb", closefd=True):
                socket.send_fds(self.connection, [struct.pack("<III", request, flags, len(payload)) + payload], [fd])
            return
        self.connection.sendall(struct.pack("<III", request, flags, len(payload)) + payload)

    def on_1(self, payload, fds):
        return struct.pack("<Q", self.owner.features | (1 << 48 if "reserved bit" in self.wrong else 0))

    def on_2(self, payload, fds):
        (self.features,) = struct.unpack("<Q", payload)
        self.enabled = self.enabled or not self.features & 1 << 30

    def on_15(self, payload, fds):
        return struct.pack("<Q", self.owner.protocol)

    def on_16(self, payload, fds):
        (self.protocol,) = struct.unpack("<Q", payload)

    def on_17(self, payload, fds):
        return struct.pack("<Q", 1)

    def on_24(self, payload, fds):
        offset, size, flags = struct.unpack_from("<III", payload)
        space = struct.pack("<QIIHBBI", DISK_LEN // 512, 0, 126, 0, 0, 0, 512).ljust(34, b"\0") + struct.pack("<H", 1)
        start = 0 if "ignores the offset" in self.wrong else offset
        return struct.pack("<III", offset, size, flags) + space.ljust(400, b"\0")[start : start + size]

    def on_39(self, payload, fds):
        (self.status,) = struct.unpack("<Q", payload)
        if not self.status:
            self.started = False

    def on_40(self, payload, fds):
        return struct.pack("<Q", 0 if "status is lost" in self.wrong else self.status)

    def on_5(self, payload, fds):
        (count,) = struct.unpack_from("<I", payload)
        for _, _, _, area in self.regions:
            area.close()
        self.regions = []
        for n in range(count):
            gpa, length, uva, offset = struct.unpack_from("<QQQQ", payload, 8 + 32 * n)
            area = mmap.mmap(fds[n], offset + length)
            os.close(fds[n])
            self.regions.append(
                (gpa - (0 if "mmap offset" in self.wrong else offset), length + offset, uva - offset, area)
            )

    def on_8(self, payload, fds):
        self.size = struct.unpack("<II", payload)[1]

    def on_9(self, payload, fds):
        _, _, desc, used, avail, _ = struct.unpack("<IIQQQQ", payload)
        self.addr = [self.find(uva, 2) for uva in (desc, avail, used)]

    def on_10(self, payload, fds):
        self.base = struct.unpack("<II", payload)[1]

    def on_11(self, payload, fds):
        self.started = "never stops" in self.wrong and self.started
        return struct.pack("<II", 0, (self.base + ("wrong base" in self.wrong)) % 65536)

    def on_12(self, payload, fds):
        self.take("kick", fds)
        self.started = True

    def on_13(self, payload, fds):
        self.take("call", fds)

    def on_14(self, payload, fds):
        self.take("err", fds)

    def on_18(self, payload, fds):
        self.enabled = bool(struct.unpack("<II", payload)[1]) or "never stops" in self.wrong
        if self.enabled and self.started:
            self.ring()

    def take(self, name, fds):
        if name in self.fds:
            os.close(self.fds.pop(name))
        if fds:
            self.fds[name] = fds[0]

    def find(self, address, which):
        """(mapping, offset) of a guest (0) or front-end (2) address."""
        for region in self.regions:
            if region[which] <= address < region[which] + region[1]:
                return region[3], address - region[which]
        raise EOFError

    def ring(self):
        if not (self.enabled and self.addr):
            return
        (table, desc), (drv, avail), (dev, used) = self.addr
        served = False
        while self.base != struct.unpack_from("<H", drv, avail + 2)[0]:
            (head,) = struct.unpack_from("<H", drv, avail + 4 + 2 * (self.base % self.size))
            self.taken(head)
            try:
                length = self.serve(table, desc, head)
            except BadChain:
                if "publishes what it cannot do" not in self.wrong:
                    self.started = False
                    if "err" in self.fds and "silent" not in self.wrong:
                        os.eventfd_write(self.fds["err"], 1)
                    return
                length = 0
            self.base = (self.base + 1) % 65536
            slot = (self.base - 1) % self.size
            struct.pack_into("<II", dev, used + 4 + 8 * slot, head, length + ("used length" in self.wrong))
            struct.pack_into("<H", dev, used + 2, self.base)
            self.returned(head)
            served = True
        wants = not struct.unpack_from("<H", drv, avail)[0] & 1 or "calls always" in self.wrong
        if served and wants and "call" in self.fds and "never calls" not in self.wrong:
            os.eventfd_write(self.fds["call"], 1)

    def taken(self, head):
        """A head was taken from the available ring."""

    def returned(self, head):
        """A head's used element is visible."""

    def serve(self, table, desc, index):
        readable, room, count, size = b"", [], 0, self.size
        while True:
            count += 1
            if index >= size or count > self.size:
                raise BadChain
            gpa, length, flags, following = struct.unpack_from("<QIHH", table, desc + 16 * index)
            if flags & INDIRECT:
                table, desc = self.guest(gpa, length)
                index, count, size = 0, 0, length // 16
                continue
            if "takes what is not there for done" in self.wrong and gpa >> 40:
                area, at, length = bytearray(length), 0, length
            else:
                area, at = self.guest(gpa, length)
            if flags & WRITE:
                room.append((area, at, length))
            else:
                readable += area[at : at + length]
            if not flags & NEXT:
                break
            index = following
        return self.carry_out(readable, room)

    def guest(self, gpa, length):
        """(mapping, offset) of bytes in guest memory."""
        try:
            area, at = self.find(gpa, 0)
        except EOFError:
            raise BadChain from None
        if at + length > len(area):
            raise BadChain
        return area, at

    def carry_out(self, readable, room):
        """Do a request whose writable buffers are (mapping, offset, length) each; return the used length."""
        if len(readable) < 16 or not room or not room[-1][2]:
            raise BadChain
        kind, _, sector = struct.unpack_from("<IIQ", readable)
        space = sum(length for _, _, length in room) - 1
        status, data = self.request(kind, sector, readable[16:], space)
        out = data.ljust(space, b"\0") + bytes([status]) if data or not space else None
        if out is None:
            area, at, length = room[-1]
            area[at + length - 1] = status
            return 0
        wrote = len(out)
        for area, at, length in room:
            area[at : at + length], out = out[:length], out[length:]
        return wrote

    def request(self, kind, sector, data, space):
        at = sector * 512
        if kind == 0 and space % 512 == 0 and at + space <= DISK_LEN:
            return 0, bytes(self.owner.disk[at : at + space])
        if kind == 1 and len(data) % 512 == 0 and at + len(data) <= DISK_LEN:
            self.owner.disk[at : at + len(data)] = data
            return 0, b""
        if kind == 4:
            return 0, b""
        if kind == 8:
            text = b"x" * 20 if "serial of blanks" not in self.wrong else b"\xff" * 20
            return 0, text[:space]
        if kind in {0, 1}:
            return (0 if "behind the end" in self.wrong else 1), b""
        return (1 if "unknown is an error" in self.wrong else 2), b""


def spin():
    """Use a CPU for ever."""
    while True:
        pass


if __name__ == "__main__":
    WrongBackend(sys.argv[1], *sys.argv[2:]).thread.join()
