"""Ages and sizes as people write them on the command line."""

from __future__ import annotations

import re
from datetime import timedelta

from featpipe.errors import RequestError

_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BYTES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_LONGEST = 10**10  # seconds: three centuries


def parse_age(option: str, text: str) -> timedelta:
    """Read ``7d``; raises `RequestError` naming the option."""
    number, unit = _parts(text)
    if number is None or unit not in _SECONDS or number * _SECONDS[unit] > _LONGEST:
        raise RequestError(
            f"{option} {text!r} is no age. Write a number with h, d or w, such as 12h, 7d or 2w."
        )
    return timedelta(seconds=number * _SECONDS[unit])


def parse_size(option: str, text: str) -> int:
    """Read ``10MB``; raises `RequestError` naming the option."""
    number, unit = _parts(text)
    if number is None or unit.lower() not in _BYTES:
        raise RequestError(
            f"{option} {text!r} is no size. Write a number of bytes, or with kB, MB, GB or TB, such as 10MB."
        )
    return round(number * _BYTES[unit.lower()])


def _parts(text: str) -> tuple[float | None, str]:
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]*)", text.strip())
    return (float(found[1]), found[2]) if found else (None, "")
