"""Which subjects are meant: ``1``, ``01`` and ``subj01`` are one; ``1,2`` are two, and ``all`` is everyone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from featpipe.datasets._kinds import EVERYONE
from featpipe.errors import DatasetError

Subjects = str | int | Sequence[str | int] | None


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


def pick_subjects(there: Sequence[str], subject: Subjects, where: str) -> list[str]:
    """Return the names among ``there`` that ``subject`` means, in the order of ``there``.

    Parameters
    ----------
    there : sequence of str
    subject : str, int or sequence of them, optional
        As for `pick_subject`, several also as ``1,2``, or ``all``.
    where : str
        What has these subjects, for messages.

    Raises
    ------
    DatasetError
        As in `pick_subject`.
    """
    if subject == EVERYONE:
        return list(there)
    asked = several(subject)
    if not asked:
        raise DatasetError(f"No subject of {where} is chosen; there are {', '.join(there)}.")
    chosen = {pick_subject(there, one, where) for one in asked}
    return [name for name in there if name in chosen]


def several(subject: Subjects) -> list[str | int | None]:
    """Return each subject that is named; a list with None where none is."""
    if isinstance(subject, str):
        return list(subject.split(","))
    return list(subject) if isinstance(subject, Sequence) else [subject]


def _number(name: str) -> int | None:
    digits = re.search(r"(\d+)\D*$", name)
    return int(digits[1]) if digits else None
