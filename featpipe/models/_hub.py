"""Pretrained weights on this disk or, where there is a network, from their hubs.

A file that is already in a hub's cache is used as it is, without asking the hub. The library of a hub
would retry for half a minute without a network, so one quick look comes first.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from featpipe.errors import WeightsUnavailable

_PATIENCE_SECONDS = 5.0


def hub_file(repository: str, names: Sequence[str], revision: str | None = None) -> list[Path]:
    """Return the first of these files that a Hugging Face repository has, and what pins its version.

    Raises
    ------
    WeightsUnavailable
        When the cache lacks all of them and they cannot be downloaded.
    """
    revision = revision or "main"
    for name in names:
        if found := _cached_hub_file(repository, name, revision):
            return found
    _download_from_hub(repository, names, revision)
    for name in names:
        if found := _cached_hub_file(repository, name, revision):
            return found
    raise unavailable(f"{repository} on the Hugging Face hub", _hub_cache(), f"it has none of {list(names)}")


def url_file(url: str) -> list[Path]:
    """Return a file of torch's own hub cache, downloaded if needed.

    Raises
    ------
    WeightsUnavailable
        When the cache lacks it and it cannot be downloaded.
    """
    import torch

    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not target.is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _look(url)
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except OSError as error:
            raise unavailable(url, target.parent, str(error)) from error
    return [target]


def unavailable(what: str, cache: Path, why: str) -> WeightsUnavailable:
    """Return the error that names the three ways out."""
    return WeightsUnavailable(
        f"The pretrained weights, {what}, are not in {cache} and cannot be downloaded ({why}). "
        "Three ways out: (1) run the same command once on a machine with network and copy that folder here; "
        "(2) pass --weights FILE with weights from elsewhere; "
        "(3) pass --weights random:SEED if an untrained network is what you want."
    )


def _hub_cache() -> Path:
    """Return the folder that huggingface_hub uses, read from the environment as it is now."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{user}/huggingface").expanduser() / "hub"


def _cached_hub_file(repository: str, name: str, revision: str) -> list[Path]:
    folder = _hub_cache() / f"models--{repository.replace('/', '--')}"
    pointer = folder / "refs" / revision
    commit = pointer.read_text().strip() if pointer.is_file() else revision
    file = folder / "snapshots" / commit / name
    return [file, *([pointer] if pointer.is_file() else [])] if file.is_file() else []


def _download_from_hub(repository: str, names: Sequence[str], revision: str) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    what = f"{repository} on the Hugging Face hub"
    cache = _hub_cache()
    try:
        _look(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    except OSError as error:
        raise unavailable(what, cache, str(error)) from error
    for name in names:
        try:
            hf_hub_download(repository, name, revision=revision, cache_dir=cache)
            return
        except LocalEntryNotFoundError as error:
            raise unavailable(what, cache, str(error)) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise unavailable(what, cache, str(error)) from error


def _look(url: str) -> None:
    """Raise `OSError` at once when a host cannot be reached, through a proxy if there is one."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise OSError("HF_HUB_OFFLINE is set")
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PATIENCE_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()  # it answered
