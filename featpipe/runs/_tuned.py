"""Runs whose pipeline begins with a tuner: what it is told before a fit, what is kept of it, how it predicts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.pipeline import Pipeline

from featpipe.errors import RecipeError
from featpipe.models import ModelRequest, resolve
from featpipe.recipes import tuner_of
from featpipe.runs._folder import RunFolder
from featpipe.stimuli import StimulusSet

CHECKPOINTS = "checkpoints"  # folder of a run that is being made: states of trainings, weights of folds
WEIGHTS = "tuned.safetensors"
HISTORY = "training_history.csv"
RANGE_TEST = "range_test.csv"


def told(
    tuner: Any,
    stimuli: StimulusSet,
    *,
    out: str,
    device: str,
    trust: bool,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Return the parameters of a pipeline that let its tuner be fitted, here or by a worker in another folder.

    `progress` is called with (epochs done, epochs in all) of each training, where it can be: in this process.
    """
    request = network_request(tuner).from_anywhere()
    params = {"stimuli": stimuli, "model": request.model, "weights": request.weights}
    if tuner.checkpoints is None:
        params["checkpoints"] = os.path.abspath(Path(out) / CHECKPOINTS)
    if progress is not None and tuner.callback is None:
        params["callback"] = lambda epoch: progress(epoch.number, tuner.max_epochs)
    if device != "auto":
        params["device"] = device
    if trust:
        params["trust"] = True
    return _of_tuner(params)


def released(pipeline: Pipeline) -> None:
    """Take from a fitted tuner what belongs to this fit: images, watchers, and the leave to execute code."""
    pipeline.set_params(**_of_tuner({"stimuli": None, "callback": None, "trust": False, "device": "auto"}))


def network_request(tuner: Any) -> ModelRequest:
    """Return the request for a tuner's network as it was before tuning."""
    from featpipe.tuning._tuned import network_request as asked  # torch, which the tuner has imported

    return asked(tuner)


def write_tuned(folder: RunFolder, tuner: Any) -> None:
    """Write the tuned network as a checkpoint, where one can name it, and the losses of its training.

    The tuner that is saved then refers to this checkpoint of the run, whose folder may move.
    """
    folder.write_csv(HISTORY, pd.DataFrame(tuner.history_))
    if (tested := getattr(tuner, "range_test_", None)) is not None:
        folder.write_csv(RANGE_TEST, pd.DataFrame(tested))
    if has_checkpoint(tuner):
        tuner.save(folder.path / WEIGHTS)
    if tuner.tuned_.file is not None:
        tuner.tuned_.file = WEIGHTS
    tuner.set_params(checkpoints=None)


def forget_trainings(folder: RunFolder) -> None:
    """Delete what a killed fit would have gone on from."""
    shutil.rmtree(folder.path / CHECKPOINTS, ignore_errors=True)


def has_checkpoint(tuner: Any) -> bool:
    """Whether the network can be named in a checkpoint, as one of a user's own file cannot."""
    return not tuner.model.startswith("python:")


def tuner_record(tuner: Any, before: str) -> dict[str, Any]:
    """Return what ``run.json`` says of a fitted tuner.

    Parameters
    ----------
    tuner : Tuner
    before : str
        Digest of the network's weights as they came.
    """
    return {
        "class": type(tuner).__name__,
        "model": tuner.model,
        "weights_asked": tuner.weights,
        "weights_before": before,
        "weights_after": tuner.weights_digest_,
        "checkpoint": WEIGHTS if has_checkpoint(tuner) else None,
        "layers": list(tuner._taps),
        "transform_layers": list(tuner._transform_taps),
        "frozen": _texts(tuner.frozen),
        "lora_rank": tuner.lora_rank,
        "n_trained": int(tuner.n_trained_),
        "best_epoch": int(tuner.best_epoch_),
        "n_epochs": int(tuner.n_epochs_),
        "learning_rate": float(tuner.learning_rate_),
        "validation_folds": tuner.validation_folds,
        "n_fitted": len(tuner.training_ids_) - (0 if tuner.validation_folds else len(tuner.validation_ids_)),
        "n_validation": len(tuner.validation_ids_),
    }


def ready(
    pipeline: Pipeline, run: RunFolder, stimuli: StimulusSet, *, weights: str | None, device: str, trust: bool
) -> None:
    """Give a saved pipeline's tuner images to predict, and the run's own folder wherever that lies now.

    Raises
    ------
    RecipeError
        The network that can be loaded now is not the one that was tuned; where the run has its weights whole, none
        is loaded.
    WeightsUnavailable
        Its weights are not where they were.
    """
    params = {"stimuli": stimuli, "checkpoints": str(run.path), "trust": trust}
    params |= {"device": device} | ({} if weights is None else {"weights": weights})
    pipeline.set_params(**_of_tuner(params))
    tuner = tuner_of(pipeline)
    if tuner.tuned_.file is None or weights is not None:  # the network must be there, or is named
        refuse_other_network(run, network_request(tuner))


def refuse_other_network(run: RunFolder, request: ModelRequest) -> None:
    """Refuse a network that is not the one that was tuned; raises `RecipeError`."""
    wanted = run.read_json("run.json")["tuner"]["weights_before"]
    found = resolve(request).weights
    if found != wanted:
        raise RecipeError(
            f"The network that can be loaded now has the weights {found[:12]}, and {run.path} was tuned from "
            f"{str(wanted)[:12]}. Give the weights that the run was made with (--weights FILE)."
        )


def tuned_of(run: RunFolder) -> Mapping[str, Any] | None:
    """Return what ``run.json`` says of a run's tuner, None where it has none."""
    found: Mapping[str, Any] | None = run.read_json("run.json").get("tuner")
    return found


def _of_tuner(params: Mapping[str, Any]) -> dict[str, Any]:
    return {f"tuner__{name}": value for name, value in params.items()}


def _texts(layers: Any) -> list[str]:
    return [layers] if isinstance(layers, str) else list(layers or ())
