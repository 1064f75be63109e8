"""A cache in an object store: S3 and what speaks like it, Google's, or the memory of this process."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore import exceptions
from obstore.store import GCSStore, MemoryStore, S3Store

from featpipe.errors import CacheUnreachable, CacheWriteError, MissingDependency, RequestError
from featpipe.store.location._location import PART, Buffers, StoredFile
from featpipe.store.location._patient import ATTEMPTS, PatientLocation
from featpipe.store.location._ranges import RangedFile

_FIRST_WAIT = 0.2  # seconds; doubled each time
_STREAM = 8 << 20  # bytes
_REFUSED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
_FAILED = (*_REFUSED, exceptions.GenericError, exceptions.JoinError, OSError)
_PATIENCE = 15.0  # seconds after which a server that gives no answer is not asked again
# What is slow is waited for, what is silent is not.
_RETRY = {"max_retries": 3, "retry_timeout": timedelta(seconds=_PATIENCE)}
_CLIENT = {
    "timeout": timedelta(minutes=30),
    "read_timeout": timedelta(seconds=20),
    "connect_timeout": timedelta(seconds=5),
}
_METADATA = re.compile(r"169\.254\.(169\.254|170\.2)|metadata\.google\.internal|\[?fd00:ec2::254\]?")


class Objects(PatientLocation):
    """A cache below a prefix of a bucket; credentials come from the environment, and are kept nowhere else.

    Parameters
    ----------
    url : str
        ``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX`` or ``memory://NAME/PREFIX``.
    """

    threads = 16
    failures = _FAILED

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self._prefix = parts.path.strip("/") + "/" if parts.path.strip("/") else ""
        self._store = _store(parts.scheme.lower(), parts.netloc)

    def __reduce__(self) -> tuple[Any, ...]:
        from featpipe.store.location._locate import locate

        return locate, (self.url,)  # whoever unpickles it has credentials of its own, or none

    def read(self, name: str, largest: int) -> bytes:
        """See `Location`."""
        return self._try(lambda: self._content(name, largest))

    def size(self, name: str) -> int:
        """See `Location`."""
        return int(self._try(lambda: obstore.head(self._store, self._prefix + name))["size"])

    def names(self, folder: str) -> list[str]:
        """See `Location`."""
        below = f"{self._prefix}{folder}/"
        found = self._try(lambda: obstore.list_with_delimiter(self._store, below))
        paths = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        return [path.rstrip("/").removeprefix(below) for path in paths]

    def files(self, folder: str) -> list[str]:
        """See `Location`."""
        below = f"{self._prefix}{folder}/"
        return [path.removeprefix(below) for path in self._listed(below)]

    def open(self, name: str, size: int | None = None, sha256: str | None = None) -> StoredFile:
        """See `Location`."""
        return RangedFile(self.size(name) if size is None else size, lambda spans: self._ranges(name, spans))

    def _from(self, name: str, start: int, size: int) -> Any:
        options: Any = {"range": (start, size)} if start else {}
        return obstore.get(self._store, self._prefix + name, options=options).stream(min_chunk_size=PART)

    def digest(self, name: str) -> str:
        """See `Location`."""
        return self._try(lambda: self._digest(name))

    def has_array(self, folder: str) -> bool:
        """See `Location`."""
        return self.exists(f"{folder}/spec.json")

    def require_writable(self) -> None:
        """Raise `RequestError` where objects cannot be written create-only."""
        if not self._creates:
            raise RequestError(
                f"{self.url} does not support conditional writes (If-None-Match), so two writers could overwrite each "
                "other there. It can be read; write elsewhere, and copy."
            )

    def create(self, name: str, buffers: Buffers) -> bool:
        """See `Location`."""
        self.require_writable()
        content = _joined(buffers)
        with self._writing(name):
            return self._create(name, content)

    def create_folder(self, folder: str, files: Mapping[str, bytes], *, last: str) -> bool:
        """See `Location`; a racing creator writes the same bytes."""
        for name in sorted(files, key=lambda name: name == last):
            created = self.create(f"{folder}/{name}", [files[name]])
        return created

    def replace(self, name: str, content: bytes) -> None:
        """See `Location`."""
        with self._writing(name):
            self._try(lambda: obstore.put(self._store, self._prefix + name, content))

    def replace_if(self, name: str, content: bytes, version: Any) -> bool:
        """See `Location`."""
        mode: Any = "create" if version is None else {"e_tag": version}
        with self._writing(name):
            try:
                self._try(lambda: obstore.put(self._store, self._prefix + name, content, mode=mode))
            except (exceptions.PreconditionError, exceptions.AlreadyExistsError, FileNotFoundError):
                return False
        return True

    def set_aside(self, name: str, label: str) -> str | None:
        """See `Location`."""
        place = f"aside/{label}-{secrets.token_hex(4)}"
        found = self._below(name)
        with self._writing(name):
            for path in found:
                self._copy(path, self._prefix + place + path[len(self._prefix + name) :])
            self._delete(found)
        return place if found else None

    def remove(self, name: str) -> None:
        """See `Location`; what makes it count goes first."""
        found = sorted(self._below(name), key=lambda path: (not path.endswith("/spec.json"), path))
        with self._writing(name):
            for start in range(0, len(found), 500):
                self._delete(found[start : start + 500])

    def stamp(self, name: str) -> tuple[Any, float] | None:
        """Return ETag and time of change of a file by the store's own clock; None when it is not there."""
        try:
            found = self._try(lambda: obstore.head(self._store, self._prefix + name))
        except FileNotFoundError:
            return None
        return found["e_tag"], found["last_modified"].timestamp()

    def version(self, name: str) -> Any:
        """Return the ETag of a file."""
        try:
            return self._try(lambda: obstore.head(self._store, self._prefix + name))["e_tag"]
        except FileNotFoundError:
            return None

    @cached_property
    def _creates(self) -> bool:
        """Whether a second create of one name fails, as it must: tried once, as some servers ignore the condition."""
        name = f"tmp/{secrets.token_hex(16)}"
        with self._writing(name):
            try:
                self._create(name, b"")
                twice = self._create(name, b"")
            except exceptions.NotSupportedError:
                return False
            except FileNotFoundError as error:  # the bucket
                raise self._unreachable(error) from error
            self._delete([self._prefix + name])
        return not twice

    def _copy(self, path: str, to: str) -> None:
        self._try(lambda: obstore.copy(self._store, path, to))

    def _delete(self, paths: list[str]) -> None:
        if paths:
            self._try(lambda: obstore.delete(self._store, paths))

    def _create(self, name: str, content: bytes | memoryview) -> bool:
        tried = 0

        def put() -> bool:
            nonlocal tried
            tried += 1
            try:
                obstore.put(self._store, self._prefix + name, content, mode="create", use_multipart=False)
            except exceptions.AlreadyExistsError:
                return False
            return True

        created = self._try(put)
        # An answer that was lost on the way back: what is there may be what we sent.
        return created or (tried > 1 and self.read(name, len(content)) == content)

    def _below(self, name: str) -> list[str]:
        """Return the paths of a file, or of all in a folder."""
        if self.exists(name):
            return [self._prefix + name]
        return self._listed(f"{self._prefix}{name}/")

    def _listed(self, below: str) -> list[str]:
        """Return the paths of all objects below a prefix, sorted."""
        parts = self._try(lambda: list(obstore.list(self._store, below)))
        return sorted(item["path"] for part in parts for item in part)

    def _content(self, name: str, largest: int) -> bytes:
        found = obstore.get(self._store, self._prefix + name)
        if found.meta["size"] <= largest:
            return bytes(found.bytes())
        return bytes(obstore.get_range(self._store, self._prefix + name, start=0, end=largest + 1))

    def _ranges(self, name: str, spans: list[tuple[int, int]]) -> list[Any]:
        starts, ends = zip(*spans, strict=True)
        return self._try(
            lambda: list(
                obstore.get_ranges(self._store, self._prefix + name, starts=starts, ends=ends, coalesce=0)
            )
        )

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        for part in obstore.get(self._store, self._prefix + name).stream(min_chunk_size=_STREAM):
            digest.update(part)
        return digest.hexdigest()

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except _REFUSED as error:
            raise CacheWriteError(
                f"{self.url}/{name} could not be written: {_first_line(error)}. Ask the owner of the bucket for "
                "permission, or choose another cache; what is committed stays valid."
            ) from error

    def _unreachable(self, error: BaseException) -> CacheUnreachable:
        if "NoSuchBucket" in str(error):
            return CacheUnreachable(
                f"{self.url}: there is no such bucket. Check the URL, or make the bucket first."
            )
        if _METADATA.search(str(error)):  # where a machine in the cloud would find its own
            return CacheUnreachable(f"{self.url} needs credentials, and none were found. {_CREDENTIALS}")
        return CacheUnreachable(
            f"{self.url} cannot be reached: {_first_line(error)}. Check the network and the address "
            "(AWS_ENDPOINT_URL for a server of your own); what is committed stays valid, and the same command goes on "
            "after it."
        )

    def _pause(self, error: BaseException, attempt: int, began: float) -> None:
        """Wait before the next attempt, or raise where none would help."""
        if isinstance(error, _REFUSED):
            raise CacheUnreachable(
                f"{self.url} refuses access: {_first_line(error)}. Check the credentials. {_CREDENTIALS}"
            ) from error
        if isinstance(error, FileNotFoundError | PermissionError):
            raise error
        silent = bool(_SILENT.search(str(error))) and time.monotonic() - began > _PATIENCE
        if attempt >= ATTEMPTS - 1 or silent or _is_final(error):
            raise self._unreachable(error) from error
        time.sleep(_FIRST_WAIT * 2**attempt)


def _joined(buffers: Buffers) -> bytes | memoryview:
    """Return what buffers hold together, without a copy where there is one."""
    parts = list(buffers)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _is_final(error: BaseException) -> bool:
    """Whether a server has said no, and would say it again."""
    status = re.search(r"status code: (4[0-9][0-9])", str(error))
    return status is not None and status[1] not in ("408", "425", "429")


def _first_line(error: BaseException) -> str:
    """Return what a person needs of an error: a server's own words where there are some."""
    if said := re.search(r"<Message>(.{1,300}?)</Message>", str(error)):
        return said[1].rstrip(".")
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:300]


_SILENT = re.compile(r"error sending request|timed out|error trying to connect|dns error", re.IGNORECASE)
_CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (which needs boto3); for gs:// "
    "GOOGLE_APPLICATION_CREDENTIALS; for a public bucket AWS_SKIP_SIGNATURE=true or GOOGLE_SKIP_SIGNATURE=true."
)
# Any of these and the client finds credentials by itself.
_FOUND_BY_CLIENT = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_PROFILE_FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
_MEMORIES: dict[str, MemoryStore] = {}


def _store(scheme: str, bucket: str) -> Any:
    if scheme == "memory":
        return _MEMORIES.setdefault(bucket, MemoryStore())
    options: Any = {"client_options": dict(_CLIENT), "retry_config": _RETRY}
    if scheme == "gs":
        return GCSStore(bucket, **options)
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    if endpoint.startswith("http://"):
        options["client_options"]["allow_http"] = True
    if _has_profile():
        options["credential_provider"] = _profile_credentials()
    return S3Store(bucket, **options)


def _has_profile() -> bool:
    """Whether credentials lie only in the files of the AWS tools, which the client does not read."""
    if any(os.environ.get(name) for name in _FOUND_BY_CLIENT):
        return False
    files = (os.environ.get(name) or usual for name, usual in _PROFILE_FILES.items())
    return "AWS_PROFILE" in os.environ or any(os.path.exists(os.path.expanduser(file)) for file in files)


def _profile_credentials() -> Any:
    if importlib.util.find_spec("boto3") is None:
        raise MissingDependency(
            "The credentials for s3:// lie in a profile of ~/.aws, and reading it needs boto3: pip install boto3. Or "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    from boto3 import Session
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider(Session())
    except (BotoCoreError, ValueError) as error:
        raise RequestError(f"The profile of ~/.aws gives no credentials: {error}. {_CREDENTIALS}") from error
