"""A plain HTTP server of the files below a folder, that can be told to misbehave."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from featpipe.testing._served import HOST, Served, answer

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True)
class Faults:
    """What a file server does wrong; by default nothing.

    Parameters
    ----------
    redirect : mapping of str to str
        Paths that start so, as ``/arrays/``, are answered with 302 to this URL and the rest of the path.
    status : mapping of str to int
        Paths that start so are answered with this status.
    times : int, optional
        How often `status` is given before requests are answered again; always by default.
    ignore_range : bool
        Answer 200 with the whole file whatever range was asked for.
    shift_range : int
        Send the range that starts so many bytes later, and say so in ``Content-Range``.
    length_off : int
        Claim so many bytes more (or less) than are sent, then close the connection.
    delay : float
        Seconds before each answer.
    """

    redirect: Mapping[str, str] = field(default_factory=dict)
    status: Mapping[str, int] = field(default_factory=dict)
    times: int | None = None
    ignore_range: bool = False
    shift_range: int = 0
    length_off: int = 0
    delay: float = 0.0


class FileServer(Served):
    """A running file server."""

    def misbehave(self, **faults: Any) -> None:
        """Set the fields of `Faults`; those that are not named go back to normal."""
        self.ask("misbehave", **faults)

    def requests(self) -> list[dict[str, Any]]:
        """Return the requests so far: ``method``, ``path``, ``range`` (or None), ``status``, ``headers``."""
        answered: list[dict[str, Any]] = self.ask("requests")
        return answered

    def forget(self) -> None:
        """Start the list of requests afresh."""
        self.ask("forget")


@contextmanager
def file_server(folder: str | Path, **faults: Any) -> Iterator[FileServer]:
    """Serve the files below a folder on loopback: ranges, ETag, keep-alive; no listings, nothing outside.

    Parameters
    ----------
    folder : str or Path
    **faults
        Fields of `Faults`, also changed later with ``misbehave``.
    """
    with FileServer(__name__, folder=str(folder), faults=faults) as server:
        yield server


class _State:
    def __init__(self, folder: str, faults: Mapping[str, Any]) -> None:
        self.folder = Path(folder).resolve()
        self.faults = Faults(**faults)
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def misbehave(self, **faults: Any) -> None:
        self.faults = Faults(**faults)

    def forget(self) -> None:
        self.requests = []

    def status_for(self, path: str) -> int | None:
        with self.lock:
            status = _longest(self.faults.status, path)
            if status is None or self.faults.times == 0:
                return None
            if self.faults.times is not None:
                self.faults = replace(self.faults, times=self.faults.times - 1)
            return int(self.faults.status[status])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers in one packet
    state: _State

    def do_GET(self) -> None:
        """Answer with a file or a part of one."""
        path = urlsplit(self.path).path
        faults = self.state.faults
        time.sleep(faults.delay)
        if prefix := _longest(faults.redirect, path):
            self._empty(HTTPStatus.FOUND, Location=faults.redirect[prefix] + self.path[len(prefix) :])
        elif status := self.state.status_for(path):
            self._empty(status)
        elif (place := _place(self.state.folder, path)) is None:
            self._empty(HTTPStatus.NOT_FOUND)
        else:
            self._file(place, faults)

    do_HEAD = do_GET

    def _file(self, place: Path, faults: Faults) -> None:
        with open(place, "rb") as file:
            status = os.fstat(file.fileno())
            size, etag = status.st_size, f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
            headers = {
                "ETag": etag,
                "Last-Modified": formatdate(status.st_mtime, usegmt=True),
                "Accept-Ranges": "bytes",
            }
            part = self._range(size, etag, faults)
            if self.headers.get("If-Match", etag) not in (etag, "*"):
                self._empty(HTTPStatus.PRECONDITION_FAILED, **headers)
            elif self.headers.get("If-None-Match") in (etag, "*"):
                self._empty(HTTPStatus.NOT_MODIFIED, **headers)
            elif part is None:
                self._send(HTTPStatus.OK, file, range(size), headers)
            elif not part:
                headers["Content-Range"] = f"bytes */{size}"
                self._empty(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, **headers)
            else:
                headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
                self._send(HTTPStatus.PARTIAL_CONTENT, file, part, headers)

    def _range(self, size: int, etag: str, faults: Faults) -> range | None:
        """Return the bytes that were asked for: None for all of them, empty for none that are there."""
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if (
            not match
            or faults.ignore_range
            or self.headers.get("If-Range", etag) != etag
            or not any(match.groups())
        ):
            return None
        first, last = match.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        if first and last and int(last) < start:
            return None  # no range at all, to be ignored
        return range(min(size, start + faults.shift_range), min(size, stop + faults.shift_range))

    def _send(self, status: HTTPStatus, file: BinaryIO, part: range, headers: Mapping[str, str]) -> None:
        off = self.state.faults.length_off
        self._head(status, len(part) + off, headers)
        self.wfile.flush()
        if self.command != "HEAD" and part:
            self.connection.sendfile(file, part.start, len(part))
        self.close_connection = self.close_connection or off != 0

    def _empty(self, status: int, **headers: str) -> None:
        self._head(status, 0, headers)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.state.requests.append(
            {
                "method": self.command,
                "path": self.path,
                "range": self.headers.get("Range"),
                "status": int(status),
                "headers": dict(self.headers.items()),
            }
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: requests are asked for."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about clients that went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _longest(prefixes: Mapping[str, Any], path: str) -> str | None:
    return max((prefix for prefix in prefixes if path.startswith(prefix)), key=len, default=None)


def _place(folder: Path, path: str) -> Path | None:
    """Return the file that a path means, None for whatever is no file below the folder."""
    names = unquote(path).split("/")[1:]
    if any(name in ("", ".", "..") or "\0" in name for name in names):
        return None
    place = folder.joinpath(*names).resolve()
    return place if place.is_relative_to(folder) and place.is_file() else None


def main() -> None:
    """Serve until standard input ends."""
    state = _State(**json.loads(sys.argv[1]))
    handler = type("Handler", (_Handler,), {"state": state})
    server = _Server((HOST, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    answer(
        server.server_address[1],
        {"misbehave": state.misbehave, "requests": lambda: state.requests, "forget": state.forget},
    )


if __name__ == "__main__":
    main()
