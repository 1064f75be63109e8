"""Which models a zoo has."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch

from featpipe.errors import RequestError
from featpipe.models import _zoo_open_clip, _zoo_timm, _zoo_torchvision


def list_models(pattern: str = "*", zoo: str | None = None) -> list[tuple[str, tuple[str, ...]]]:
    """Return (``ZOO:NAME``, tags of pretrained weights) of the models whose name matches.

    Parameters
    ----------
    pattern : str
        A glob over names; without ``*``, ``?`` or ``[`` any part of a name.
    zoo : {"timm", "open_clip", "torchvision"}, optional
        All three when left out.

    Raises
    ------
    RequestError
        For another zoo.
    """
    if zoo is not None and zoo not in _ZOOS:
        raise RequestError(f"There is no list of models for {zoo!r}; choose from {', '.join(_ZOOS)}.")
    glob = pattern if any(mark in pattern for mark in "*?[") else f"*{pattern}*"
    return [
        (f"{source}:{name}", tuple(tags_of(name)))
        for source in ([zoo] if zoo else _ZOOS)
        for names, tags_of in [_ZOOS[source]]
        for name in names()
        if fnmatch(name.lower(), glob.lower())
    ]


def _timm_names() -> list[str]:
    return list(_zoo_timm.import_timm().list_models())


def _open_clip_names() -> list[str]:
    return list(_zoo_open_clip.import_open_clip().list_models())


_ZOOS: dict[str, tuple[Callable[[], list[str]], Callable[[str], list[str]]]] = {
    "timm": (_timm_names, _zoo_timm.tags_of),
    "open_clip": (_open_clip_names, _zoo_open_clip.tags_of),
    "torchvision": (_zoo_torchvision.classification_names, _zoo_torchvision.tags_of),
}
