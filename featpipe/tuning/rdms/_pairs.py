"""Batches of pairs of stimuli, each image once a batch; and what held-out pairs say of a prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from featpipe.errors import RequestError
from featpipe.rsa import RDMs, rdm_rho
from featpipe.tuning._training import whole
from featpipe.tuning.rdms._losses import standardise

FEWEST = 3  # stimuli whose pairs correlate: two stimuli have one pair


class PairBatches:
    """All measured pairs within stimulus sets, shuffled and divided evenly: the batches of an epoch.

    Parameters
    ----------
    sets : ndarray of str, shape (n_stimuli,)
        Stimulus set of each stimulus.
    rows : ndarray of int
        Stimuli that both of a pair must be among.
    batch_size : int
        Pairs; no batch has more.
    measured : ndarray of bool, shape (n_stimuli, n_stimuli), optional
        Pairs that somebody measured; all by default.

    Raises
    ------
    RequestError
        There is no pair.
    """

    def __init__(
        self, sets: np.ndarray, rows: np.ndarray, batch_size: int, measured: np.ndarray | None = None
    ) -> None:
        whole("batch_size", batch_size, 1)
        rows = np.sort(rows)
        first, second = (rows[place] for place in np.triu_indices(len(rows), 1))
        use = sets[first] == sets[second]
        if measured is not None:
            use &= measured[first, second]
        if not use.any():
            raise RequestError(
                f"There is no measured pair within a stimulus set among {len(rows)} stimuli of the training. Check "
                "the targets, and that ids are written SET/NAME."
            )
        self.pairs = torch.as_tensor(np.stack([first[use], second[use]], axis=1))
        self._batch_size = batch_size

    def __call__(self, seed: int) -> Sequence[torch.Tensor]:
        """Return the batches of an epoch: int64 tensors of shape (n_batch, 2), rows of the two stimuli."""
        n_batches = -(-len(self.pairs) // self._batch_size)
        return _shuffled(self.pairs, torch.Generator().manual_seed(seed)).tensor_split(n_batches)


class StimulusBatches:
    """Stimuli of one set a batch, whose pairs are all trained on at once.

    An epoch sees each stimulus once, and so other pairs than the last; an image goes through the network once
    for all its pairs in the batch.

    Parameters
    ----------
    sets : ndarray of str, shape (n_stimuli,)
    rows : ndarray of int
        Stimuli of the training.
    batch_size : int
        Stimuli, at least 3; a batch has more only where it would otherwise have fewer than 3.

    Raises
    ------
    RequestError
        A set has fewer than three stimuli to train on.
    """

    def __init__(self, sets: np.ndarray, rows: np.ndarray, batch_size: int) -> None:
        whole("batch_size", batch_size, FEWEST)
        own = sets[rows]
        self._sets = [torch.as_tensor(rows[own == name]) for name in dict.fromkeys(own.tolist())]
        for stimuli in self._sets:
            if len(stimuli) < FEWEST:
                raise RequestError(
                    f"Stimulus set {str(sets[stimuli[0]])!r} has {len(stimuli)} stimuli to train on, and a batch of "
                    f"stimuli needs {FEWEST}. Leave the set out, or train on pairs."
                )
        self._batch_size = batch_size

    def __call__(self, seed: int) -> Sequence[torch.Tensor]:
        """Return the batches of an epoch: int64 tensors of shape (n_batch,), rows of stimuli of one set."""
        generator = torch.Generator().manual_seed(seed)
        batches: list[torch.Tensor] = []
        for stimuli in self._sets:
            n_batches = min(-(-len(stimuli) // self._batch_size), len(stimuli) // FEWEST)
            batches += _shuffled(stimuli, generator).tensor_split(n_batches)
        return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


def pairs_of(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the different stimuli of a batch and where the two of each pair are among them.

    Parameters
    ----------
    batch : int64 tensor of shape (n_pairs, 2) or (n_stimuli,)
        Pairs, or stimuli of which all pairs are meant.

    Returns
    -------
    rows : int64 tensor of shape (n_images,)
        What goes through the network.
    first, second : int64 tensors of shape (n_pairs,)
        Positions in `rows`.
    """
    if batch.ndim == 1:
        first, second = torch.triu_indices(len(batch), len(batch), 1, device=batch.device)
        return batch, first, second
    rows, places = torch.unique(batch, return_inverse=True)
    return rows, places[:, 0], places[:, 1]


def held_out_rho(
    measured: RDMs, rows: np.ndarray, predict: Callable[[np.ndarray], np.ndarray]
) -> Callable[[], np.ndarray]:
    """Return what stops a training: minus the mean signed Spearman correlation of held-out stimuli.

    Ranks and correlates within each stimulus set with every RDM, as `featpipe.rsa.rdm_rho`. Signed, because its
    square keeps the wrong sign.

    Parameters
    ----------
    measured : RDMs
        The targets that count, of all stimuli of the fit.
    rows : ndarray of int
        Held-out stimuli.
    predict : callable (rows) -> ndarray of shape (n_rows, n_rows)
        Dissimilarities by the network as it stands.

    Returns
    -------
    score : callable () -> ndarray of shape (1,)
        To be lowest. NaN where a prediction is no number: the training has diverged.

    Raises
    ------
    RequestError
        A set has fewer than three held-out stimuli, or none of their pairs was measured.
    """
    kept = measured[rows]
    _check_held_out(measured, kept)
    if np.isnan(rdm_rho(kept, kept.mean())).all():
        raise RequestError(
            f"No subject has three measured pairs within a stimulus set among the {len(rows)} held-out stimuli, so "
            "that nothing says which epoch is best. Check the targets, or set validation_fraction=0."
        )

    def score() -> np.ndarray:
        predicted = np.asarray(predict(rows), dtype=np.float64)
        if not np.isfinite(predicted).all():
            return np.array([np.nan])
        return -np.array([np.nanmean(rdm_rho(kept, RDMs(predicted, kept.ids)))])

    return score


def rdm_of_rows(rows: torch.Tensor) -> np.ndarray:
    """Return 1 - Pearson's r of all pairs of rows (n_images, …): ndarray of shape (n_images, n_images), float64.

    Exactly symmetric, with 0 on the diagonal; 1 from a constant row to all others.
    """
    unit = standardise(rows.detach().flatten(1))
    with torch.autocast(rows.device.type, enabled=False):
        values = 1 - (unit @ unit.T).double().cpu().numpy()
    np.fill_diagonal(values, 0)
    return (values + values.T) / 2


def _shuffled(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return rows[torch.randperm(len(rows), generator=generator)]  # on the CPU: a GPU sees the same batches


def _check_held_out(measured: RDMs, kept: RDMs) -> None:
    for name in dict.fromkeys(measured.sets.tolist()):
        count = len(np.unique(kept.ids[kept.sets == name]))
        if count < FEWEST:
            whose = f"Stimulus set {name!r}" if name else "The fit"
            raise RequestError(
                f"{whose} has {count} of {int((measured.sets == name).sum())} stimuli held out, and a correlation "
                f"needs the pairs of {FEWEST}. Raise validation_fraction, or set it to 0 to train all epochs and "
                "keep the last."
            )
