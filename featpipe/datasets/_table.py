r"""Bring your own recordings: ``table:DIR`` or ``table:dataset.toml``.

A folder without ``dataset.toml`` is read as it lies there::

    stimuli/ or stimuli.zip   images; their natural order (image_2 before image_10) is the order of rows
    responses.npy             (n, targets) or (n, targets, repeats)
    targets.csv               optional, a row per target
    splits.csv                optional, a row per stimulus

A ``dataset.toml`` says more. Paths are absolute or relative to it; unknown keys are errors::

    name = "my recordings"            # optional
    stimuli = "images.zip"            # any source of images that `featpipe extract --images` takes
    ids = "trials.csv:image"          # CSV column with the stimulus id of each response row, or instead:
    # rows = "sorted"                 # rows follow the ids of the stimuli in natural order
    responses = "responses.npy"       # (n, targets[, repeats]); NaN marks a missing trial
    targets = "targets.csv"           # a row per target; columns may be anything, see below
    splits = "splits.csv"             # columns id, and of these some: split, group, n_repeats

    [noise_ceiling]                   # only if it is not a column of targets in fractions of variance
    file = "ceiling.npy"              # (targets,); without it the column noise_ceiling is meant
    unit = "percent"                  # or "fraction", the default
    of = "r"                          # ceilings of the correlation, squared on reading; default "r2"

``ids``, ``responses``, ``targets`` and ``splits`` may be a table per subject (``--subject`` chooses)::

    [responses]
    subj01 = "subj01.npy"
    subj02 = "subj02.h5:betas"

Numbers come from ``.npy``, ``.npz[:NAME]``, ``.csv`` (a header; a column ``id`` is left out), ``.nc[:NAME]``
(needs the extra ``netcdf``) or ``.h5:DATASET``. Pickles are never loaded.

RDMs are given instead of responses, targets and ceilings. Rows and columns are joined to images as rows of
responses are, by ``ids`` or ``rows``; an array ``ids`` beside them in the file, as `featpipe.rsa.save_rdms` writes
it, says what the rows are and needs neither::

    rdms = "rdms.npz"                 # .npz, .mat or .npy, of which :NAME chooses one array

    [rdms]                            # or one entry per target
    EVC = "fmri.mat:EVC_RDMs"         # (n_subjects, n, n), (n_subjects, n_times, n, n) or (n, n)
    IT = "fmri.mat:IT_RDMs"           # NaN marks a pair that was not measured

A folder without ``dataset.toml`` may have ``rdms.npz``, ``rdms.mat`` or ``rdms.npy`` in place of the responses.
Images in folders have ids such as ``faces/01``, and what stands before the ``/`` is a stimulus set: RDMs are
scored within each set.

In ``targets.csv`` the columns ``hemisphere`` (lh, rh) and ``roi`` make the groups of the report, such as
``lh.V1v``; ``noise_ceiling`` is the fraction of variance that can be explained, ``time``, ``x``, ``y``, ``z``
and ``vertex`` are numbers, every other column is text and can be a group. With one file of responses for
several subjects side by side, a column ``subject`` lets ``--subject`` choose among the targets.

In ``splits.csv`` every response row needs a row by ``id``. ``split`` is train, test or another name, and
makes train and test the default evaluation; folds keep a ``group`` together; ``n_repeats`` becomes the
weight of a row. Repeats as a third axis are averaged without those that are NaN, and give no weights by
themselves.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from featpipe.datasets._arrays import read_array, read_table
from featpipe.datasets._checks import as_float32, checked_ceiling
from featpipe.datasets._dataset import Dataset
from featpipe.datasets._description import TableDescription, describe
from featpipe.datasets._rdm_dataset import RDMDataset
from featpipe.datasets._rdm_table import load_rdm_table
from featpipe.datasets._regions import default_masks
from featpipe.datasets._rows import row_ids
from featpipe.datasets._splits import split_rows
from featpipe.datasets._subjects import pick_subject
from featpipe.errors import DatasetError
from featpipe.stimuli import StimulusSet


def load_table(place: str, *, subject: str | int | None = None) -> Dataset | RDMDataset:
    """Read ``table:PLACE``; the docstring of this module says what is there to be read.

    Raises
    ------
    DatasetError
        When files are missing, of the wrong kind or do not fit together.
    """
    description = describe(place)
    if description.rdms is not None:
        return load_rdm_table(description, _stimuli(description), subject=subject)
    paths, chosen = description.of_subject(subject)
    stimuli = _stimuli(description)
    responses, columns = read_array(paths["responses"], description.base)
    means, repeats = _averaged(responses)
    ids = row_ids(stimuli, paths.get("ids"), paths["responses"], description.base, len(means))
    targets = _targets(paths.get("targets"), columns, means.shape[1], description)
    rows = split_rows(paths.get("splits"), ids, description.base)
    needed = set(ids)
    if len(needed) < len(stimuli) and needed <= set(stimuli.ids):
        stimuli = stimuli.select([i for i in stimuli.ids if i in needed])
    dataset = Dataset(
        description.name, stimuli, np.asarray(ids), means, targets, repeats,
        masks=default_masks(targets), subject=chosen, **rows,
    )  # fmt: skip
    return dataset if chosen or subject is None else _one_subject(dataset, subject)


def load_table_stimuli(place: str) -> StimulusSet:
    """Open only the images of ``table:PLACE``."""
    return _stimuli(describe(place))


def _stimuli(description: TableDescription) -> StimulusSet:
    return StimulusSet.from_source(str(description.base / description.stimuli))


def _averaged(responses: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Average over repeats, leaving out NaN: (n, targets) and, if there were any, the repeats."""
    if responses.ndim not in (2, 3):
        raise DatasetError(
            f"Responses have shape {responses.shape}; (n_stimuli, n_targets) is needed, or "
            "(n_stimuli, n_targets, n_repeats)."
        )
    if responses.ndim == 2:
        return responses, None
    repeats = as_float32(responses, "responses")
    measured = ~np.isnan(repeats)
    counts = measured.sum(axis=2)
    totals = np.where(measured, repeats, 0).sum(axis=2, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # never shown: 0 / 0 is the NaN that is meant
        return (totals / counts).astype(np.float32), repeats


def _targets(
    path: str | None, columns: list[str] | None, n_targets: int, description: TableDescription
) -> pd.DataFrame:
    targets = pd.DataFrame(index=range(n_targets))
    if path is not None:
        targets = read_table(path, description.base)
    elif columns is not None:
        targets["name"] = columns
    said = description.noise_ceiling
    if not said:
        return targets
    if "file" in said:
        ceiling = np.asarray(read_array(said["file"], description.base)[0]).ravel()
        if len(ceiling) != len(targets):
            raise DatasetError(f"{said['file']!r} holds {len(ceiling)} ceilings for {len(targets)} targets.")
        targets["noise_ceiling"] = ceiling
    if "noise_ceiling" not in targets:
        raise DatasetError(
            "The table [noise_ceiling] names no file, and the targets have no column noise_ceiling."
        )
    values = targets["noise_ceiling"].to_numpy()
    targets["noise_ceiling"] = checked_ceiling(
        values, unit=said.get("unit", "fraction"), of=said.get("of", "r2")
    )
    return targets


def _one_subject(dataset: Dataset, subject: str | int) -> Dataset:
    if "subject" not in dataset.targets:
        raise DatasetError(
            f"Dataset {dataset.name!r} does not tell subjects apart, so {str(subject)!r} cannot be "
            "chosen: give responses per subject, or a column subject in the table of targets."
        )
    labels = dataset.targets["subject"].astype(str)
    chosen = pick_subject(list(dict.fromkeys(labels)), subject, f"Dataset {dataset.name!r}")
    selected = dataset.select_targets((labels == chosen).to_numpy())
    object.__setattr__(selected, "subject", chosen)
    return selected
