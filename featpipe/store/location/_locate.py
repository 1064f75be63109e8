"""From what a user writes as ``--cache`` to the place that is meant."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from featpipe.errors import MissingDependency, RequestError
from featpipe.store.location._folder import Folder
from featpipe.store.location._location import Location

LOCAL = "file"
MIRROR_SIZE = 100 * 10**9  # bytes
_OBJECTS = ("s3", "gs", "memory")
_HALF_A_URL = re.compile(r"(s3|gs|https?|memory|file):/", re.IGNORECASE)
_WEB = ("http", "https")
_NEEDS = {"s3": "obstore", "gs": "obstore", "memory": "obstore", "http": "urllib3", "https": "urllib3"}


@dataclass(frozen=True)
class MirroredURL:
    """The URL of a cache, and the folder where copies of what is read there are kept.

    Parameters
    ----------
    url : str
    mirror : str
        A folder of this machine, as a whole path.
    size : int
        Bytes of shards that the folder may hold.
    """

    url: str
    mirror: str
    size: int = MIRROR_SIZE

    def __str__(self) -> str:
        return self.url


Root = str | os.PathLike[str] | MirroredURL


def mirrored(cache: Root, mirror: str | os.PathLike[str] | None, size: int | None = None) -> Root:
    """Return a cache together with its mirror; without one the cache itself.

    Raises
    ------
    RequestError
        The cache is a folder, the mirror is none, or the size leaves room for nothing.
    """
    if mirror is None or isinstance(cache, MirroredURL):
        if size is not None and mirror is None:
            raise RequestError(
                "A size of the mirror was given, and no mirror: name its folder with --mirror."
            )
        return cache
    if not is_url(cache) or urlsplit(str(cache)).scheme.lower() == LOCAL:
        raise RequestError(
            f"A mirror is for a URL, such as s3:// or https://, and the cache is the folder {str(cache)!r}. Leave "
            "--mirror out."
        )
    if is_url(mirror) or os.path.isfile(mirror):
        raise RequestError(f"The mirror {shown_url(str(mirror))!r} must be a folder of this machine.")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise RequestError(f"The size of the mirror is a number of bytes from 1, got {size!r}.")
    return MirroredURL(str(cache), os.path.abspath(mirror), MIRROR_SIZE if size is None else size)


def absolute(cache: Root) -> str | MirroredURL:
    """Return a cache as it is found from any folder: a folder's whole path, a URL as it is."""
    if isinstance(cache, MirroredURL):
        return cache
    return str(cache) if is_url(cache) else os.path.abspath(cache)


def require_shared(cache: Root, option: str) -> None:
    """Raise `RequestError` where other processes would see another cache than we do."""
    if urlsplit(str(cache)).scheme.lower() == "memory":
        raise RequestError(
            f"{cache} is in the memory of one process, and {option} has others use it. Leave {option} out, or name a "
            "cache that all of them see."
        )


def is_url(text: Root) -> bool:
    """Whether a cache is named by a URL, and not as a folder."""
    return "://" in str(text)


def shown_url(url: str) -> str:
    """Return a URL without user, password, query and fragment, as it may be shown and recorded."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    host, slash, path = rest.split("?", 1)[0].split("#", 1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}".rstrip("/")


def locate(root: Root) -> Location:
    """Return the place that a folder or a URL names, with a mirror before it where that is asked for.

    Raises
    ------
    RequestError
        A scheme that is not known, or a URL with credentials, a query or a fragment.
    MissingDependency
        The extra ``remote`` is not installed.
    """
    if isinstance(root, MirroredURL):
        return _behind_mirror(root)
    text = os.fspath(root)
    if not is_url(text):
        if _HALF_A_URL.match(text):
            raise RequestError(
                f"{text!r} looks like a URL, but has one slash where two belong: {text.replace(':/', '://', 1)}."
            )
        return Folder(Path(text))
    _check(text)
    scheme = urlsplit(text).scheme.lower()
    if scheme == LOCAL:
        return Folder(Path(unquote(urlsplit(text).path)))
    return _remote(scheme, text.rstrip("/"))


def _check(url: str) -> None:
    parts, shown = urlsplit(url), shown_url(url)
    scheme = parts.scheme.lower()
    if "::" in url or scheme not in (LOCAL, *_OBJECTS, *_WEB):
        known = ", ".join(f"{name}://" for name in (*_OBJECTS[:2], *_WEB, _OBJECTS[2], LOCAL))
        raise RequestError(
            f"A cache cannot be at {shown!r}. Name a folder, or a URL that begins with {known}."
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise RequestError(
            f"The URL of a cache has no user, password, query or fragment, got one with {shown!r}. Credentials come "
            "from where their tools keep them: AWS_* and GOOGLE_* variables, profiles, ~/.netrc for http."
        )
    if scheme == LOCAL and parts.netloc not in ("", "localhost"):
        raise RequestError(f"{shown!r} names the host {parts.netloc!r}; write file:///FOLDER.")
    if scheme not in (LOCAL, "memory") and not parts.netloc:
        raise RequestError(f"{shown!r} names no bucket or host, such as s3://BUCKET/FOLDER.")
    if any(part in (".", "..") for part in unquote(parts.path).split("/")):
        raise RequestError(f"{shown!r} has a part '.' or '..'; name the folder itself.")


@lru_cache(maxsize=64)
def _behind_mirror(root: MirroredURL) -> Location:
    from featpipe.store.location._mirror import Mirrored

    return Mirrored(locate(root.url), root)


@lru_cache(maxsize=64)  # connections are kept, and what is in memory stays there
def _remote(scheme: str, url: str) -> Location:
    if importlib.util.find_spec(_NEEDS[scheme]) is None:
        raise MissingDependency(f"A cache at {url} needs {_NEEDS[scheme]}: pip install 'featpipe[remote]'.")
    if scheme in _WEB:
        from featpipe.store.location._web import Web

        return Web(url)
    from featpipe.store.location._objects import Objects

    return Objects(url)
