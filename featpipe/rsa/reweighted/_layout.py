"""Which predictors of pairs there are, in which order, and how they are read from layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.memory import available_memory
from featpipe.rsa._rdms import stimulus_sets
from featpipe.rsa.reweighted._columns import Columns
from featpipe.rsa.reweighted._metric import channel_means
from featpipe.rsa.reweighted._problem import Pairs
from featpipe.rsa.reweighted._stimulus_effects import EFFECTS, effect_names, stimulus_effects
from featpipe.rsa.statistics._held import STATISTICS


@dataclass(frozen=True)
class Layout:
    """Predictors of pairs: columns per kind, then main effects, and a metric beside them.

    Parameters
    ----------
    kinds : tuple of str
        Of "channel", "layer" and "metric".
    form : {"squared", "correlation"}
    layers : tuple of str
        Of channels, layers and main effects.
    metric_layers : tuple of str
    main_effects : bool
    """

    kinds: tuple[str, ...]
    form: str
    layers: tuple[str, ...]
    metric_layers: tuple[str, ...]
    main_effects: bool

    @property
    def tables(self) -> list[Columns]:
        """The columns of each kind that has some."""
        return [Columns(self.form, per_layer=kind == "layer") for kind in self.kinds if kind != "metric"]

    def columns(self, blocks: LayerBlocks) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Return kind, layer and name of each column: ndarrays of shape (n_columns,), and a list."""
        own = blocks.select(self.layers)
        named = [kind for kind in self.kinds if kind != "metric"]
        counts = [table.count(own) for table in self.tables]
        kinds = [np.repeat(kind, count.sum()) for kind, count in zip(named, counts, strict=True)]
        groups = [np.repeat(np.arange(len(count)), count) for count in counts]
        names = [
            name if kind == "layer" else f"{name}:{channel}"
            for kind, count in zip(named, counts, strict=True)
            for name, n_channels in zip(self.layers, count.tolist(), strict=True)
            for channel in range(n_channels)
        ]
        if self.main_effects:
            kinds.append(np.repeat("main effect", len(EFFECTS) * len(self.layers)))
            groups.append(np.repeat(np.arange(len(self.layers)), len(EFFECTS)))
            names += effect_names(self.layers)
        if not kinds:
            return np.zeros(0, dtype=str), np.zeros(0, dtype=int), []
        return np.concatenate(kinds), np.concatenate(groups), names

    def effects(
        self, blocks: LayerBlocks, means: list[np.ndarray] | None
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return main-effect predictors (n_stimuli, n_effects) and the means they are measured from."""
        if not self.main_effects:
            return np.zeros((len(blocks), 0)), []
        own = channel_means(blocks.select(self.layers))
        return stimulus_effects(own, np.arange(len(blocks)) if means is None else means)

    def pairs(self, blocks: LayerBlocks, effects: np.ndarray) -> Pairs:
        """Return all pairs within stimulus sets, set by set, with their predictors.

        Raises
        ------
        RequestError
            No pair, or more predictors than fit in memory.
        """
        first, second, codes = pairs_within_sets(blocks.ids)
        kind, group, _ = self.columns(blocks)
        check_memory(len(first), len(kind))
        own = blocks.select(self.layers)
        columns = np.empty((len(first), len(kind)), dtype=np.float32)
        for code in np.unique(codes) if len(kind) else []:
            chosen = codes == code
            rows, places = np.unique(np.concatenate([first[chosen], second[chosen]]), return_inverse=True)
            i, j = np.split(places, 2)
            start = 0
            for table in self.tables:
                stop = start + int(table.count(own).sum())
                columns[chosen, start:stop] = table.of_pairs(own[rows], i, j)
                start = stop
            columns[chosen, start:] = effects[rows][i] + effects[rows][j]
        means = channel_means(blocks.select(self.metric_layers)) if self.metric_layers else []
        return Pairs(first, second, codes, columns, kind, group, means)

    def weighted_sum(self, blocks: LayerBlocks, coef: np.ndarray, effects: np.ndarray) -> np.ndarray:
        """Return columns times weights for all pairs, also across stimulus sets: (n_stimuli, n_stimuli), float64."""
        own = blocks.select(self.layers)
        stop = len(coef) - effects.shape[1]
        single = effects @ coef[stop:]
        total = single[:, None] + single
        for table, weights in zip(self.tables, self._split(own, coef[:stop]), strict=True):
            total += self._table_sum(own, table, weights)
        return total

    def _split(self, own: LayerBlocks, coef: np.ndarray) -> list[np.ndarray]:
        if not self.tables:
            return []
        return np.split(coef, np.cumsum([int(table.count(own).sum()) for table in self.tables])[:-1])

    def _table_sum(self, own: LayerBlocks, table: Columns, weights: np.ndarray) -> np.ndarray:
        """Use statistics where they are held, features otherwise."""
        names = own.ids.astype(str)
        sets = set(stimulus_sets(names).tolist())
        held = len(sets) == 1 and all(
            STATISTICS.holds(own, layer, next(iter(sets)), names.tolist()) for layer in range(len(own.names))
        )
        if not held or len(names) < 2:
            return table.weighted_sum(own, weights)
        upper = np.triu_indices(len(names), 1)
        total = np.zeros((len(names), len(names)))
        total[upper] = table.of_pairs(own, *upper) @ weights
        return total + total.T


def pairs_within_sets(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows of both stimuli and the set's number for all pairs of different stimuli of one set, set by set.

    Raises
    ------
    RequestError
        There is none.
    """
    sets = stimulus_sets(ids)
    first, second, codes = [], [], []
    for code, name in enumerate(np.unique(sets)):
        rows = np.flatnonzero(sets == name)
        i, j = (rows[place] for place in np.triu_indices(len(rows), 1))
        different = ids[i] != ids[j]  # a bootstrap pairs a stimulus with itself
        first.append(i[different])
        second.append(j[different])
        codes.append(np.full(int(different.sum()), code))
    if not sum(map(len, first)):
        raise RequestError(
            f"There is no pair of stimuli within a stimulus set among {len(ids)}; weights are fitted to such pairs. "
            "Check that ids are written SET/NAME."
        )
    return np.concatenate(first), np.concatenate(second), np.concatenate(codes)


def check_memory(n_pairs: int, n_columns: int) -> None:
    """Refuse more predictors than fit in memory, with the copy in float64 that the last fit takes.

    Raises
    ------
    RequestError
    """
    needed, available = 12 * n_pairs * n_columns, available_memory()
    if needed > available:
        raise RequestError(
            f"{n_columns} predictors of {n_pairs} pairs need {needed} bytes, but {available} are available. Use fewer "
            "layers or stimuli, predictors='layer', or predictors='metric'."
        )
