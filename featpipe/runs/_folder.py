"""A run folder: what `fit` leaves behind, and how it is read again."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

from featpipe.encoding import (
    BandedRidge,
    BestLayer,
    LayerScaler,
    PerROI,
    RidgeEncoder,
    StackedLayers,
    TargetView,
)
from featpipe.errors import RecipeError
from featpipe.features import CachedFeatures, JoinedFeatures
from featpipe.files import check_folder, written_whole
from featpipe.rsa import ChannelMask, FeatureRDM, FeatureReweightedRSA, LayerWeightedRSA
from featpipe.spec import FeatureSpec, Preprocessing, Reduction

# What a fitted pipeline may hold beyond what skops itself knows to be safe; anything else needs --trust. Classes
# one by one: a file may name any callable, and some of ours run what a path or a text leads to.
_OURS = (
    {
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in (
            *(CachedFeatures, JoinedFeatures, FeatureSpec, Preprocessing, Reduction),
            *(BandedRidge, BestLayer, LayerScaler, PerROI, RidgeEncoder, StackedLayers, TargetView),
            *(ChannelMask, FeatureRDM, FeatureReweightedRSA, LayerWeightedRSA),
        )
    }
    | {  # by name: parts of an estimator, layers that a fitted one reads again, and heads, whose classes need torch
        f"featpipe.{name}"
        for name in (
            *("blocks.LayerBlocks", "blocks._Copies", "blocks._Copies.stream"),
            *(f"blocks._Places{method}" for method in ("", ".read", ".stream", ".images")),
            *("encoding._scaler._ScaledRows", "encoding._scaler._ScaledRows.read"),
            *(f"features._stored_rows.StoredRows{method}" for method in ("", ".read", ".stream", ".images")),
            "encoding.regions._regions_of_targets.JointFit",
            "tuning.heads._deep_head.DeepHead",
            "tuning.heads._linear_head.LinearHead",
            "tuning.heads._vertex_position_head.VertexPositionHead",
            "tuning._tuned.TunedWeights",
            "tuning.rdms._channel_mask_tuner.ChannelMaskTuner",
            "tuning.rdms._group_conv_tuner.SiameseGroupConvTuner",
            "tuning.rdms._siamese_tuner.SiameseTuner",
            "tuning.responses._contrastive_tuner.ContrastiveTuner",
            "tuning.responses._response_tuner.ResponseTuner",
        )
    }
)
# What run.json must have to be used again
_NEEDED = ("format", "data", "targets", "cache", "features")


def _is_there(name: str) -> bool:
    """Whether the module is there where a file looks for a class of ours; no other package is looked for."""
    try:
        return (
            not name.startswith("featpipe.") or importlib.util.find_spec(name.rpartition(".")[0]) is not None
        )
    except ModuleNotFoundError:  # nor is the package that it was in
        return False


class RunFolder:
    """Files of one run.

    ``run.json``
        All that is needed to do it again: recipe with digest, data, parameters, the features that were
        meant, folds, versions, times.
    ``summary.json``
        Scores overall and per group; no times in it, so that equal runs have equal bytes.
    ``scores.csv``
        Tidy: target, group, fold, metric, value.
    ``targets.csv``
        Of runs that predict responses, per target: mean scores over folds, ceiling, interval of r, p-values.
    ``training.csv``
        Id and image digest of every stimulus that the saved pipeline was fitted on.
    ``pipeline.skops``
        The fitted pipeline; loading it executes no code.
    ``held_out.npz``
        Of runs that predict a moderate number of responses: what each fold predicted, and what was measured.
    ``tuned.safetensors``, ``training_history.csv``
        Of runs that tune a network: the tuned network, a checkpoint that the saved pipeline refers to and ``featpipe
        extract --model local:`` takes; and its losses by epoch. While the run is made, ``checkpoints`` has the state
        of each training, from which a run that was killed goes on.
    ``rdms.npz``, ``stage_tuning.csv``
        Of runs that predict RDMs: the held-out and the measured RDM, and a channel mask's mean coefficient a stage.
    ``report.html``
        For people.

    Parameters
    ----------
    path : str or Path
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, overwrite: bool = False) -> RunFolder:
        """Return the folder to write a run to; it appears with its first file.

        Raises
        ------
        RecipeError
            It holds a run already and `overwrite` is off, it is not a folder, or nothing can be written there:
            said now, because a fit may take hours.
        """
        folder = cls(path)
        check_folder(folder.path)
        if (folder.path / "summary.json").exists() and not overwrite:
            raise RecipeError(f"{folder.path} holds a run already. Name another --out, or say --overwrite.")
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open a run that was finished.

        Raises
        ------
        RecipeError
            The folder holds no run.
        """
        folder = cls(path)
        for name in ("run.json", "summary.json"):
            if not (folder.path / name).is_file():
                raise RecipeError(
                    f"{folder.path} is not a run folder: it has no {name}. `featpipe fit` makes one."
                )
        record = folder.read_json("run.json")
        if missing := [name for name in _NEEDED if name not in record]:
            raise RecipeError(
                f"{folder.path / 'run.json'} lacks {', '.join(missing)}; the run folder is damaged."
            )
        return folder

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        self._replace(name, text.encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run."""
        try:
            return dict(json.loads((self.path / name).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise RecipeError(
                f"{self.path / name} is not a JSON object ({error}); the run folder is damaged."
            ) from error

    def write_csv(self, name: str, table: pd.DataFrame) -> None:
        """Write a table, whole or not at all; numbers with the seven digits of float32."""
        self._replace(name, table.to_csv(index=False, float_format="%.7g").encode())

    def write_arrays(self, name: str, **arrays: np.ndarray) -> None:
        """Write an ``.npz`` file, whole or not at all."""
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **arrays)
        self._replace(name, file.getvalue())

    def write_pipeline(self, pipeline: Pipeline) -> None:
        """Save the fitted pipeline so that loading it executes no code."""
        from skops.io import dumps  # looks through all of scikit-learn when imported: seconds

        self._replace("pipeline.skops", dumps(pipeline))

    def load_pipeline(self, *, trust: bool = False) -> Pipeline:
        """Load the fitted pipeline.

        Raises
        ------
        RecipeError
            There is none, or it holds types that neither featpipe nor skops knows, and `trust` is off.
        """
        from skops.io import get_untrusted_types, load

        path = self.path / "pipeline.skops"
        if not path.is_file():
            raise RecipeError(f"{self.path} has no pipeline.skops; the run did not finish.")
        try:
            foreign = get_untrusted_types(file=path)
        except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
            raise RecipeError(
                f"{path} cannot be read ({error}); the run folder is damaged. Run `featpipe fit` again."
            ) from error
        strange = [name for name in foreign if name not in _OURS]
        if renamed := [name for name in strange if not _is_there(name)]:
            raise RecipeError(
                f"{path} holds {', '.join(renamed)}, which this version has not: the run was saved by another version "
                "of featpipe. Install that one, or run `featpipe fit` again."
            )
        if strange and not trust:
            raise RecipeError(
                f"{path} holds {', '.join(strange)}, which are not known to be safe. If you trust where the file comes "
                "from, say --trust."
            )
        return load(path, trusted=foreign)

    @property
    def kind(self) -> str:
        """``responses`` or ``rdms``: what the pipeline predicts."""
        return str(self.read_json("run.json").get("kind", "responses"))

    def target_names(self) -> list[str]:
        """Return the name of each target that the pipeline predicts, in order."""
        return [str(name) for name in self.read_json("run.json")["targets"]]

    def trained_on(self, digests: Sequence[str]) -> np.ndarray:
        """Say which images, by digest, the saved pipeline was fitted on: ndarray of bool, shape (n_stimuli,)."""
        path = self.path / "training.csv"
        if not path.is_file():
            raise RecipeError(f"{self.path} has no training.csv; the run folder is damaged.")
        trained = set(pd.read_csv(path, dtype=str)["sha256"])
        return np.array([digest in trained for digest in digests], dtype=bool)

    def _replace(self, name: str, content: bytes) -> None:
        with written_whole(self.path / name) as file:
            file.write(content)
