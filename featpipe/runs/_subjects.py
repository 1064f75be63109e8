"""Runs of several subjects: which run predicts which vertices of whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featpipe.datasets import algonauts2023_vertices, subjects_of
from featpipe.errors import RecipeError
from featpipe.runs._folder import RunFolder


@dataclass(frozen=True)
class SubjectRun:
    """A run that predicts all vertices of one subject of the 2023 challenge.

    Parameters
    ----------
    subject : str
    run : RunFolder
        Of this subject, or of several joined.
    columns : slice
        The subject's among the run's targets, left hemisphere first.
    n_vertices : dict of str to int
        By hemisphere.
    """

    subject: str
    run: RunFolder
    columns: slice
    n_vertices: dict[str, int]


def runs_by_subject(runs: Sequence[str], data: str) -> dict[str, SubjectRun]:
    """Return the run of each subject of the 2023 challenge.

    Parameters
    ----------
    runs : sequence of str
        Run folders, or folders that hold them, as ``fit --subject all`` leaves them.
    data : str
        ``algonauts2023:DIR``, which says how many vertices there are.

    Returns
    -------
    dict of str to SubjectRun
        In the order of the subjects.

    Raises
    ------
    RecipeError
        A run is of RDMs, of other data, of some targets only, or of a subject that another run is of as well.
    """
    known = subjects_of(data)
    found: dict[str, SubjectRun] = {}
    for path in run_folders(runs):
        for part in _parts(RunFolder.open(path), data, known):
            if part.subject in found:
                raise RecipeError(
                    f"{found[part.subject].run.path} and {part.run.path} are both of {part.subject}. Give one run a "
                    "subject."
                )
            found[part.subject] = part
    return {name: found[name] for name in known if name in found}


def run_folders(paths: Sequence[str]) -> list[str]:
    """Return run folders, those inside in place of a folder that only holds runs."""
    found: list[str] = []
    for path in paths:
        inside = sorted(str(file.parent) for file in Path(path).glob("*/summary.json"))
        found += [path] if is_finished(path) or not inside else inside
    return found


def is_finished(path: str | Path) -> bool:
    """Whether a folder holds a run that came to its end."""
    return (Path(path) / "summary.json").is_file()


def _parts(run: RunFolder, data: str, known: Sequence[str]) -> list[SubjectRun]:
    record = run.read_json("run.json")["data"]
    subjects = str(record.get("subject") or "").split(",")
    if run.kind == "rdms" or not set(subjects) <= set(known):
        came = "predicts RDMs" if run.kind == "rdms" else f"is of {record.get('subject') or 'no subject'}"
        raise RecipeError(f"{run.path} {came}; {data!r} has responses of {', '.join(known)}.")
    parts: list[SubjectRun] = []
    names: list[str] = []
    for subject in subjects:
        counts = algonauts2023_vertices(data.partition(":")[2], subject=subject)
        start, total = len(names), sum(counts.values())
        prefix = f"{subject}." if len(subjects) > 1 else ""
        names += [f"{prefix}{number}" for number in range(total)]
        parts.append(SubjectRun(subject, run, slice(start, start + total), counts))
    if run.target_names() != names:
        of = f" ({record['target']})" if record.get("target") else ""
        raise RecipeError(
            f"{run.path} predicts {len(run.target_names())} targets{of} of {', '.join(subjects)}, which has "
            f"{len(names)} vertices. Fit a run without --target, so that it predicts all of them."
        )
    return parts
