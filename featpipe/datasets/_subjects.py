"""Which subject is meant: ``1``, ``01`` and ``subj01`` are one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from featpipe.errors import DatasetError


def pick_subject(there: Sequence[str], subject: str | int | None, where: str) -> str:
    """Return the name among ``there`` that ``subject`` means; None is enough when there is only one.

    Raises
    ------
    DatasetError
        When there are several and none is chosen, or the chosen one is not there.
    """
    if subject is None and len(there) == 1:
        return there[0]
    if subject is None:
        raise DatasetError(f"{where} has {len(there)} subjects, {', '.join(there)}: choose one (--subject).")
    if (text := str(subject)) in there:
        return text
    matches = [name for name in there if _number(name) == _number(text) is not None]
    if len(matches) != 1:
        raise DatasetError(f"{where} has no subject {text!r}, only {', '.join(there)}.")
    return matches[0]


def _number(name: str) -> int | None:
    digits = re.search(r"(\d+)\D*$", name)
    return int(digits[1]) if digits else None
