"""Scoring compares like with like, or says why not."""

from __future__ import annotations

import pandas as pd
import pytest

from featpipe.datasets import load_dataset
from featpipe.errors import RequestError
from featpipe.runs import score, write_predictions
from featpipe.testing import make_table_dataset


def test_numbered_targets_are_told_apart(tmp_path, rng):
    folder = make_table_dataset(tmp_path / "data")
    targets = pd.read_csv(folder / "targets.csv")[["hemisphere", "roi"]]
    targets.to_csv(folder / "targets.csv", index=False)
    left = load_dataset(f"table:{folder}", target="lh.V1v")
    out = tmp_path / "left.npz"
    write_predictions(out, left.ids.tolist(), rng.standard_normal((left.n_stimuli, 2)), ["0", "1"])
    assert score(str(out), f"table:{folder}", target="lh.V1v")["n_targets"] == 2
    with pytest.raises(RequestError, match="Predictions are of target '0' where"):
        score(str(out), f"table:{folder}", target="rh.V1v")
