"""The report's plots, as SVG images that follow the reader's light or dark page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from featpipe.report._read import Run, split_group
from featpipe.report._tables import label, number

# Stand-ins that matplotlib writes into the SVG and the page's colours replace.
INK, SOFT, LEFT, RIGHT = "#010203", "#040506", "#070809", "#0a0b0c"
_NAMES = {INK: "--ink", SOFT: "--soft", LEFT: "--left", RIGHT: "--right"}
_STYLE = (
    "<style>:root{--ink:#1d2129;--soft:#c9ced6;--left:#2f6fce;--right:#d9722b}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e4e7ec;--soft:#4a515c;--left:#79aef5;--right:#f2a068}}"
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif!important}</style>"
)
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "featpipe", "font.size": 10.0}
WIDTH = 7.6  # inches; the page shows 72 points an inch at its own width
COLOURS = {"lh": LEFT, "rh": RIGHT, "": LEFT}


def scores_by_group(run: Run) -> str | None:
    """Plot the main metric per region, both hemispheres, spread over targets, the ceiling as a mark.

    Returns
    -------
    str or None
        A data URI; None when there are no groups.
    """
    if not run.groups:
        return None
    regions = list(dict.fromkeys(split_group(group)[0] for group in run.groups))
    paired = any(split_group(group)[1] for group in run.groups)
    figure = Figure(figsize=(WIDTH, 0.75 + len(regions) * (0.42 if paired else 0.3)), layout="constrained")
    axes = figure.subplots()
    for group in run.groups:
        region, hemisphere = split_group(group)
        height = regions.index(region) + {"lh": -0.17, "rh": 0.17}.get(hemisphere, 0.0)
        _draw_group(axes, run, group, height, COLOURS[hemisphere])
    axes.set_yticks(range(len(regions)), regions, parse_math=False)
    axes.set_ylim(len(regions) - 0.45, -0.55)
    finish(axes, label(run.main_metric) + " with held-out responses")
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return as_uri(figure)


def histogram(run: Run) -> str | None:
    """Plot how the main metric spreads over all targets; None where it has no values per target."""
    values = run.values(run.main_metric)
    if not values.size:
        return None
    figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
    axes = figure.subplots()
    axes.hist(values, bins=_bins(values), color=LEFT, alpha=0.8, edgecolor="none")
    top = axes.get_ylim()[1] * 1.16
    axes.set_ylim(0, top)
    median = float(np.median(values))
    axes.axvline(median, ymax=0.88, color=INK, linewidth=1.2)
    axes.text(median, top * 0.9, f"median {number(median)}", color=INK, ha="center", va="bottom")
    finish(axes, f"{label(run.main_metric)} of each target, mean over folds")
    axes.set_ylabel("targets", color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    return as_uri(figure)


def _draw_group(axes: Axes, run: Run, group: str, height: float, colour: str) -> None:
    values = run.values(run.main_metric, group)
    score = run.score(run.main_metric, group)
    if values.size > 1:
        low, q1, q3, high = np.quantile(values, [0.05, 0.25, 0.75, 0.95])
        axes.plot([low, high], [height] * 2, color=colour, linewidth=1.2, alpha=0.55, solid_capstyle="butt")
        axes.plot([q1, q3], [height] * 2, color=colour, linewidth=4.5, alpha=0.4, solid_capstyle="butt")
    if score is not None:
        axes.plot(score, height, "o", color=colour, markersize=6.5, zorder=3)
    if (bound := ceiling_of(run, group)) is not None:
        axes.plot([bound] * 2, [height - 0.15, height + 0.15], color=INK, linewidth=1.8, zorder=2)


def ceiling_of(run: Run, group: str | None) -> float | None:
    """The ceiling in units of the main metric; None for other metrics than r and R²."""
    read = {"pearson_r": run.ceiling_of_r, "r2": run.ceiling}.get(run.main_metric)
    return None if read is None else read(group)


def _bins(values: np.ndarray) -> Sequence[float]:
    """Between 8 and 40 equal bins; values that are all equal get a little room."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    count = int(np.clip(np.sqrt(values.size) * 1.5, 8, 40))
    edges: list[float] = np.linspace(low, high, count + 1).tolist()
    return edges


def finish(axes: Axes, title: str) -> None:
    """Name the horizontal axis and take away what no reader needs."""
    axes.set_xlabel(title, color=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(SOFT)
    axes.tick_params(colors=INK, labelcolor=INK)
    axes.tick_params(axis="both", color=SOFT)
    axes.grid(axis="x", color=SOFT, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)
    low, high = axes.get_xlim()
    if low < 0 < high:
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.6)


def as_uri(figure: Figure) -> str:
    """Write a figure as a data URI, the same bytes for the same figure."""
    file = io.StringIO()
    with matplotlib.rc_context(_SETTINGS):  # fixed ids and no date: equal runs give equal pages
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for stand_in, name in _NAMES.items():
        svg = svg.replace(stand_in, f"var({name})")
    opening = svg.index(">") + 1
    svg = svg[:opening] + _STYLE + svg[opening:]
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
