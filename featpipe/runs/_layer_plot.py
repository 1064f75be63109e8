"""The plot of a comparison of layers: scores along each network, a row of panels per target."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

_INK, _SOFT, _LINE, _CEILING = "#1d2129", "#c9ced6", "#2f6fce", "#d9722b"
_PER_LAYER, _HEIGHT, _WIDE = 0.36, 1.9, 6.0  # inches


def plot_layers(scores: pd.DataFrame, title: str, over: str) -> Figure:
    """Plot the score of every layer with its interval, in the order of the network, beside the noise ceiling.

    Parameters
    ----------
    scores : DataFrame
        network, layer, depth, target, score, low, high, ceiling_lower, ceiling_upper.
    title : str
        What a score is.
    over : str
        What the intervals are over, such as ``subjects``.

    Returns
    -------
    Figure
        A row of panels per target and a column per network; panels of a row share their axis.
    """
    networks, targets = (list(dict.fromkeys(scores[name])) for name in ("network", "target"))
    counts = [scores.loc[scores["network"] == name, "layer"].nunique() for name in networks]
    width = 1.1 + sum(max(2.2, _PER_LAYER * count + 0.5) for count in counts)
    figure = Figure(figsize=(max(4.0, width), 1.3 + _HEIGHT * len(targets)), layout="constrained")
    panels = figure.subplots(
        len(targets),
        len(networks),
        squeeze=False,
        sharex="col",
        sharey="row",
        width_ratios=[max(4, count) for count in counts],
    )
    for row, target in enumerate(targets):
        for column, network in enumerate(networks):
            own = scores[(scores["target"] == target) & (scores["network"] == network)]
            _draw(panels[row, column], own.sort_values("depth"))
        panels[row, 0].set_ylabel(target or "RDM", color=_INK, parse_math=False)
    for axes, network in zip(panels[0], networks, strict=True):
        axes.set_title(network, color=_INK, fontsize=10, parse_math=False)
    figure.supylabel(title, fontsize=9, color=_INK)
    _draw_legend(figure, over)
    return figure


def _draw(axes: Axes, own: pd.DataFrame) -> None:
    places = np.arange(len(own))
    score, low, high = (own[name].to_numpy(dtype=float) for name in ("score", "low", "high"))
    _draw_ceiling(axes, *own[["ceiling_lower", "ceiling_upper"]].iloc[0])
    axes.axhline(0, color=_INK, linewidth=0.8, alpha=0.6)
    axes.plot(places, score, color=_LINE, linewidth=1.2, alpha=0.5)
    axes.vlines(places, low, high, color=_LINE, linewidth=2)
    axes.plot(places, score, "o", color=_LINE, markersize=5)
    axes.set_xticks(places, own["layer"].tolist(), rotation=90, parse_math=False)
    axes.set_xlim(-0.6, len(own) - 0.4)
    axes.grid(axis="y", color=_SOFT, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(_SOFT)
    axes.tick_params(color=_SOFT, labelcolor=_INK, labelsize=8)


def _draw_legend(figure: Figure, over: str) -> None:
    interval = Line2D([], [], color=_LINE, linewidth=2, marker="o", markersize=5)
    ceiling = Patch(facecolor=_CEILING, alpha=0.35)
    figure.legend(
        [interval, ceiling],
        [f"95 % interval, bootstrap over {over}", "noise ceiling, lower to upper"],
        loc="outside lower center",
        ncols=2 if figure.get_figwidth() > _WIDE else 1,
        frameon=False,
        fontsize=8,
        labelcolor=_INK,
    )


def _draw_ceiling(axes: Axes, lower: float, upper: float) -> None:
    if np.isfinite([lower, upper]).all():
        axes.axhspan(lower, upper, color=_CEILING, alpha=0.22, linewidth=0)
    for bound in (lower, upper):
        if np.isfinite(bound):
            axes.axhline(bound, color=_CEILING, linewidth=1.2)
