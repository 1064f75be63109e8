"""What the report shows of a tuned network: what it was, what was trained, and its losses by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from featpipe.errors import RecipeError
from featpipe.report._plots import INK, LEFT, RIGHT, SOFT, WIDTH, as_uri
from featpipe.report._read import Run
from featpipe.report._tables import count

_COLUMNS = ("epoch", "train_loss", "validation_loss")


def tuned_network(run: Run) -> dict[str, Any] | None:
    """Return the facts and the plot of a run that tuned a network, None for one that read features."""
    about = run.record.get("tuner")
    if not isinstance(about, Mapping):
        return None
    history = _history(run)
    return {
        "facts": _facts(about),
        "losses": None if history is None else _losses(history, about),
        "range_test": _range_test(run, about),
    }


def _facts(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    before, after = (str(about.get(name) or "–")[:12] for name in ("weights_before", "weights_after"))
    shown = {
        "Tuner": about.get("class"),
        "Model": about.get("model"),
        "Weights": f"{about.get('weights_asked') or ''} {before} → {after}".strip(),
        "Trained on layers": ", ".join(about.get("layers") or ()),
        "Features from layers": ", ".join(about.get("transform_layers") or ()),
        "Frozen": ", ".join(about.get("frozen") or ()),
        "Low-rank changes": about.get("lora_rank"),
        "Parameters trained": count(about.get("n_trained")),
        "Learning rate": about.get("learning_rate"),
        "Best epoch": f"{about.get('best_epoch')} of {about.get('n_epochs')}",
        "Images": f"{count(about.get('n_fitted'))} trained on, {count(about.get('n_validation'))} chose the epoch"
        + (f" in {about['validation_folds']} folds" if about.get("validation_folds") else ""),
        "Checkpoint": about.get("checkpoint"),
    }
    return [(name, str(text)) for name, text in shown.items() if text not in (None, "")]


def _history(run: Run) -> pd.DataFrame | None:
    """Read ``training_history.csv``; raises `RecipeError` where it is damaged."""
    path = run.path / "training_history.csv"
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path)
    except (ValueError, pd.errors.ParserError) as error:
        raise RecipeError(f"{str(path)!r} cannot be read as a table ({error}).") from error
    if not all(name in table and table[name].dtype.kind in "fi" for name in _COLUMNS):
        raise RecipeError(
            f"{str(path)!r} must have the columns {', '.join(_COLUMNS)} with numbers; it has "
            f"{', '.join(map(str, table.columns))}."
        )
    return table


def _range_test(run: Run, about: Mapping[str, Any]) -> str | None:
    """Plot the loss by learning rate, where a range test chose it."""
    path = run.path / "range_test.csv"
    if not path.is_file():
        return None
    table = pd.read_csv(path)
    smoothed = table["smoothed_loss"]
    figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(table["learning_rate"], table["loss"], ".", color=SOFT, markersize=4)
    axes.plot(table["learning_rate"], smoothed, color=LEFT)
    axes.axvline(about["learning_rate"], color=RIGHT, linestyle="--")
    span = smoothed.iloc[0] - smoothed.min()  # leaves the explosion at the end out of the picture
    axes.set(xscale="log", ylim=(smoothed.min() - 0.3 * span, smoothed.iloc[0] + span))
    axes.set_xlabel("learning rate", color=INK)
    axes.set_ylabel("loss", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(color=SOFT, labelcolor=INK)
    return as_uri(figure)


def _losses(history: pd.DataFrame, about: Mapping[str, Any]) -> str | None:
    """Plot training loss and what chose the epoch, each on a scale of its own; None where nothing was trained."""
    known = [name for name in _COLUMNS[1:] if np.isfinite(history[name]).any()]
    if not known or len(history) < 2:
        return None
    figure = Figure(figsize=(WIDTH, 1.7 * len(known) + 0.3), layout="constrained")
    panels = figure.subplots(len(known), sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, known, strict=True):
        axes.plot(
            history["epoch"],
            history[name],
            "o-",
            color=LEFT if name == _COLUMNS[1] else RIGHT,
            markersize=3.5,
        )
        axes.axvline(about.get("best_epoch") or 0, color=INK, linewidth=0.8, alpha=0.6)
        axes.set_ylabel(
            {"train_loss": "training loss", "validation_loss": "held-out stimuli"}[name], color=INK
        )
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for spine in axes.spines.values():
            spine.set_color(SOFT)
        axes.tick_params(color=SOFT, labelcolor=INK)
        axes.grid(axis="y", color=SOFT, linewidth=0.6, alpha=0.6)
    panels[-1].set_xlabel("epoch", color=INK)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return as_uri(figure)
