"""A cache behind a plain web server, which can only be read: what it holds is listed in ``index.jsonl``."""

from __future__ import annotations

import hashlib
import netrc
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.util import make_headers

from featpipe.errors import CacheUnreachable, FeaturesNotCached, RequestError
from featpipe.store._index import INDEX, LARGEST_INDEX, CacheIndex
from featpipe.store.location._location import PART, StoredFile
from featpipe.store.location._patient import ATTEMPTS, PatientLocation
from featpipe.store.location._ranges import RangedFile, Span

_FAILED = (urllib3.exceptions.HTTPError, OSError)
_FIRST_WAIT = 0.2  # seconds; doubled each time
_PATIENCE = 15.0  # seconds after which a server that gives no answer is not asked again
_CONNECT, _READ = 5.0, 20.0  # seconds
_FRESH = 30.0  # seconds that the index is trusted to be the newest
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 3
_LENGTH = re.compile(r"[0-9]{1,15}")
_PART = 1 << 20
_BUSY = (408, 425, 429, 500, 502, 503, 504)


class Web(PatientLocation):
    """A cache behind ``http://`` or ``https://``; redirects to another host are refused.

    Proxies are those of the environment, as ``HTTPS_PROXY`` and ``NO_PROXY`` name them.

    Parameters
    ----------
    url : str
    """

    threads = 8
    failures = _FAILED

    def __init__(self, url: str) -> None:
        self.url = url
        self._pool = _pool(url, self.threads)
        self._headers = _credentials(url)
        self._index: CacheIndex | None = None
        self._read_at = 0.0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        from featpipe.store.location._locate import locate

        return locate, (self.url,)

    def read(self, name: str, largest: int) -> bytes:
        """See `Location`."""
        if (known := self._known(name)) is not None:
            return known
        return self._get(name, largest=largest)

    def size(self, name: str) -> int:
        """See `Location`."""
        return self._try(lambda: self._size(name))

    def names(self, folder: str) -> list[str]:
        """See `Location`: what the index says."""
        return self.index.names(folder)

    def files(self, folder: str) -> list[str]:
        """See `Location`: the commit records that the index tells of."""
        return [f"commits/{name}" for name in self.names(f"{folder}/commits")]

    def open(self, name: str, size: int | None = None, sha256: str | None = None) -> StoredFile:
        """See `Location`."""
        n_bytes = self.size(name) if size is None else size
        return RangedFile(
            n_bytes, lambda spans: self._ranges(name, spans), lambda out: self._receive(name, n_bytes, out)
        )

    def _from(self, name: str, start: int, size: int) -> Iterator[bytes | memoryview]:
        """Yield a file from `start` on; ranges are needed only where a line was cut."""
        with self._answer("GET", name, {"Range": f"bytes={start}-"} if start else {}) as answer:
            if start:
                self._require_range(name, answer, start)
            yield from answer.stream(PART)

    def digest(self, name: str) -> str:
        """See `Location`."""
        return self._try(lambda: self._digest(name))

    def has_array(self, folder: str) -> bool:
        """See `Location`."""
        return folder.removeprefix("arrays/") in self.index.arrays

    @property
    def index(self) -> CacheIndex:
        """What the cache holds, as its last `push` said."""
        with self._lock:  # a second thread waits for the first one's
            if self._index is None or time.monotonic() - self._read_at > _FRESH:
                self._index, self._read_at = self._read_index(), time.monotonic()
            return self._index

    def _read_index(self) -> CacheIndex:
        try:
            content = self._get(INDEX, largest=LARGEST_INDEX)
        except FileNotFoundError as error:
            raise FeaturesNotCached(
                f"There is no {self.url}/{INDEX}, which says what a cache behind a web server holds. Check the "
                "URL; a cache gets one from `featpipe cache push`."
            ) from error
        return CacheIndex.parse(f"{self.url}/{INDEX}", content)

    def _known(self, name: str) -> bytes | None:
        """Return a spec that the index holds: its digest is its key, so nothing can be wrong with it."""
        folder, _, file = name.rpartition("/")
        return self.index.spec(folder.removeprefix("arrays/")) if file == "spec.json" else None

    def _ranges(self, name: str, spans: list[Span]) -> list[bytes]:
        return [self._get(name, span=span) for span in spans]

    def _receive(self, name: str, size: int, out: memoryview) -> bytes:
        """Fetch a file, its beginning straight into `out`; return what is left over."""

        def get() -> bytes:
            with self._answer("GET", name, {"Range": f"bytes=0-{size - 1}"}) as answer:
                self._check_range(name, answer, (0, size))
                return _into(out, answer, size)

        return self._try(get)

    def _get(self, name: str, *, span: Span | None = None, largest: int | None = None) -> bytes:
        headers = {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}

        def get() -> bytes:
            with self._answer("GET", name, headers) as answer:
                return self._body(name, answer, span, largest)

        return self._try(get)

    def _pause(self, error: BaseException, attempt: int, began: float) -> None:
        """Wait before the next attempt, or raise where none would help."""
        if isinstance(error, FileNotFoundError | CacheUnreachable):
            raise error
        silent = isinstance(error, _NO_ANSWER) and time.monotonic() - began > _PATIENCE
        if silent or attempt >= ATTEMPTS - 1:
            raise CacheUnreachable(
                f"{self.url} cannot be reached: {_said(error)}. Check the network and the address, and run "
                "the same command again."
            ) from error
        time.sleep(_FIRST_WAIT * 2**attempt)

    def _size(self, name: str) -> int:
        with self._answer("HEAD", name, {}) as answer:
            return self._length(name, answer)

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        with self._answer("GET", name, {}) as answer:
            left = self._length(name, answer)
            for part in answer.stream(_PART):
                digest.update(part)
                left -= len(part)
        if left:
            raise urllib3.exceptions.ProtocolError(f"{left} bytes did not come")
        return digest.hexdigest()

    def _length(self, name: str, answer: Any) -> int:
        """Return how many bytes an answer has; a file is of a known size, and sent as it is."""
        encoding, length = answer.headers.get("Content-Encoding", "identity"), _said_length(answer)
        if encoding != "identity" or "Transfer-Encoding" in answer.headers or not _LENGTH.fullmatch(length):
            raise CacheUnreachable(
                f"The server of {self.url} sends {name} compressed or without saying how long it is (Content-Encoding "
                f"{encoding[:40]!r}, Content-Length {length[:40]!r}). Serve the cache's files as they are."
            )
        return int(length)

    def _body(self, name: str, answer: Any, span: Span | None, largest: int | None) -> bytes:
        if span is None:
            expected = self._length(name, answer)
            wanted = expected if largest is None else min(expected, largest + 1)
            whole: bytes = answer.read(wanted)
            if len(whole) < wanted:
                raise urllib3.exceptions.ProtocolError(f"{len(whole)} of {wanted} bytes came")
            return whole
        self._check_range(name, answer, span)
        length = span[1] - span[0]
        # Without a number urllib3 copies once less; the length that the server said bounds it then.
        content: bytes = answer.read() if _said_length(answer) == str(length) else answer.read(length + 1)
        if len(content) != length:
            raise urllib3.exceptions.ProtocolError(f"{len(content)} of {length} bytes came")
        return content

    def _check_range(self, name: str, answer: Any, span: Span) -> None:
        """Refuse an answer that is not of the bytes that were asked for; all of a file are a part of it, too."""
        length = span[1] - span[0]
        if span[0] or answer.status == 206 or _said_length(answer) != str(length):
            self._require_range(name, answer, span[0])
        if _said_length(answer) not in ("", str(length)):
            raise urllib3.exceptions.ProtocolError(f"{_said_length(answer)} of {length} bytes were announced")

    def _require_range(self, name: str, answer: Any, start: int) -> None:
        if answer.status != 206:
            raise RequestError(
                f"The server of {self.url} answered a request for a part of {name} with the whole file: it does "
                "not serve ranges. Serve the cache with one that does (nginx, Apache, S3), or copy it."
            )
        if not _starts_at(answer, start):
            raise CacheUnreachable(
                f"The server of {self.url} answered a request for {name} from byte {start} on with others "
                f"({answer.headers.get('Content-Range')}). Serve the cache with one that serves ranges."
            )

    @contextmanager
    def _answer(self, method: str, name: str, headers: dict[str, str]) -> Iterator[Any]:
        """Ask for a file and give the answer, whose body is still to be read; raises `FileNotFoundError`."""
        url = f"{self.url}/{name}"
        for _ in range(_MOST_REDIRECTS + 1):
            answer = self._pool.request(
                method,
                url,
                headers={**self._headers, "Accept-Encoding": "identity", **headers},
                preload_content=False,
                decode_content=False,
                redirect=False,
            )
            if answer.status not in _REDIRECTS:
                break
            answer.close()  # unread: its body may be of any length
            url = self._redirected(url, answer.headers.get("Location", ""))
        try:
            self._check_status(name, answer.status)
            yield answer
        except BaseException:
            answer.close()
            raise
        if answer.closed or not answer.length_remaining:
            answer.release_conn()
        else:  # a body that was not read to its end
            answer.close()

    def _redirected(self, url: str, target: str) -> str:
        try:
            there = urljoin(url, target)
            host = f"{urlsplit(there).scheme}://{urlsplit(there).hostname}"
        except ValueError as error:
            raise CacheUnreachable(f"{self.url} sends readers on to what is no address: {error}.") from error
        if urlsplit(there)[:2] != urlsplit(url)[:2]:
            raise RequestError(
                f"{self.url} sends readers on to another server, {host}. featpipe does not follow: name the "
                "cache's own URL."
            )
        return there

    def _check_status(self, name: str, status: int) -> None:
        if status in (404, 410):
            raise FileNotFoundError(status, "no such file", f"{self.url}/{name}")
        if status in (401, 403):
            raise CacheUnreachable(
                f"{self.url} refuses access (status {status}) to {name}. Put user and password for this host into "
                "~/.netrc, or ask its owner."
            )
        if status in _BUSY:
            raise urllib3.exceptions.HTTPError(f"status {status}")
        if status not in (200, 206):
            raise CacheUnreachable(f"{self.url} answered with status {status} when asked for {name}.")


_NO_ANSWER = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.TimeoutError)


def _said(error: BaseException) -> str:
    """Return what a person needs of an error of urllib3, whose texts begin with the connection's address in memory."""
    return re.sub(r"^<?[\w.]*HTTPS?Connection\(.*?\)>?: ", "", str(error)).rstrip(".")


def _into(out: memoryview, answer: Any, size: int) -> bytes:
    """Read a body from the socket into `out`, and return what is left over."""
    raw, at = answer._fp, 0  # urllib3 itself reads into memory of its own, and copies
    while at < len(out) and (n_bytes := raw.readinto(out[at:])):
        at += n_bytes
    rest = raw.read(size - at + 1) if at == len(out) else b""
    if at + len(rest) != size:
        raise urllib3.exceptions.ProtocolError(f"{at + len(rest)} of {size} bytes came")
    return bytes(rest)


def _said_length(answer: Any) -> str:
    return str(answer.headers.get("Content-Length", ""))


def _starts_at(answer: Any, start: int) -> bool:
    """Whether a partial answer says that it begins where it should."""
    return re.match(rf"bytes {start}-", str(answer.headers.get("Content-Range", ""))) is not None


def _pool(url: str, threads: int) -> Any:
    """Return connections to a server, by way of the proxy that the environment names for it."""
    timeout = urllib3.Timeout(connect=_CONNECT, read=_READ)
    options: dict[str, Any] = {"maxsize": threads, "retries": False, "timeout": timeout}
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy is None or proxy_bypass(parts.hostname or ""):
        return urllib3.PoolManager(**options)
    user = urlsplit(proxy).username
    if user is not None:
        password = urlsplit(proxy).password or ""
        options["proxy_headers"] = make_headers(proxy_basic_auth=f"{unquote(user)}:{unquote(password)}")
    return urllib3.ProxyManager(proxy, **options)


def _credentials(url: str) -> dict[str, str]:
    """Return a header with the user's name and password for this host, if ``~/.netrc`` has them."""
    try:
        found = netrc.netrc().authenticators(urlsplit(url).hostname or "")
    except (FileNotFoundError, netrc.NetrcParseError):
        return {}
    return {} if found is None else dict(make_headers(basic_auth=f"{found[0]}:{found[2]}"))
