"""Runs that predict the same responses, compared with a control: what tuning gains, by group of regions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featpipe.datasets import REGIONS, region_order
from featpipe.errors import RequestError
from featpipe.model_selection import Gain, drawn_means, gain_of
from featpipe.runs._folder import RunFolder
from featpipe.runs._held_out import HeldOutResponses, read_held_out
from featpipe.runs._subjects import run_folders

ALL = "all targets"
EARLY, HIGHER, ANATOMICAL = "early visual", "higher level", "anatomical"
_EARLY = re.compile(r"(?:EVC|h?V[1-4][vdAB]?)", re.IGNORECASE)
_HIGHER = {
    *(name.lower() for kind in ("bodies", "faces", "places", "words") for name in REGIONS[f"floc-{kind}"]),
    *("fba", "ffa", "vwfa", "ppa", "opa", "rsc"),
}
_STREAMS = {name.lower() for name in REGIONS["streams"]}


@dataclass(frozen=True)
class GainRow:
    """One line of the comparison."""

    run: str
    group: str
    gain: Gain


@dataclass(frozen=True, eq=False)
class _Part:
    """One run of one subject: scores by target, in the order of the targets."""

    run: RunFolder
    record: Mapping[str, Any]
    r: np.ndarray
    groups: list[str]
    held_out: HeldOutResponses | None


def compare_runs(
    runs: Sequence[str], *, tolerance: float = 0.01, n_draws: int = 1000, level: float = 0.95, seed: int = 0
) -> list[GainRow]:
    """Compare runs with the first of them, the control, target by target.

    Groups are those of the report where the data have their regions: early visual (V1 to hV4), higher level
    (body, face, place and word regions) and anatomical (streams); then every group of the data, then all targets.

    Parameters
    ----------
    runs : sequence of str
        Run folders, or folders of one run a subject; the control first, such as the untuned network.
    tolerance, n_draws, level, seed
        See `gain_of`.

    Returns
    -------
    list of GainRow
        Runs in their order, groups inside.

    Raises
    ------
    RequestError
        Runs that predict RDMs, or other responses, or were scored on other stimuli or in other folds.

    References
    ----------
    Mulrooney & Brockmeier (2023), "Linear encoding models" and "Subject-Specific Results".
    """
    if len(runs) < 2:
        raise RequestError(
            f"Give at least two runs, the control first; there is {', '.join(runs) or 'none'}."
        )
    parts = [[_read(path) for path in run_folders([run])] for run in runs]
    for run, others in zip(runs[1:], parts[1:], strict=True):
        _refuse_other_work(runs[0], run, parts[0], others)
    masks = _masks([group for part in parts[0] for group in part.groups])
    control = np.concatenate([part.r for part in parts[0]])
    how: dict[str, Any] = {"n_draws": n_draws, "seed": seed}
    before = _drawn(parts[0], masks, **how)
    rows = []
    for run, others in zip(runs[1:], parts[1:], strict=True):
        r = np.concatenate([part.r for part in others])
        after = None if before is None else _drawn(others, masks, **how)
        for name, mask in masks.items():
            drawn = None if before is None or after is None else after[name] - before[name]
            gain = gain_of(control[mask], r[mask], tolerance=tolerance, level=level, drawn=drawn, **how)
            rows.append(GainRow(run, name, gain))
    return rows


def gains_table(rows: Sequence[GainRow]) -> pd.DataFrame:
    """Return a row per run and group, with columns of numbers: intervals as ``…_low`` and ``…_high``."""
    return pd.DataFrame([{"run": row.run, "group": row.group, **dict(_flat(row.gain))} for row in rows])


def _flat(gain: Gain) -> Iterator[tuple[str, Any]]:
    for name, value in asdict(gain).items():
        if name in ("over_targets", "over_stimuli", "improved_interval"):
            low, high = value or (np.nan, np.nan)
            yield from ((f"{name}_low", low), (f"{name}_high", high))
        else:
            yield name, value


def _read(path: str) -> _Part:
    run = RunFolder.open(path)
    record = run.read_json("run.json")
    if run.kind != "responses":
        raise RequestError(
            f"{path} predicts RDMs. `featpipe compare-runs` is for runs that predict responses; scores of RDMs stand "
            "in its summary.json, with their chance levels."
        )
    table = _targets(run.path)
    return _Part(run, record, table["r"].to_numpy(), table["group"].tolist(), read_held_out(run))


def _targets(path: Path) -> pd.DataFrame:
    """Return r, the mean over folds, and the groups of each target in the order of the targets."""
    try:
        scores = pd.read_csv(path / "scores.csv", keep_default_na=False, na_values={"value": ["", "nan"]})
        scores = scores[scores["metric"] == "pearson_r"].assign(
            place=lambda t: t.groupby("fold").cumcount()  # targets may share a name
        )
        found = scores.groupby("place").agg(r=("value", "mean"), group=("group", "first"))
    except (OSError, KeyError, ValueError) as error:
        raise RequestError(
            f"{path / 'scores.csv'} cannot be read ({error}); the run folder is damaged."
        ) from error
    if not len(found):
        raise RequestError(f"{path} was not scored by pearson_r; fit it with a recipe whose scoring has it.")
    return found


def _refuse_other_work(control: str, run: str, ours: Sequence[_Part], theirs: Sequence[_Part]) -> None:
    """Refuse a run whose scores are not of the same targets, stimuli and folds as the control's."""
    differs = "subjects" if len(ours) != len(theirs) else ""
    for one, other in zip(ours, theirs, strict=False):
        same = {
            "targets": one.record["targets"] == other.record["targets"] and one.groups == other.groups,
            "subjects": one.record["data"].get("subject") == other.record["data"].get("subject"),
            "stimuli": one.record["data"]["stimuli"] == other.record["data"]["stimuli"],
            "folds": one.record["folds"] == other.record["folds"],
            "responses": _measured_alike(one.held_out, other.held_out),
        }
        differs = differs or next((name for name, equal in same.items() if not equal), "")
    if differs:
        raise RequestError(
            f"{run} and the control {control} differ in their {differs}, so that a gain would be no gain. Compare runs "
            "that were fitted with the same --data, --subject, --target and --cv."
        )


def _measured_alike(one: HeldOutResponses | None, other: HeldOutResponses | None) -> bool:
    """Whether two runs were scored on equal responses, as far as they keep them."""
    return one is None or other is None or np.array_equal(one.measured, other.measured, equal_nan=True)


def _drawn(
    parts: Sequence[_Part], masks: Mapping[str, np.ndarray], **how: Any
) -> dict[str, np.ndarray] | None:
    """Return the mean r of each group under draws of the stimuli, of all subjects together."""
    sums: dict[str, Any] = dict.fromkeys(masks, 0.0)
    counts = dict.fromkeys(masks, 0)
    first = 0
    for part in parts:
        if part.held_out is None:
            return None
        own = {name: mask[first : first + len(part.r)] for name, mask in masks.items()}
        first += len(part.r)
        kept = part.held_out
        means = drawn_means(kept.measured, kept.predicted, kept.folds, masks=own, groups=kept.group, **how)
        for name, draws in means.items():
            count = int((own[name] & np.isfinite(part.r)).sum())
            sums[name], counts[name] = sums[name] + count * draws, counts[name] + count
    return {name: sums[name] / max(counts[name], 1) for name in masks}


def _masks(groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the report's groups that the data have, each group of the data, and all targets."""
    members = [text.split(";") if text else [] for text in groups]
    names = region_order(dict.fromkeys(name for each in members for name in each))
    kinds = {kind: [name for name in names if kind_of(name) == kind] for kind in (EARLY, HIGHER, ANATOMICAL)}
    wanted = {**{kind: own for kind, own in kinds.items() if own}, **{name: [name] for name in names}}
    masks = {
        name: np.array([not set(own).isdisjoint(each) for each in members]) for name, own in wanted.items()
    }
    return {**masks, ALL: np.ones(len(groups), dtype=bool)}


def kind_of(group: str) -> str | None:
    """Return which groups of regions of the report a group such as ``lh.FFA-1`` belongs to, if to any."""
    region = group.rpartition(".")[2].lower()
    if _EARLY.fullmatch(region):
        return EARLY
    return HIGHER if region in _HIGHER else ANATOMICAL if region in _STREAMS else None
