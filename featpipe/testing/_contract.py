"""What an estimator whose samples are stimulus ids must keep to."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone

from featpipe.blocks import LayerBlocks


def check_ids_estimator(estimator: Any, ids: Sequence[str] | np.ndarray, y: Any = None) -> None:
    """Check what scikit-learn asks of an estimator, for one whose samples are stimulus ids.

    `sklearn.utils.estimator_checks.check_estimator` skips nearly everything for such estimators. Raises
    `AssertionError` where the estimator changes its parameters or its input in ``fit``, cannot be cloned or
    pickled, gives other rows for ids in another order, repeated or alone, or gives other rows when fitted
    again.

    Parameters
    ----------
    estimator : estimator
        Not fitted; with ``transform`` or ``predict`` once it is.
    ids : array of str, shape (n_stimuli,)
        At least four, all different.
    y : array of shape (n_stimuli, …), optional
    """
    ids = np.asarray(ids, dtype=str)
    given, before = ids.copy(), repr(sorted(estimator.get_params().items(), key=lambda item: item[0]))
    fitted = clone(estimator)
    assert fitted.fit(ids, y) is fitted, "fit must return self"
    after = repr(sorted(clone(fitted).get_params().items(), key=lambda item: item[0]))
    assert before == after, "fit must leave parameters alone"
    rows = _result(fitted, ids)
    assert len(rows) == len(ids), "one row a stimulus"
    np.testing.assert_array_equal(ids, given, err_msg="the ids given were changed")
    order = np.random.default_rng(0).permutation(len(ids))
    for picked in (order, order[:1], np.array([2, 0, 2, 3])):
        np.testing.assert_allclose(_result(fitted, ids[picked]), rows[picked], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(_result(fitted, ids.tolist()), rows, rtol=1e-6)
    for again in (pickle.loads(pickle.dumps(fitted)), clone(fitted).fit(ids, y), fitted.fit(ids, y)):
        np.testing.assert_allclose(_result(again, ids), rows, rtol=1e-6)


def _result(fitted: Any, ids: Any) -> np.ndarray:
    result = fitted.predict(ids) if hasattr(fitted, "predict") else fitted.transform(ids)
    return result.to_matrix() if isinstance(result, LayerBlocks) else np.asarray(result)
