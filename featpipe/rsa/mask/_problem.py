"""From features and RDMs to what a mask is fitted to, and to what stops it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from featpipe.blocks import LayerBlocks
from featpipe.errors import RequestError
from featpipe.memory import available_memory
from featpipe.rsa._distances import rdm
from featpipe.rsa._rdms import RDMs, stimulus_sets
from featpipe.rsa._scores import rdm_rho
from featpipe.rsa.mask._apply import channel_counts, coefficient_layers
from featpipe.rsa.mask._features import FeatureTerms, feature_terms
from featpipe.rsa.mask._measured import Measured, measured_pairs
from featpipe.rsa.mask._terms import PairTerms, pair_terms
from featpipe.rsa.mask._views import view_statistics

# Stimuli of a set on either side of a split: fewer have no three pairs, the fewest that correlate
_FEWEST = 3


def pairs_within_sets(rdms: RDMs, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs within stimulus sets that anybody measured: rows of the two stimuli, set by set.

    Parameters
    ----------
    rdms : RDMs
    rows : ndarray of int, optional
        Stimuli that both must be among; all by default.

    Raises
    ------
    RequestError
        There is none.
    """
    rows = np.arange(len(rdms)) if rows is None else np.sort(rows)
    first, second = (rows[place] for place in np.triu_indices(len(rows), 1))
    sets = rdms.sets
    use = (sets[first] == sets[second]) & (~np.isnan(rdms.values[:, first, second])).any(axis=0)
    if not use.any():
        raise RequestError(
            f"There is no pair within a stimulus set that somebody measured, among {len(rows)} stimuli; a mask is "
            "fitted to the pairs of each set. Check the targets, and that ids are written SET/NAME."
        )
    first, second = first[use], second[use]
    order = np.argsort(sets[first], kind="stable")
    return first[order], second[order]


def hold_out_stimuli(
    ids: np.ndarray, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Split stimuli, the same share of each set: rows to fit on and rows to stop on.

    Repeats of a stimulus stay together.

    Raises
    ------
    RequestError
        A set is too small to leave three stimuli on either side.
    """
    held: list[str] = []
    names = np.unique(ids)
    sets = stimulus_sets(names)
    for stimulus_set in np.unique(sets):
        own = names[sets == stimulus_set]
        count = max(_FEWEST, round(fraction * len(own)))
        if len(own) - count < _FEWEST:
            raise RequestError(
                f"Stimulus set {str(stimulus_set)!r} has {len(own)} stimuli, and holding out {count} leaves "
                f"{len(own) - count} to fit on; both need {_FEWEST}. Use a smaller validation_fraction, or "
                "validation=None."
            )
        held += rng.choice(own, size=count, replace=False).tolist()
    out = np.isin(ids, held)
    return np.flatnonzero(~out), np.flatnonzero(out)


def response_rdms(ids: np.ndarray, responses: Any) -> RDMs:
    """Return 1 - r over the targets of responses, of shape (n_stimuli, n_targets), as one RDM.

    Targets with a missing response are left out.

    Raises
    ------
    RequestError
        Rows that are not one per id, or fewer than two targets without a missing response.
    """
    values = np.asarray(responses, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(ids):
        raise RequestError(
            f"Responses have shape {values.shape}; for {len(ids)} stimuli (n_stimuli, n_targets) is needed."
        )
    values = values[:, ~np.isnan(values).any(axis=0)]
    if values.shape[1] < 2:
        raise RequestError(
            f"{values.shape[1]} targets have all their responses, and 1 - r needs two. Leave out the stimuli whose "
            "responses are missing."
        )
    return RDMs(rdm(values, "correlation").values, ids, subjects=["responses"], targets=["responses"])


def assemble(
    blocks: LayerBlocks,
    rdms: RDMs,
    pairs: tuple[np.ndarray, np.ndarray],
    view_pairs: list[tuple[int, int]],
    resolution: str,
    **options: Any,
) -> tuple[PairTerms | FeatureTerms, Measured]:
    """Put what is known of features and measured dissimilarities of pairs beside one another.

    Parameters
    ----------
    blocks : LayerBlocks
    rdms : RDMs
        Of the same stimuli in the same order.
    pairs : (first, second)
        Rows of stimuli of one set each, set by set.
    view_pairs : list of (view, view)
        Each pair of stimuli appears once for every one.
    resolution : {"channel", "stage", "feature"}
    **options
        Of `measured_pairs`.

    Raises
    ------
    RequestError
        There is no pair.
    """
    if not len(pairs[0]):
        raise RequestError(
            "Of the pairs of stimuli, none is left on one side of the split: to fit to, or to stop on. Change "
            "validation_fraction, or use validation=None."
        )
    measured = measured_pairs(rdms, *pairs, **options)
    if resolution == "feature":
        return feature_terms(blocks, pairs, view_pairs), measured.take(
            np.tile(np.arange(len(pairs[0])), len(view_pairs))
        )
    terms, places = _channel_terms(blocks, rdms, pairs, view_pairs)
    terms = terms.sum_channels(coefficient_layers(blocks, "channel")) if resolution == "stage" else terms
    return terms, measured.take(places)


def _channel_terms(
    blocks: LayerBlocks, rdms: RDMs, pairs: tuple[np.ndarray, np.ndarray], view_pairs: list[tuple[int, int]]
) -> tuple[PairTerms, np.ndarray]:
    """Return the terms of pairs, set by set and view by view, and which pair each of them is of."""
    first, second = pairs
    sets = rdms.sets[first]
    _check_size(blocks, len(first) * len(view_pairs))
    statistics, ends, places = [], [], []
    for name in dict.fromkeys(sets.tolist()):
        own = np.flatnonzero(sets == name)
        both = rdms.ids[np.concatenate([first[own], second[own]])]
        stimuli, local = np.unique(both, return_inverse=True)
        for found, start in view_statistics(blocks, view_pairs, stimuli):
            statistics.append(found)
            ends.append((local[: len(own)], local[len(own) :] + start))
            places.append(own)
    return pair_terms(statistics, ends), np.concatenate(places)


def held_out_score(
    terms: PairTerms | FeatureTerms, rdms: RDMs, pairs: tuple[np.ndarray, np.ndarray]
) -> Callable[[np.ndarray], float]:
    """Return mask -> mean signed Spearman correlation with the subjects' RDMs on held-out pairs.

    Parameters
    ----------
    terms : PairTerms or FeatureTerms
        Of the held-out pairs.
    rdms : RDMs
    pairs : (first, second)
        Rows of the held-out pairs.

    Raises
    ------
    RequestError
        No RDM has three of the pairs in one stimulus set, so that nothing correlates.
    """
    _check_held_out(rdms, pairs)
    rows, local = np.unique(np.concatenate(pairs), return_inverse=True)
    first, second = local[: terms.n_pairs], local[terms.n_pairs :]
    kept = rdms[rows]
    hidden = np.ones((len(rows), len(rows)), dtype=bool)
    hidden[first, second] = hidden[second, first] = False
    names = [f"{name}#{row}" for row, name in enumerate(kept.ids.tolist())]  # repeats apart
    values = np.where(hidden, np.nan, kept.values)
    measured = RDMs(values, names, subjects=kept.subjects, targets=kept.targets, times=kept.times)

    def score(beta: np.ndarray) -> float:
        predicted = np.full((len(rows), len(rows)), np.nan)
        predicted[first, second] = predicted[second, first] = 1 - terms.correlate(beta)[0]
        return float(np.nanmean(rdm_rho(measured, RDMs(predicted, names))))

    return score


def _check_held_out(rdms: RDMs, pairs: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = pairs
    known, sets = ~np.isnan(rdms.values[:, first, second]), rdms.sets[first]
    most = max(int(known[:, sets == name].sum(axis=1).max()) for name in np.unique(sets))
    if most < _FEWEST:
        raise RequestError(
            f"{len(first)} pairs are held out, and no RDM has more than {most} of them in one stimulus set; a "
            f"correlation to stop on needs {_FEWEST}. Use a larger validation_fraction, or validation=None."
        )


def _check_size(blocks: LayerBlocks, n_pairs: int) -> None:
    n_channels = sum(channel_counts(blocks))
    needed, available = 4 * n_pairs * n_channels, available_memory()
    if needed > available:
        raise RequestError(
            f"A mask over {n_channels} channels and {n_pairs} pairs (of stimuli, times pairs of views) needs {needed} "
            f"bytes, but {available} are available. Use fewer stimuli, layers or views, view_pairs=N for N pairs of "
            "views, or layers with fewer channels."
        )
