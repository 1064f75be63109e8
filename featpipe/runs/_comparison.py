"""The result of a comparison of layers: its tables, and the folder that it is written to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featpipe.errors import MissingDependency, RequestError
from featpipe.files import check_folder
from featpipe.rsa import ModelComparison

FILES = ("compare.json", "layers.csv", "differences.csv", "second_order.csv", "layers.svg", "layers.png")


@dataclass(frozen=True, eq=False)
class LayerComparison:
    """How alike layers are to measured RDMs, with what chance, subjects and noise say about it.

    Parameters
    ----------
    data : str
    sets : tuple of str
        Stimulus sets; scores are means over them.
    n_stimuli : int
    n_subjects : dict of str to int
        Per target.
    metric, seed
        As asked for; the other options are in `tests`.
    networks, layers : tuple of str, length n_layers
        In the order of the networks. Together they are the names in `tests`.
    tests : ModelComparison
        Scores, bootstrap intervals and all differences.
    p, p_corrected : ndarray of shape (n_layers, n_targets)
        One-sided, by permutation of the stimuli; corrected over all layers and targets.
    ceilings : ndarray of shape (2, n_targets)
        Noise ceilings of the score, lower and upper.
    between : DataFrame, optional
        Layers × layers.
    """

    data: str
    sets: tuple[str, ...]
    n_stimuli: int
    n_subjects: Mapping[str, int]
    metric: str
    seed: int
    networks: tuple[str, ...]
    layers: tuple[str, ...]
    tests: ModelComparison
    p: np.ndarray
    p_corrected: np.ndarray
    ceilings: np.ndarray
    between: pd.DataFrame | None

    @property
    def drawn(self) -> str:
        """What the bootstrap draws, in words."""
        return "subjects and stimuli" if self.tests.over == "both" else self.tests.over

    def scores_frame(self) -> pd.DataFrame:
        """Return a tidy table: network, layer, depth, target, score, low, high, p, p_corrected, the ceilings."""
        depth = [self.networks[:place].count(name) for place, name in enumerate(self.networks)]
        rows = [
            {
                "network": network,
                "layer": layer,
                "depth": depth[row],
                "target": target,
                "score": self.tests.scores[row, column],
                **dict(zip(("low", "high"), self.tests.intervals[row, column], strict=True)),
                "p": self.p[row, column],
                "p_corrected": self.p_corrected[row, column],
                **dict(zip(("ceiling_lower", "ceiling_upper"), self.ceilings[:, column], strict=True)),
            }
            for row, (network, layer) in enumerate(zip(self.networks, self.layers, strict=True))
            for column, target in enumerate(self.tests.targets)
        ]
        return pd.DataFrame(rows)

    def between_frame(self) -> pd.DataFrame | None:
        """Return layers × layers as a tidy table: first, second, similarity."""
        if self.between is None:
            return None
        long = self.between.rename_axis(index="first", columns="second").stack()
        return pd.DataFrame({"similarity": long}).reset_index()

    def to_json(self) -> dict[str, Any]:
        """Return everything as numbers, texts, lists and dicts; None where there is no number."""
        tests, between = self.tests, self.between_frame()
        return {
            "data": self.data,
            "sets": list(self.sets),
            "n_stimuli": self.n_stimuli,
            "n_subjects": dict(self.n_subjects),
            "metric": self.metric,
            **{name: getattr(tests, name) for name in ("method", "over", "correction", "n")},
            "seed": self.seed,
            "targets": list(tests.targets),
            "models": list(tests.models),
            "held_out": False,  # a layer that is chosen by these scores does not have this score on new data
            "layers": _records(self.scores_frame()),
            "differences": _records(tests.to_frame()),
            **({} if between is None else {"second_order": _records(between)}),
        }


class ComparisonFolder:
    """Files of one comparison.

    ``compare.json``
        What was asked for, and every number.
    ``layers.csv``, ``differences.csv``, ``second_order.csv``
        Tidy: scores of layers, differences of every two, layers with layers where those were asked for.
    ``layers.svg``, ``layers.png``
        Scores along the depth of each network; need matplotlib.

    Parameters
    ----------
    path : str or Path
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, overwrite: bool = False) -> ComparisonFolder:
        """Return the folder to write to, which appears with its first file.

        Raises
        ------
        RequestError
            It is a file, holds other things, or holds a comparison and `overwrite` is off: said before anything
            is computed.
        """
        folder = cls(path)
        check_folder(folder.path)
        there = {entry.name for entry in folder.path.iterdir()} if folder.path.is_dir() else set()
        if there - set(FILES):
            raise RequestError(
                f"--out {folder.path} holds other files, such as {min(there - set(FILES))!r}. Name a new folder."
            )
        if there and not overwrite:
            raise RequestError(
                f"{folder.path} holds a comparison already. Name another --out, or say --overwrite."
            )
        return folder

    def files(self) -> list[str]:
        """Return the names of the files that are there."""
        return [name for name in FILES if (self.path / name).exists()]

    def write(self, found: LayerComparison) -> None:
        """Write all files; those of an earlier comparison go.

        Raises
        ------
        MissingDependency
            matplotlib is not installed; the tables are written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        text = json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (self.path / "compare.json").write_text(text, encoding="utf-8")
        tables = {
            "layers": found.scores_frame(),
            "differences": found.tests.to_frame(),
            "second_order": found.between_frame(),
        }
        for name, table in tables.items():
            if table is not None:
                table.to_csv(self.path / f"{name}.csv", index=False)
        self._plot(found)

    def _plot(self, found: LayerComparison) -> None:
        try:
            import matplotlib

            from featpipe.runs._layer_plot import plot_layers  # matplotlib
        except ImportError as error:
            raise MissingDependency(
                f"{self.path} has no plot, which needs matplotlib: pip install 'featpipe[report]'."
            ) from error
        of = "mean over subjects" if max(found.n_subjects.values()) > 1 else "one subject"
        title = f"{METHOD_NAMES[found.tests.method]}, {of}"
        figure = plot_layers(found.scores_frame(), title, found.drawn)
        with matplotlib.rc_context({"svg.hashsalt": "featpipe"}):  # fixed ids and no date: equal bytes again
            figure.savefig(self.path / "layers.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(self.path / "layers.png", dpi=160, metadata={"Software": None})


METHOD_NAMES = {
    "spearman": "Spearman’s ρ",
    "pearson": "Pearson’s r",
    "kendall": "Kendall’s τ-a",
    "cosine": "cosine",
    "rho_a": "ρ-a",
}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table for JSON, None where there is no number."""
    rows = table.itertuples(index=False, name=None)
    names = [str(name) for name in table]
    return [{name: None if pd.isna(v) else v for name, v in zip(names, row, strict=True)} for row in rows]
