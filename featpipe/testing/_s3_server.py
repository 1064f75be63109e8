"""An S3 server on loopback: moto's, with conditional writes made atomic."""

from __future__ import annotations

import io
import logging
import os
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from featpipe.testing._served import HOST, Served, answer

_WRITES = {"PUT", "POST", "DELETE"}
ACCESS_KEY, SECRET_KEY = "loopback", "not-a-secret"


class S3Server(Served):
    """A running S3 server, empty at first."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead clients here."""
        return s3_environment(self.url)

    def make_bucket(self, name: str) -> str:
        """Make a bucket, named by at least three letters, and return its URL, ``s3://NAME``."""
        request = urllib.request.Request(f"{self.url}/{name}", data=b"", method="PUT")
        with urllib.request.urlopen(request):
            return f"s3://{name}"


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return the variables that lead S3 clients to an endpoint, such as a proxy before the server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run an S3 server on loopback. Needs moto."""
    with S3Server(__name__) as server:
        yield server


class _OneWriteAtATime:
    """Hand writes to moto one by one: it looks whether an object is there, and puts it, in two steps."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app, self._lock = app, threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in _WRITES:
            return self._app(environ, start)
        if length := int(
            environ.get("CONTENT_LENGTH") or 0
        ):  # first, so that a slow client holds up no other
            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        with self._lock:
            return self._app(environ, start)


def main() -> None:
    """Serve until standard input ends."""
    os.environ.setdefault("MOTO_S3_DEFAULT_KEY_BUFFER_SIZE", str(1 << 30))  # objects stay in memory
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class KeepAlive(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = _OneWriteAtATime(DomainDispatcherApplication(create_backend_app))
    server = make_server(HOST, 0, app, threaded=True, request_handler=KeepAlive)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    answer(server.server_port, {})


if __name__ == "__main__":
    main()
