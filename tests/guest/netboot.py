"""The far end of a network boot: one lease by DHCP (RFC 2131), one file by TFTP (RFC 1350), the rest by HTTP.

And a router that is none (RFC 4861): without one iPXE waits for fifteen seconds before it believes in IPv4 alone.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vhostd.demo.host import Namespace

_COOKIE = b"\x63\x82\x53\x63"
_SOLICITATION, _ADVERTISEMENT = 133, 134
_DISCOVER, _OFFER, _REQUEST, _ACK = 1, 2, 3, 5


def _options(packet: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    rest = packet[240:]
    while rest and rest[0] != 255:
        if rest[0] == 0:
            rest = rest[1:]
            continue
        found[rest[0]] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :]
    return found


def dhcp_answer(packet: bytes, server: str, client: str, file: str) -> bytes | None:
    """The answer to a client's packet, or None when it asks for nothing."""
    kind = _options(packet).get(53, b"\0")[0]
    if packet[236:240] != _COOKIE or kind not in {_DISCOVER, _REQUEST}:
        return None
    here = socket.inet_aton(server)
    head = b"\x02" + packet[1:12] + bytes(4) + socket.inet_aton(client) + here + bytes(4) + packet[28:44]
    answer = head + bytes(64) + file.encode().ljust(128, b"\0") + _COOKIE
    options = (
        (53, bytes([_OFFER if kind == _DISCOVER else _ACK])),
        (54, here),
        (51, struct.pack(">I", 3600)),
        (1, bytes([255, 255, 255, 0])),
        (66, server.encode()),
        (67, file.encode()),
        (175, bytes([176, 1, 1])),  # iPXE's own: there is no other server to wait for
    )
    return answer + b"".join(bytes([code, len(value)]) + value for code, value in options) + b"\xff"


class NetBoot:
    """Serves `files` by name; remembers what was asked of it."""

    def __init__(self, namespace: Namespace, tap: str, server: str, client: str, files: dict[str, bytes]) -> None:
        self.seen: list[str] = []
        self._namespace = namespace
        self._tap = tap
        self._server = server
        self._client = client
        self._files = files

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        dhcp, tftp = self._datagrams(67, self._tap), self._datagrams(69)
        web = await asyncio.start_server(self._web, sock=self._namespace.listen(self._server, 80))
        router = self._router()
        tasks = [asyncio.create_task(each) for each in (self._dhcp(dhcp), self._tftp(tftp), self._advertise(router))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            web.close()
            for line in (dhcp, tftp, router):
                line.close()

    def _datagrams(self, port: int, device: str | None = None) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            if device is not None:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            made.bind(("0.0.0.0", port))
            made.setblocking(False)
            return made

        return self._namespace.call(make)

    def _router(self) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            number = socket.if_nametoindex(self._tap)
            group = socket.inet_pton(socket.AF_INET6, "ff02::2") + struct.pack("@I", number)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, number)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            made.setblocking(False)
            return made

        return self._namespace.call(make)

    async def _advertise(self, line: socket.socket) -> None:
        """Answer who looks for a router: it is there, and routes nothing."""
        loop = asyncio.get_running_loop()
        number = self._namespace.call(lambda: socket.if_nametoindex(self._tap))
        while True:
            packet, _ = await loop.sock_recvfrom(line, 2048)
            if packet[0] == _SOLICITATION:
                with contextlib.suppress(OSError):  # our own address may not be sure yet; it is asked again
                    line.sendto(bytes([_ADVERTISEMENT]) + bytes(15), ("ff02::1", 0, 0, number))

    async def _dhcp(self, line: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            packet, _ = await loop.sock_recvfrom(line, 2048)
            self.seen.append("dhcp")
            if answer := dhcp_answer(packet, self._server, self._client, "boot.ipxe"):
                await loop.sock_sendto(line, answer, ("255.255.255.255", 68))

    async def _tftp(self, line: socket.socket) -> None:
        """Small files only: one block."""
        loop = asyncio.get_running_loop()
        while True:
            packet, peer = await loop.sock_recvfrom(line, 2048)
            if packet[:2] == b"\0\x01":
                name = packet[2:].split(b"\0")[0].decode()
                self.seen.append(f"tftp {name}")
                with self._datagrams(0) as answer:
                    await loop.sock_sendto(answer, b"\0\x03\0\x01" + self._files[name], peer)
                    await loop.sock_recvfrom(answer, 512)

    async def _web(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                name = request.split()[1].decode().lstrip("/")
                self.seen.append(f"http {name}")
                body = self._files[name]
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()
