"""Tunnel: the child that speaks TLS with nodes of other sites for the agent, which has no TLS in its process.

It knows no files and looks at no question: it brings frames from one agent to another, and says whose certificate is at
the other end. Between machines a frame is its length in four bytes, and its bytes. With the agent it talks over
standard input and output, where the number of the connection comes after the length; number 0 is the child itself:

    listen, connect, renew, close        orders of the agent, as JSON
    listening, accepted, connected, closed, failed        what became of them, and what happened

It ends when its standard input does, so no tunnel outlives its agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import sys
from typing import Any, Final

import msgspec

NODE_URI: Final = "spiffe://batuta/node/"
HEAD: Final = struct.Struct(">I")
HEAD_OF_AGENT: Final = struct.Struct(">II")
QUESTION_BYTES_MAX: Final = 64 * 1024
ANSWER_BYTES_MAX: Final = 3 << 20
CONNECTIONS_MOST: Final = 64
FIRST_ACCEPTED: Final = 1 << 20
"""Connections that others made are numbered from here; what the agent makes it numbers from 1."""
HANDSHAKE_S: Final = 15.0
IDLE_S: Final = 120.0
"""Who asks nothing for so long has gone, or can come again."""
PORT_TRIES: Final = 100


class Order(msgspec.Struct, frozen=True):
    """What the agent asks for."""

    type: str
    conn: int = 0
    host: str = ""
    port: int = 0
    node: str = ""
    """Who must be at the other end."""
    chain: str = ""
    key: str = ""
    trusts: str = ""


class Tunnel:
    """All connections of one child."""

    def __init__(self, agent: asyncio.StreamWriter) -> None:
        self._agent = agent
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._answers: dict[int, asyncio.Queue[bytes]] = {}
        """By accepted connection: each has one question with the agent at a time."""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._context: ssl.SSLContext | None = None
        self._server: asyncio.Server | None = None
        self._next = FIRST_ACCEPTED

    async def run(self, agent: asyncio.StreamReader) -> None:
        """Until the agent is gone."""
        while True:
            try:
                length, conn = HEAD_OF_AGENT.unpack(await agent.readexactly(HEAD_OF_AGENT.size))
                data = await agent.readexactly(length)
            except asyncio.IncompleteReadError:
                return
            if conn:
                await self._send(conn, data)
            else:
                await self._obey(msgspec.json.decode(data, type=Order))

    async def _send(self, conn: int, data: bytes) -> None:
        if conn in self._answers:
            self._answers[conn].put_nowait(data)
        elif (writer := self._writers.get(conn)) is not None:
            writer.write(HEAD.pack(len(data)) + data)  # questions: few and short, so nobody waits for the line here

    async def _obey(self, order: Order) -> None:
        match order.type:
            case "listen":
                await self._listen(order)
            case "connect":
                self._tasks[order.conn] = asyncio.create_task(self._connect(order))
            case "renew" if self._context is not None:
                self._context.load_cert_chain(order.chain, order.key)
            case "close" if (task := self._tasks.get(order.conn)) is not None:
                task.cancel()

    # --- Listening ---

    async def _listen(self, order: Order) -> None:
        try:
            self._context = _context(order, is_server=True)
            listener = _bound(order.host, order.port)
            self._server = await asyncio.start_server(
                self._accept, sock=listener, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_S
            )
        except (OSError, ssl.SSLError) as error:
            await self._tell(type="failed", message=str(error))
            return
        await self._tell(type="listening", port=listener.getsockname()[1])

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node = _node_at(writer)
        if not node or len(self._answers) >= CONNECTIONS_MOST:
            writer.close()
            return
        conn, self._next = self._next, self._next + 1
        answers = self._answers[conn] = asyncio.Queue()
        await self._tell(type="accepted", conn=conn, node=node)
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    question = await _frame(reader, QUESTION_BYTES_MAX)
                await self._hand_on(conn, question)
                answer = await answers.get()
                writer.write(HEAD.pack(len(answer)) + answer)
                await writer.drain()
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            pass  # it went, or was not one of ours: either way it can come again
        finally:
            del self._answers[conn]
            writer.close()
            await self._tell(type="closed", conn=conn)

    # --- Connecting ---

    async def _connect(self, order: Order) -> None:
        why, writer = "", None
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                reader, writer = await asyncio.open_connection(
                    order.host, order.port, ssl=_context(order, is_server=False), server_hostname=""
                )
            if (found := _node_at(writer)) != order.node:
                raise ValueError(f"{found or 'no node'} is there, not {order.node}")
            self._writers[order.conn] = writer
            await self._tell(type="connected", conn=order.conn)
            while True:
                await self._hand_on(order.conn, await _frame(reader, ANSWER_BYTES_MAX))
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
            why = str(error) or type(error).__name__
        finally:
            self._writers.pop(order.conn, None)
            self._tasks.pop(order.conn, None)
            if writer is not None:
                writer.close()
            with contextlib.suppress(OSError):
                await self._tell(type="closed", conn=order.conn, message=why)

    # --- The agent ---

    async def _hand_on(self, conn: int, data: bytes) -> None:
        self._agent.write(HEAD_OF_AGENT.pack(len(data), conn) + data)
        await self._agent.drain()

    async def _tell(self, **event: Any) -> None:
        await self._hand_on(0, msgspec.json.encode(event))


async def _frame(reader: asyncio.StreamReader, most: int) -> bytes:
    (length,) = HEAD.unpack(await reader.readexactly(HEAD.size))
    if length > most:
        raise ValueError(f"a frame of {length} bytes")
    return await reader.readexactly(length)


def _context(order: Order, *, is_server: bool) -> ssl.SSLContext:
    """Certificates of the hub's authority at both ends. Names of machines are not looked at: whoever is meant is a
    node, wherever it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(order.trusts)
    context.load_cert_chain(order.chain, order.key)
    return context


def _node_at(writer: asyncio.StreamWriter) -> str:
    """The node whose certificate is at the other end; empty when it is nobody's."""
    names = (writer.get_extra_info("peercert") or {}).get("subjectAltName", ())
    found = [value.removeprefix(NODE_URI) for kind, value in names if kind == "URI" and value.startswith(NODE_URI)]
    return found[0] if len(found) == 1 else ""


def _bound(host: str, wanted: int) -> socket.socket:
    """A listener at this port, or at the next that is free."""
    family = socket.getaddrinfo(host, wanted, type=socket.SOCK_STREAM)[0][0]
    for port in range(wanted, min(wanted + PORT_TRIES, 65_536)):
        made = socket.socket(family)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, port))
            made.listen(CONNECTIONS_MOST)
        except OSError:
            made.close()
            continue
        made.setblocking(False)
        return made
    raise OSError(f"no port from {wanted} to {wanted + PORT_TRIES - 1} is free")


async def main() -> None:
    """Frames in at standard input, and out at standard output."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout.buffer)
    await Tunnel(asyncio.StreamWriter(transport, protocol, None, loop)).run(reader)


if __name__ == "__main__":
    asyncio.run(main())
