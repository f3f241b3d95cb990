"""JSON in QMP form: greeting, negotiation, commands, events (docs/interop/qmp-spec of QEMU)."""

import asyncio
import contextlib
import logging
import os
import socket
import struct
import time
from typing import Any

import msgspec

from vhostd.control import commands
from vhostd.control.splitter import Splitter
from vhostd.errors import ControlError

log = logging.getLogger(__name__)

COMMAND_LIMIT = 64 * 1024  # bytes of one command
CLIENTS_LIMIT = 16
UNREAD_LIMIT = 1024 * 1024  # bytes of answers and events a client may leave unread
ANSWER_SECONDS = 10.0


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command as it comes."""

    execute: str
    arguments: dict[str, Any] = {}
    id: Any = msgspec.UNSET


class _Client:
    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.negotiated = False

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message. A client that does not read is cut off, so that it cannot fill our memory."""
        transport = self.writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > UNREAD_LIMIT:
            log.warning("control client does not read; dropped")
            transport.abort()
            return
        self.writer.write(msgspec.json.encode(message) + b"\r\n")


class ControlServer:
    """Serves one host's commands to clients of a listening socket, or to one socket that is connected already."""

    def __init__(self, host: commands.Host) -> None:
        self._host = host
        self._clients: set[_Client] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, listener: socket.socket) -> None:
        """Begin to accept clients. The socket is ours from now on."""
        self._server = await asyncio.start_unix_server(self._checked, sock=listener, limit=COMMAND_LIMIT)

    async def attach(self, connection: socket.socket) -> None:
        """Serve a client that is there already: the supervisor, at the other end of a socket pair."""
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=COMMAND_LIMIT)
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def emit(self, event: str, data: dict[str, Any]) -> None:
        """Tell every negotiated client of an event, stamped now."""
        now = time.time_ns() // 1000
        stamp = {"seconds": now // 1_000_000, "microseconds": now % 1_000_000}
        for client in tuple(self._clients):
            if client.negotiated:
                client.send({"event": event, "data": data, "timestamp": stamp})

    async def close(self) -> None:
        """Stop accepting, let go of every client."""
        if self._server is not None:
            self._server.close()
        for client in tuple(self._clients):
            client.writer.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _checked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client that came through the listening socket, if it may come."""
        peer = writer.get_extra_info("socket")
        pid, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            log.warning("control client refused: neither root nor our user", extra={"pid": pid, "uid": uid})
        elif len(self._clients) >= CLIENTS_LIMIT:
            log.warning("control client refused: too many", extra={"pid": pid, "clients": len(self._clients)})
        else:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await self._serve(reader, writer)
            return
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(writer)
        self._clients.add(client)
        splitter = Splitter(COMMAND_LIMIT)
        client.send({"QMP": {"version": commands.version(), "capabilities": []}})
        try:
            while data := await reader.read(COMMAND_LIMIT):
                try:
                    objects = splitter.feed(data)
                except ControlError as error:
                    client.send(_failure(error))
                    continue
                for raw in objects:
                    client.send(await self._answer(client, raw))
                    async with asyncio.timeout(ANSWER_SECONDS):
                        await writer.drain()
        except TimeoutError:
            log.warning("control client does not read; dropped")
            writer.transport.abort()
        except OSError:
            pass  # the client went
        finally:
            self._clients.discard(client)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, client: _Client, raw: bytes) -> dict[str, Any]:
        reply: dict[str, Any] = {}
        try:
            request = msgspec.json.decode(raw, type=Request)
            if request.id is not msgspec.UNSET:
                reply["id"] = request.id
            reply["return"] = await self._run(client, request)
        except msgspec.DecodeError as error:  # its child ValidationError, too
            reply |= _failure(ControlError(f"JSON parse error: {error}"))
        except ControlError as error:
            reply |= _failure(error)
        except Exception:
            log.exception("control command failed")
            reply |= _failure(ControlError("internal error; the log has it"))
        return reply

    async def _run(self, client: _Client, request: Request) -> commands.Answer:
        command = commands.COMMANDS.get(request.execute)
        negotiation = request.execute == commands.NEGOTIATION
        if negotiation and client.negotiated:
            raise ControlError("capabilities negotiation is already complete, command ignored", "CommandNotFound")
        if not negotiation and not client.negotiated:
            raise ControlError("expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound")
        if command is None:
            raise ControlError(f"the command {request.execute} has not been found", "CommandNotFound")
        try:
            arguments = msgspec.convert(request.arguments, command.arguments)
        except msgspec.ValidationError as error:
            raise ControlError(f"{request.execute}: {error}") from None
        answer = await command.run(self._host, arguments)
        if negotiation:
            client.negotiated = True
        return answer


def _failure(error: ControlError) -> dict[str, Any]:
    return {"error": {"class": error.qmp_class, "desc": str(error)}}
