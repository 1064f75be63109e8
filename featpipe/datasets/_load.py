"""``DATA`` as written on the command line: ``KIND:PLACE``."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from featpipe.datasets._algonauts2019 import load_algonauts2019, load_algonauts2019_stimuli
from featpipe.datasets._algonauts2023 import (
    algonauts2023_subjects,
    load_algonauts2023,
    load_algonauts2023_stimuli,
)
from featpipe.datasets._dataset import Dataset
from featpipe.datasets._description import describe
from featpipe.datasets._kinds import EVERYONE, KINDS, is_data
from featpipe.datasets._rdm_dataset import RDMDataset
from featpipe.datasets._subjects import Subjects, several
from featpipe.datasets._synthetic import load_synthetic, load_synthetic_stimuli
from featpipe.datasets._table import load_table, load_table_stimuli
from featpipe.errors import DatasetError
from featpipe.stimuli import StimulusSet


def load_dataset(
    data: str,
    *,
    subject: Subjects = None,
    target: str | None = None,
    split: str | None = None,
    surface: str | Mapping[str, str] | None = None,
) -> Dataset | RDMDataset:
    """Read recordings.

    Parameters
    ----------
    data : str
        ``table:DIR``, ``table:dataset.toml``, ``algonauts2019:DIR``, ``algonauts2023:DIR`` or
        ``synthetic:n=200,targets=40``.
    subject : str, int or sequence of them, optional
        Needed where the data hold several; of RDMs all subjects are read by default. Several subjects of
        ``algonauts2023:``, as ``[1, 2]``, ``"1,2"`` or ``"all"``, are joined into one dataset over all their images.
    target : str, optional
        Keep one named group of targets, such as ``lh.V1v`` or ``rh``, or the RDMs of one target, such as ``EVC``.
    split : str, optional
        ``train`` or ``test``. None is all rows, in ``algonauts2019:`` and ``algonauts2023:`` those of the
        training split.
    surface : str or mapping, optional
        ``lh=FILE,rh=FILE``, surfaces of fsaverage: the targets of ``algonauts2023:`` then have positions x, y, z.

    Returns
    -------
    Dataset or RDMDataset
        The latter of data whose targets are dissimilarities.

    Raises
    ------
    DatasetError
        When the data are not there, not readable or do not fit together.
    """
    kind, place = parse_data(data)
    if kind == "algonauts2023":
        return load_algonauts2023(
            place, subject=subject, target=target, split=split or "train", surface=surface
        )
    if surface is not None:
        raise DatasetError(
            f"--surface goes with algonauts2023:, not {kind}:. Of other data give columns x, y, z of the targets."
        )
    single = _single(subject, kind)
    if kind == "algonauts2019":
        return load_algonauts2019(place, subject=single, target=target, split=split)
    dataset: Dataset | RDMDataset
    dataset = load_table(place, subject=single) if kind == "table" else load_synthetic(place)
    dataset = dataset if split is None else dataset.select_split(split)
    return dataset if target is None else dataset.select_target(target)


def subjects_of(data: str) -> list[str]:
    """Return the names of the subjects that some data hold, each of which `load_dataset` can read by itself.

    Raises
    ------
    DatasetError
        The data do not tell subjects apart.
    """
    kind, place = parse_data(data)
    names: list[str] = []
    if kind == "algonauts2023":
        names = algonauts2023_subjects(place)
    elif kind == "table":
        names = describe(place).subjects
    if not names:
        raise DatasetError(
            f"{data!r} holds no several subjects to go through one by one; leave --subject all out. A folder "
            "algonauts2023:DIR does, and a table whose dataset.toml has responses per subject."
        )
    return names


def load_stimuli(data: str, *, subject: Subjects = None, split: str | None = None) -> StimulusSet:
    """Open the images of some data and leave the responses alone; arguments as in `load_dataset`."""
    kind, place = parse_data(data)
    if kind == "algonauts2019":
        return load_algonauts2019_stimuli(place, split=split)
    if kind == "algonauts2023":
        return load_algonauts2023_stimuli(place, subject=subject, split=split or "train")
    stimuli = load_table_stimuli(place) if kind == "table" else load_synthetic_stimuli(place)
    if split is None:
        return stimuli
    return stimuli.select(load_dataset(data, subject=subject, split=split).ids.tolist())


def _single(subject: Subjects, kind: str) -> str | int | None:
    """Return the one subject that is named; only the challenge of 2023 has subjects that can be joined."""
    named = several(subject)
    if isinstance(subject, str | int | None) and subject != EVERYONE:
        return subject
    if len(named) == 1 and subject != EVERYONE:
        return named[0]
    raise DatasetError(
        f"Subjects {subject!r} of {kind}: cannot be joined into one dataset; those of algonauts2023: can. Choose one."
    )


def parse_data(data: str) -> tuple[str, str]:
    """Split ``KIND:PLACE``; raises `DatasetError` for an unknown kind."""
    kind, colon, place = data.partition(":")
    if is_data(data):
        if not place and kind != "synthetic":
            raise DatasetError(f"{data!r} names no folder: write {kind}:DIR.")
        return kind, place
    if Path(data).exists():
        hint = f"to read what lies at that path write table:{data} or algonauts2023:{data}."
    else:
        close = get_close_matches(kind, KINDS, 1) if colon else []
        hint = f"did you mean {close[0]}:{place}?" if close else f"KIND is one of {', '.join(KINDS)}."
    raise DatasetError(f"Data {data!r} are not of the form KIND:PLACE; {hint}")
