"""A TCP proxy that is as slow and as unreliable as a test needs."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from featpipe.testing._served import HOST, Served, answer

_AT_ONCE = 1 << 18  # bytes; read at most so many before they are passed on
_UNDER_WAY = 64  # such reads; what may be on its way in one direction of one connection


@dataclass(frozen=True)
class Weather:
    """What a proxy does to connections; by default nothing.

    Parameters
    ----------
    latency : float
        Seconds that bytes take, each way.
    bandwidth : float, optional
        Bytes a second, each way and for all connections together.
    drop_after : int, optional
        Cut a connection once so many bytes of the answer have passed; 0 lets the request through and
        loses the answer.
    drop_upload_after : int, optional
        Cut a connection once so many bytes of the request have passed; 0 lets nothing through.
    drop_every : int, optional
        Cut every so-manieth new connection only; by default all of them.
    drops : int, optional
        Cut so many connections and then no more; by default without end.
    reset : bool
        Cut with a reset (RST), not with an end (FIN).
    hold : bool
        Accept connections and keep still.
    """

    latency: float = 0.0
    bandwidth: float | None = None
    drop_after: int | None = None
    drop_upload_after: int | None = None
    drop_every: int | None = None
    drops: int | None = None
    reset: bool = True
    hold: bool = False


class Proxy(Served):
    """A running proxy."""

    def change(self, **weather: Any) -> None:
        """Set the fields of `Weather`; those that are not named go back to fair."""
        self.ask("change", **weather)

    def counts(self) -> dict[str, int]:
        """Return ``connections``, how many of them were ``dropped``, and bytes ``up`` and ``down``."""
        counted: dict[str, int] = self.ask("counts")
        return counted


@contextmanager
def proxy(to: str, **weather: Any) -> Iterator[Proxy]:
    """Pass connections on to a server on this machine.

    Parameters
    ----------
    to : str
        URL of the server.
    **weather
        Fields of `Weather`, also changed later with ``change``.
    """
    with Proxy(__name__, port=urlsplit(to).port, weather=weather) as running:
        yield running


class _Sky:
    """The state that all connections share."""

    def __init__(self, weather: Weather) -> None:
        self.weather = weather
        self.counts = {"connections": 0, "dropped": 0, "up": 0, "down": 0}
        self.free_at = {"up": 0.0, "down": 0.0}  # when the line has sent what it was given

    def change(self, **weather: Any) -> None:
        self.weather = Weather(**weather)

    def delay(self, direction: str, n_bytes: int, now: float) -> float:
        """Return in how many seconds bytes that set off now arrive."""
        if self.weather.bandwidth is not None:
            self.free_at[direction] = max(now, self.free_at[direction]) + n_bytes / self.weather.bandwidth
        return self.weather.latency + max(0.0, self.free_at[direction] - now)

    def allowed(self, direction: str, connection: int) -> int | None:
        """Return after how many bytes in a direction a connection is cut, None for never."""
        limit = self.weather.drop_upload_after if direction == "up" else self.weather.drop_after
        every = self.weather.drop_every or 1
        return None if connection % every or self.weather.drops == 0 else limit

    def dropped(self) -> None:
        self.counts["dropped"] += 1
        if self.weather.drops:
            self.weather = replace(self.weather, drops=self.weather.drops - 1)


class _Cut(Exception):
    """The weather cuts a connection."""


class _Connection:
    """One connection, from a client to the server."""

    def __init__(self, sky: _Sky) -> None:
        sky.counts["connections"] += 1
        self._sky, self._number = sky, sky.counts["connections"]

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        """Carry bytes both ways until both ends are done or one breaks."""
        ends = [writer]
        try:
            if self._sky.weather.hold:
                await reader.read()
                return
            server_reader, server_writer = await asyncio.open_connection(HOST, port, limit=_AT_ONCE)
            ends.append(server_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry("up", reader, server_writer))
                both.create_task(self._carry("down", server_reader, writer))
        except* _Cut:
            self._sky.dropped()
            _break(ends, reset=self._sky.weather.reset)
        except* OSError:
            _break(ends, reset=True)
        finally:
            for end in ends:
                end.close()

    async def _carry(self, direction: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        line: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(_UNDER_WAY)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._send(direction, source, line))
            both.create_task(_receive(line, sink))

    async def _send(
        self, direction: str, source: asyncio.StreamReader, line: asyncio.Queue[tuple[float, bytes | None]]
    ) -> None:
        """Put bytes on the line with the time of their arrival; b"" is the end and None a cut."""
        passed, loop, data = 0, asyncio.get_running_loop(), b"?"
        while data:
            data = await source.read(_AT_ONCE)
            limit = self._sky.allowed(direction, self._number)
            cut = limit is not None and passed + len(data) > limit
            data = data[: limit - passed] if cut and limit is not None else data
            passed += len(data)
            self._sky.counts[direction] += len(data)
            arrives = loop.time() + self._sky.delay(direction, len(data), loop.time())
            if data or not cut:
                await line.put((arrives, data))
            if cut:
                await line.put((arrives, None))
                return


async def _receive(line: asyncio.Queue[tuple[float, bytes | None]], sink: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    while True:
        arrives, data = await line.get()
        await asyncio.sleep(max(0.0, arrives - loop.time()))
        if data is None:
            raise _Cut
        if not data:
            sink.write_eof()
            return
        sink.write(data)
        await sink.drain()


def _break(ends: list[asyncio.StreamWriter], *, reset: bool) -> None:
    for end in ends:
        if reset and not end.is_closing():
            linger = struct.pack("ii", 1, 0)  # closing sends a reset
            end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            end.transport.abort()


async def _serve(sky: _Sky, port: int) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Connection(sky).run(reader, writer, port)

    server = await asyncio.start_server(accept, HOST, 0, limit=_AT_ONCE, backlog=128)
    commands = {"change": sky.change, "counts": lambda: sky.counts}
    own_port = server.sockets[0].getsockname()[1]
    threading.Thread(target=answer, args=(own_port, commands), daemon=True).start()
    await server.serve_forever()


def main() -> None:
    """Carry bytes until standard input ends."""
    options = json.loads(sys.argv[1])
    asyncio.run(_serve(_Sky(Weather(**options["weather"])), options["port"]))


if __name__ == "__main__":
    main()
