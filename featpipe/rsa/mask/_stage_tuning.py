"""How much of a mask falls on each stage of a network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from featpipe.errors import MissingDependency


def stage_tuning(coef: np.ndarray, stage: np.ndarray, names: list[str]) -> pd.DataFrame:
    """Return the mean coefficient of each stage with its 95 % interval.

    ``mean ± t(.975, n - 1) · s / sqrt(n)`` over the n coefficients of a stage, s their standard deviation.

    Parameters
    ----------
    coef : ndarray of shape (n_coefficients,)
    stage : ndarray of int, shape (n_coefficients,)
        Position of each coefficient's stage in `names`.
    names : list of str

    Returns
    -------
    DataFrame
        One row per stage: ``layer``, ``mean``, ``low``, ``high``, ``n``. The interval is NaN where a stage
        has one coefficient.

    References
    ----------
    Gaziv (2019), figure 2.
    """
    from scipy.stats import t  # slow to import

    rows = []
    for position, name in enumerate(names):
        own = coef[stage == position]
        mean, n = float(own.mean()), len(own)
        half = float(t.ppf(0.975, n - 1) * own.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
        rows.append({"layer": name, "mean": mean, "low": mean - half, "high": mean + half, "n": n})
    return pd.DataFrame(rows)


def plot_stage_tuning(mask: Any, ax: Any = None) -> Any:
    """Plot the mean coefficient of each stage with its 95 % interval.

    Parameters
    ----------
    mask : ChannelMask
        Fitted.
    ax : matplotlib axes, optional
        New ones by default.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    MissingDependency
        matplotlib is not installed.

    References
    ----------
    Gaziv (2019), figure 2.
    """
    tuning = mask.stage_tuning_
    if ax is None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingDependency(
                "Plots need matplotlib, which is not installed. Install featpipe[report], or pass ax=."
            ) from error
        ax = Figure(layout="constrained").add_subplot()
    half = (tuning["high"] - tuning["mean"]).fillna(0)
    ax.bar(tuning["layer"], tuning["mean"], yerr=half, capsize=3, color="0.6")
    ax.axhline(1, linewidth=0.8, linestyle="--", color="0.3")  # where every mask begins
    ax.set(xlabel="stage", ylabel="mean coefficient (95 % interval)")
    return ax
