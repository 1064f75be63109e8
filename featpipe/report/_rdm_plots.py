"""Plots of runs on RDMs: subjects, chance beside ceilings, matrices, tuning to the stages of a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from featpipe.report._plots import INK, LEFT, RIGHT, SOFT, WIDTH, as_uri, finish
from featpipe.report._rdm_read import Matrices, TargetResult

_LARGEST = 400  # stimuli a side that are drawn one by one
_PIXELS = 640  # a side, at least: the page shows matrices at half that width, on a sharp screen at all of it
_PALE = 0.3
_WIDTHS = {"wide": WIDTH, "narrow": 4.9}  # inches; letters keep their size on a telephone
_NULLS = (("permuted stimuli", "permutation"), ("random main effects", "main_effects"))


def subjects(target: TargetResult) -> dict[str, str] | None:
    """Plot each subject's rho, their mean with its interval, and where chance puts the mean.

    Returns
    -------
    dict or None
        Data URIs for a ``wide`` and a ``narrow`` page; None where no subject has a score.
    """
    if not len(target.subjects):
        return None
    return {page: _subjects(target, width) for page, width in _WIDTHS.items()}


def chance_and_ceiling(target: TargetResult) -> dict[str, str] | None:
    """Plot R² between the chance levels and the ceilings; None without R² or chance levels."""
    known = [(name, key) for name, key in _NULLS if target.number(key, "p95") is not None]
    if target.r2 is None or not known:
        return None
    return {page: _chance_and_ceiling(target, known, width) for page, width in _WIDTHS.items()}


def stage_tuning(table: pd.DataFrame | None) -> dict[str, str] | None:
    """Plot the mean coefficient of each stage with its interval; 1 is where every coefficient began."""
    if table is None:
        return None
    return {page: _stage_tuning(table, width) for page, width in _WIDTHS.items()}


def matrices(sets: Sequence[Matrices]) -> list[dict[str, Any]]:
    """Picture measured and predicted RDMs of each stimulus set, as ranks.

    Ranks are taken among the pairs that were scored together: those of a set where it was held out whole,
    those of a fold otherwise. Other measured pairs are pale, and ranked among all pairs of the set.
    """
    return [
        {
            "name": one.name,
            "n": len(one.folds),
            "in_folds": len(np.unique(one.folds)) > 1,
            "measured": _picture(_ranks(one.measured, one.folds), pale=_ranks(one.measured, 0 * one.folds)),
            "predicted": _picture(_ranks(one.predicted, one.folds)),
        }
        for one in sets
    ]


def _subjects(target: TargetResult, width: float) -> str:
    rho = target.subjects
    rows = len(rho) + 1.2  # the mean stands apart
    figure = Figure(figsize=(width, 0.75 + 0.21 * (rows + 1)), layout="constrained")
    axes = figure.subplots()
    if (band := target.interval("permutation", "rho_interval")) is not None:
        axes.axvspan(*band, color=SOFT, alpha=0.55, linewidth=0)
    axes.plot(rho.to_numpy(), np.arange(len(rho)), "o", color=LEFT, markersize=5.5)
    _draw_mean(axes, target, rows)
    axes.set_yticks([*range(len(rho)), rows], [*map(str, rho.index), "mean"], parse_math=False)
    axes.set_ylim(rows + 0.8, -0.8)
    finish(axes, "ρ with each subject’s RDM, held-out stimuli, mean over folds")
    _without_y_axis(axes)
    return as_uri(figure)


def _chance_and_ceiling(target: TargetResult, known: Sequence[tuple[str, str]], width: float) -> str:
    figure = Figure(figsize=(width, 0.75 + 0.34 * (len(known) + 1)), layout="constrained")
    axes = figure.subplots()
    _draw_ceilings(axes, target)
    observed = target.r2 or 0.0
    axes.plot(observed, 0, "o", color=LEFT, markersize=7.5, zorder=3)
    for row, (_, key) in enumerate(known, start=1):
        high, mean = target.number(key, "p95"), target.number(key, "mean")
        axes.barh(row, high or 0.0, height=0.42, color=SOFT, linewidth=0)
        if mean is not None:
            axes.plot([mean] * 2, [row - 0.21, row + 0.21], color=INK, linewidth=1.2)
    axes.axvline(observed, color=LEFT, linewidth=1, alpha=0.7)
    axes.set_yticks(range(len(known) + 1), ["this model", *(name for name, _ in known)])
    axes.set_ylim(len(known) + 0.6, -0.6)
    finish(axes, "R² (mean over subjects of ρ²)")
    axes.set_xlim(left=0)
    _without_y_axis(axes)
    return as_uri(figure)


def _stage_tuning(table: pd.DataFrame, width: float) -> str:
    figure = Figure(figsize=(width, 0.75 + 0.3 * len(table)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(table))
    axes.axvline(1, color=INK, linewidth=0.8, alpha=0.6)
    axes.plot(table["mean"], places, color=LEFT, linewidth=1, alpha=0.45)
    axes.hlines(places, table["low"], table["high"], color=LEFT, linewidth=2.2)
    axes.plot(table["mean"], places, "o", color=LEFT, markersize=6)
    axes.set_yticks(places, table["stage"].tolist(), parse_math=False)
    axes.set_ylim(len(table) - 0.5, -0.5)
    finish(axes, "coefficient, mean over the stage")
    _without_y_axis(axes)
    return as_uri(figure)


def _draw_mean(axes: Axes, target: TargetResult, height: float) -> None:
    if target.rho is None:
        return
    if (ends := target.interval("rho", "interval")) is not None:
        axes.plot(ends, [height] * 2, color=INK, linewidth=2.2, solid_capstyle="butt")
    axes.plot(target.rho, height, "D", color=INK, markersize=6)
    axes.axvline(target.rho, color=INK, linewidth=0.9, alpha=0.45, linestyle=(0, (4, 3)))


def _draw_ceilings(axes: Axes, target: TargetResult) -> None:
    low, high = target.ceiling_lower, target.ceiling
    if low is not None and high is not None:
        axes.axvspan(low, high, color=RIGHT, alpha=0.22, linewidth=0)
    for bound in (low, high):
        if bound is not None:
            axes.axvline(bound, color=RIGHT, linewidth=1.4)


def _without_y_axis(axes: Axes) -> None:
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _ranks(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Rank pairs within each group of stimuli, from 0 to 1; NaN elsewhere and on the diagonal."""
    from scipy.stats import rankdata  # slow to import

    ranks = np.full(values.shape, np.nan)
    for group in np.unique(groups):
        first, second = np.triu_indices(len(values), 1)
        chosen = (groups[first] == group) & (groups[second] == group) & np.isfinite(values[first, second])
        first, second = first[chosen], second[chosen]
        scaled = (rankdata(values[first, second]) - 1) / max(len(first) - 1, 1)
        ranks[first, second] = ranks[second, first] = scaled
    return ranks


def _picture(ranks: np.ndarray, pale: np.ndarray | None = None) -> str:
    """Write a matrix as a PNG in a data URI: transparent where it is NaN, or pale with what stands there."""
    small = _binned(ranks)
    alpha = np.where(np.isnan(small), 0.0, 1.0)
    if pale is not None:
        behind = _binned(pale)
        alpha = np.where(np.isnan(small) & ~np.isnan(behind), _PALE, alpha)
        small = np.where(np.isnan(small), behind, small)
    colours = colormaps["viridis"](np.nan_to_num(small))
    colours[..., 3] = alpha
    enlarged = colours.repeat(scale := -(-_PIXELS // len(small)), axis=0).repeat(scale, axis=1)
    file = io.BytesIO()
    Image.fromarray((enlarged * 255).round().astype(np.uint8)).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _binned(matrix: np.ndarray) -> np.ndarray:
    """Average neighbours until a side fits the page."""
    step = -(-len(matrix) // _LARGEST)
    if step == 1:
        return matrix
    edges = np.arange(0, len(matrix), step)
    known = np.isfinite(matrix)
    total, counts = (
        np.add.reduceat(np.add.reduceat(part, edges, axis=0), edges, axis=1)
        for part in (np.where(known, matrix, 0.0), known.astype(float))
    )
    return np.divide(total, counts, out=np.full(total.shape, np.nan), where=counts > 0)
