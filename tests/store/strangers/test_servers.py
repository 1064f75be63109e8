"""A web server that a stranger runs, and links in a folder that a stranger packed: refused, soon, in little memory."""

from __future__ import annotations

import gzip
import os
import shutil
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from featpipe.errors import CacheWriteError, FeatpipeError
from featpipe.store import FeatureCache, Problem
from featpipe.store._index import INDEX, CacheIndex, index_line

pytest.importorskip("urllib3")
pytestmark = [pytest.mark.usefixtures("impatient_disk"), pytest.mark.timeout(120)]
PART = bytes(1 << 16)


class _Strange(BaseHTTPRequestHandler):
    """Serves files, but for paths with `where` in them, where it does `what`."""

    protocol_version = "HTTP/1.1"
    root: Path
    where, what = "", ""

    def do_GET(self):
        if self.where and self.where in self.path:
            getattr(self, self.what)()
            return
        path = self.root / self.path.lstrip("/")
        if not path.is_file():
            self.reply(404, b"")
            return
        content, status = path.read_bytes(), 200
        if asked := self.headers.get("Range"):
            start, stop = asked.removeprefix("bytes=").split("-")
            content, status = content[int(start) : int(stop) + 1], 206
        self.reply(status, content)

    do_HEAD = do_GET

    def reply(self, status, content, **headers):
        self.send_response(status)
        for name, value in ({"Content_Length": len(content)} | headers).items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def forever(self):
        self.close_connection = True
        if self.command == "HEAD":
            return
        while True:
            self.wfile.write(PART)

    def endless(self):
        self.reply(200, b"", Content_Length=None)
        self.forever()

    def endless_in_chunks(self):
        self.reply(200, b"", Content_Length=None, Transfer_Encoding="chunked")
        while self.command == "GET":
            self.wfile.write(b"10000\r\n" + PART + b"\r\n")

    def endless_with_a_length(self):
        self.reply(200, b"", Content_Length=2**60)
        self.forever()

    def endless_part(self):
        self.reply(206, b"", Content_Length=2**60, Content_Range=f"bytes 0-{2**60 - 1}/{2**60}")
        self.forever()

    def length_that_is_none(self):
        self.reply(200, b"{}", Content_Length="abc")

    def length_below_0(self):
        self.reply(200, b"{}", Content_Length=-5)

    def two_lengths(self):
        self.reply(200, b"{}", Content_Length="2, 3")

    def too_short(self):
        self.close_connection = True
        self.reply(200, b"{}", Content_Length=1000)

    def bomb(self):
        self.reply(200, BOMB, Content_Encoding="gzip")

    def bomb_in_a_part(self):
        self.reply(206, BOMB, Content_Encoding="gzip")

    def round_and_round(self):
        self.reply(302, b"", Location=self.path)

    def endless_redirect(self):
        self.reply(302, b"", Location="/other", Content_Length=None)
        self.forever()

    def to_no_address(self):
        self.reply(302, b"", Location="http://[::1")

    def to_no_port(self):
        self.reply(302, b"", Location="http://127.0.0.1:99999999/x")

    def to_a_file(self):
        self.reply(302, b"", Location="file:///etc/passwd")

    def to_another_server(self):
        self.reply(302, b"", Location="http://127.0.0.1:9/\x1b[31m")

    def nowhere(self):
        self.reply(302, b"")

    def endless_refusal(self):
        self.reply(403, b"", Content_Length=None)
        self.forever()

    def endless_404(self):
        self.reply(404, b"", Content_Length=None)
        self.forever()

    def strange_status(self):
        self.reply(299, b"{}")

    def no_content(self):
        self.reply(204, b"", Content_Length=None)

    def no_http(self):
        self.close_connection = True
        self.wfile.write(b"220 ftp.example.org\r\n" * 100)

    def many_headers(self):
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n")

    def long_header(self):
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"y" * (10 << 20) + b"\r\n\r\n")

    def hangs_up(self):
        self.close_connection = True

    def log_message(self, *_):
        pass


BOMB = gzip.compress(bytes(64 << 20))
WAYS = [
    name for name in vars(_Strange) if name not in vars(BaseHTTPRequestHandler) and not name.startswith("_")
]
WAYS = [
    name
    for name in WAYS
    if callable(getattr(_Strange, name)) and name not in ("do_GET", "do_HEAD", "reply", "forever")
]
PLACES = {
    INDEX: lambda cache: cache.keys(),
    "features/zarr.json": lambda cache: cache.arrays(),
    "sealed.json": lambda cache: [array.commits() for array in cache.arrays()],
    "stimuli.json": lambda cache: [array.ids for array in cache.arrays()],
    "/c/1/": lambda cache: [array.read() for array in cache.arrays()],
    "spec.json": lambda cache: raised(cache.verify()),
    "c/2/0": lambda cache: raised(cache.verify()),
}


def ended(look):
    """Return what is found, or the error that says why not."""
    try:
        return look()
    except FeatpipeError as error:
        return error


def raised(problems):
    if problems:
        raise FeatpipeError("; ".join(map(str, problems)))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Clients hang up on it, as they should."""


@pytest.fixture(scope="module")
def strange(tmp_path_factory, make_writer, fill):
    root = tmp_path_factory.mktemp("strange")
    for codec in ("none", "zstd"):
        array = fill(*make_writer(root, codec=codec, layer=codec))
        spec = array.spec.document(array.stimuli_digest)
        line = {array.key: index_line(array.key, spec, array.committed, sealed=True)}
        before = (root / INDEX).read_bytes() if (root / INDEX).exists() else b""
        (root / INDEX).write_bytes(before + CacheIndex(line).encode())
    handler = type("Handler", (_Strange,), {"root": root})
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def at_once(monkeypatch):
    """Ask again without a pause."""
    monkeypatch.setattr("featpipe.store.location._web._FIRST_WAIT", 0.001)


# urllib3 lets go of a connection with two lengths without closing it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("what", WAYS)
def test_a_strange_answer_is_refused(strange, bounded, where, what):
    handler, url = strange
    handler.where, handler.what = where, what
    cache = FeatureCache(url)
    cache.location._index = None  # one location a URL
    harmless = (
        what in ("endless_404", "endless_redirect") and where == "sealed.json"
    )  # then the records are asked for
    with bounded():
        found = ended(lambda: PLACES[where](cache))
    handler.where = ""
    refused = isinstance(found, FeatpipeError) and len(str(found)) < 5000
    assert refused or harmless or what == "strange_status", f"{found} was taken for good"


# Links in a folder, and what is no file.


@pytest.fixture
def outside(tmp_path):
    """A folder that is not the cache's."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text('{"secret": "of the reader"}')
    return folder


def _replace(path, make):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    make(path)


LEADS = {
    "a pipe": os.mkfifo,
    "no end of zeros": lambda path: path.symlink_to("/dev/zero"),
    "a secret": lambda path: path.symlink_to("/etc/passwd"),
    "itself": lambda path: path.symlink_to(path.name),
    "a folder": lambda path: path.symlink_to("/"),
    "nothing": lambda path: path.symlink_to("nowhere"),
    "a folder instead": lambda path: path.mkdir(),
}
PARTS = [
    "spec.json",
    "sealed.json",
    "commits/0.json",
    "commits",
    "data.zarr/features/zarr.json",
    "data.zarr/stimulus/c/0",
]
PARTS += ["data.zarr/features/c/0/0/0/0", "data.zarr/features/c", "data.zarr"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("lead", LEADS)
def test_a_link_or_what_is_no_file_is_refused(tiny_cache, bounded, lead, part):
    array, rows = tiny_cache
    _replace(array.folder / part, LEADS[lead])
    for look in (
        lambda a: a.read(),
        lambda a: a.ids,
        lambda a: a.nbytes,
        lambda a: a.provenance,
        lambda a: a.commits(),
    ):
        with bounded():
            found = ended(lambda look=look: look(FeatureCache(array.root).array(array.key)))
        assert "root:" not in str(found)  # nothing of what a link leads to
        assert not isinstance(found, np.ndarray) or np.array_equal(found, rows)
    with bounded():  # an array without a seal is as good
        assert FeatureCache(array.root).verify() or (part == "sealed.json" and lead != "a secret")


@pytest.mark.parametrize(
    "part", ["arrays", "arrays/KEY", "arrays/KEY/commits", "arrays/KEY/data.zarr/features/c", "tmp", "aside"]
)
def test_nothing_is_written_or_removed_behind_a_link(tmp_path, make_writer, fill, outside, part):
    writer, rows = make_writer(tmp_path / "cache")
    array = fill(writer, rows, shards=[0])
    place = Path(array.root, part.replace("KEY", array.key))
    place.mkdir(exist_ok=True)
    shutil.move(place, outside / "moved")
    place.symlink_to(outside / "moved")
    before = {path: path.lstat().st_mtime_ns for path in outside.rglob("*")}
    cache = FeatureCache(array.root)

    def refused(act):
        with suppress(CacheWriteError):  # or what is there is left alone
            act()
        assert {path: path.lstat().st_mtime_ns for path in outside.rglob("*")} == before

    refused(lambda: fill(writer, rows, shards=[1]))
    refused(lambda: cache.set_aside([Problem(array.key, 0, (0, 8), "", "")]))
    refused(lambda: cache.remove([array.key]))
