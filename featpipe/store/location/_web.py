"""A cache behind a plain web server, which can only be read: what it holds is listed in ``index.jsonl``."""

from __future__ import annotations

import hashlib
import netrc
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.util import make_headers

from featpipe.errors import CacheCorrupt, CacheUnreachable, FeaturesNotCached, RequestError
from featpipe.store._index import INDEX, LARGEST_INDEX, CacheIndex
from featpipe.store.location._location import Location, StoredFile
from featpipe.store.location._ranges import RangedFile, Span

T = TypeVar("T")
_ATTEMPTS = 5
_FIRST_WAIT = 0.2  # seconds; doubled each time
_FRESH = 30.0  # seconds that the index is trusted to be the newest
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 3
_PART = 1 << 20
_LENGTH = re.compile(r"[0-9]{1,15}")
_BUSY = (408, 425, 429, 500, 502, 503, 504)


class Web(Location):
    """A cache behind ``http://`` or ``https://``; redirects to another host are refused.

    Parameters
    ----------
    url : str
    """

    threads = 8

    def __init__(self, url: str) -> None:
        self.url = url
        self._pool = urllib3.PoolManager(
            maxsize=self.threads, retries=False, timeout=urllib3.Timeout(connect=20, read=120)
        )
        self._headers = _credentials(url)
        self._index: CacheIndex | None = None
        self._read_at = 0.0

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

        def ask() -> int:
            with self._answer("HEAD", name, {}) as answer:
                return self._length(name, answer)

        return self._again(ask)

    def names(self, folder: str) -> list[str]:
        """See `Location`: what the index says."""
        return self.index.names(folder)

    def open(self, name: str, size: int | None = None) -> StoredFile:
        """See `Location`."""
        return RangedFile(self.size(name) if size is None else size, lambda spans: self._ranges(name, spans))

    def digest(self, name: str) -> str:
        """See `Location`."""

        def ask() -> str:
            digest = hashlib.sha256()
            with self._answer("GET", name, {}) as answer:
                self._length(name, answer)  # without one it need never end
                for part in answer.stream(_PART, decode_content=False):
                    digest.update(part)
            return digest.hexdigest()

        return self._again(ask)

    def has_array(self, folder: str) -> bool:
        """See `Location`."""
        return folder.removeprefix("arrays/") in self.index.arrays

    @property
    def index(self) -> CacheIndex:
        """What the cache holds, as its last `push` said."""
        if self._index is None or time.monotonic() - self._read_at > _FRESH:
            try:
                content = self._get(INDEX, largest=LARGEST_INDEX)
            except FileNotFoundError as error:
                raise FeaturesNotCached(
                    f"There is no {self.url}/{INDEX}, which says what a cache behind a web server holds. Check "
                    "the URL; a "
                    "cache gets one from `featpipe cache push`."
                ) from error
            self._index, self._read_at = CacheIndex.parse(f"{self.url}/{INDEX}", content), time.monotonic()
        return self._index

    def _known(self, name: str) -> bytes | None:
        """Return a spec that the index holds: its digest is its key, so nothing can be wrong with it."""
        folder, _, file = name.rpartition("/")
        return self.index.spec(folder.removeprefix("arrays/")) if file == "spec.json" else None

    def _ranges(self, name: str, spans: list[Span]) -> list[bytes]:
        return [self._get(name, span=span) for span in spans]

    def _get(self, name: str, *, span: Span | None = None, largest: int | None = None) -> bytes:
        headers = {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}

        def ask() -> bytes:
            with self._answer("GET", name, headers) as answer:
                return self._body(name, answer, span, largest)

        return self._again(ask)

    def _again(self, ask: Callable[[], T]) -> T:
        """Ask, and ask again when the answer is cut off or the server is busy."""
        for attempt in range(_ATTEMPTS):
            try:
                return ask()
            except (urllib3.exceptions.HTTPError, OSError) as error:
                self._wait(attempt, error)
        raise AssertionError("the last attempt returns or raises")

    def _body(self, name: str, answer: Any, span: Span | None, largest: int | None) -> bytes:
        if span is None:
            expected = self._length(name, answer)
            if largest is not None and expected > largest:
                raise CacheCorrupt(
                    f"{self.url}/{name} is larger than the {largest} bytes that it may have. Ask its owner to run "
                    "`featpipe cache verify`."
                )
            content: bytes = answer.read(expected)
            if len(content) < expected:
                raise urllib3.exceptions.ProtocolError(f"{len(content)} of {expected} bytes came")
            return content
        if answer.status != 206:
            raise RequestError(
                f"The server of {self.url} answered a request for a part of {name} with the whole file: it does "
                "not serve "
                "ranges. Copy the cache with another tool, or serve it with one that does (nginx, Apache, S3)."
            )
        length = span[1] - span[0]
        content = answer.read(length + 1)
        if len(content) != length:
            raise urllib3.exceptions.ProtocolError(f"{len(content)} of {length} bytes came")
        return content

    def _length(self, name: str, answer: Any) -> int:
        """Return how many bytes an answer has; a file is of a known size, and sent as it is."""
        encoding = answer.headers.get("Content-Encoding", "identity")
        length = answer.headers.get("Content-Length", "")
        if encoding != "identity" or "Transfer-Encoding" in answer.headers or not _LENGTH.fullmatch(length):
            raise CacheUnreachable(
                f"The server of {self.url} sends {name} compressed or without saying how long it is (Content-Encoding "
                f"{encoding[:40]!r}, Content-Length {length[:40]!r}). Serve the cache's files as they are."
            )
        return int(length)

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
        # Of a body that was not read to its end, what is left would be taken for the next answer.
        (answer.release_conn if answer.length_remaining == 0 or method == "HEAD" else answer.close)()

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
                "~/.netrc, "
                "or ask its owner."
            )
        if status in _BUSY:
            raise urllib3.exceptions.HTTPError(f"status {status}")
        if status not in (200, 206):
            raise CacheUnreachable(f"{self.url} answered with status {status} when asked for {name}.")

    def _wait(self, attempt: int, error: Exception) -> None:
        if isinstance(error, FileNotFoundError | CacheUnreachable):
            raise error
        if attempt == _ATTEMPTS - 1:
            raise CacheUnreachable(
                f"{self.url} cannot be reached: {error}. Check the network and the address, and run the same "
                "command again."
            ) from error
        time.sleep(_FIRST_WAIT * 2**attempt)


def _credentials(url: str) -> dict[str, str]:
    """Return a header with the user's name and password for this host, if ``~/.netrc`` has them."""
    try:
        found = netrc.netrc().authenticators(urlsplit(url).hostname or "")
    except (FileNotFoundError, netrc.NetrcParseError):
        return {}
    return {} if found is None else dict(make_headers(basic_auth=f"{found[0]}:{found[2]}"))
