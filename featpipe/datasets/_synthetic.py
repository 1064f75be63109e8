"""Made-up recordings whose noise ceiling is known: ``synthetic:n=200,targets=40,noise=1,seed=0``."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import platformdirs
from PIL import Image

from featpipe.datasets._dataset import Dataset
from featpipe.datasets._regions import default_masks
from featpipe.errors import DatasetError
from featpipe.stimuli import StimulusSet

_REGIONS = ("V1v", "hV4", "FFA-1", "PPA")
_DEFAULTS: dict[str, float] = {"n": 200, "targets": 40, "noise": 1.0, "seed": 0, "size": 64}
_LIMITS = {
    "n": (10, 100_000),
    "targets": (8, 1_000_000),
    "noise": (0, 1000),
    "seed": (0, 2**31),
    "size": (8, 512),
}


def load_synthetic(text: str) -> Dataset:
    """Make the recordings of ``synthetic:TEXT``.

    TEXT is a list of ``key=value`` with ``n`` images, ``targets`` in two hemispheres of four regions,
    ``noise`` (standard deviation in units of the signal's), ``seed`` and image ``size`` in pixels. Images
    are smooth random colour fields, responses linear in their coarse colours, so that a network that keeps
    some spatial layout can predict them. The noise ceiling of every target is ``1 / (1 + noise²)``.

    Raises
    ------
    DatasetError
        On an unknown key, or a value that is no number or out of range.
    """
    options = _options(text)
    n_images, seed, noise = int(options["n"]), int(options["seed"]), options["noise"]
    stimuli, colours = _stimuli(n_images, int(options["size"]), seed)
    return make_synthetic_subject(
        stimuli,
        colours,
        rois=_shares(int(options["targets"])),
        noise_ceiling=1 / (1 + noise**2),
        seed=seed,
    )


def load_synthetic_stimuli(text: str) -> StimulusSet:
    """Make only the images of ``synthetic:TEXT``."""
    options = _options(text)
    return _stimuli(int(options["n"]), int(options["size"]), int(options["seed"]))[0]


def make_synthetic_subject(
    stimuli: StimulusSet,
    features: np.ndarray,
    *,
    subject: str = "synthetic",
    name: str = "synthetic",
    **simulation: Any,
) -> Dataset:
    """Return a subject that responds to ``stimuli`` linearly in ``features``.

    Features have shape (n_stimuli, n_features), rows in the order of ``stimuli.ids``; ``simulation`` goes
    to `simulate_responses`.
    """
    responses, targets = simulate_responses(features, **simulation)
    ids, masks = np.asarray(stimuli.ids), default_masks(targets)
    return Dataset(name, stimuli, ids, responses, targets, masks=masks, subject=subject)


def simulate_responses(
    features: np.ndarray,
    *,
    rois: Mapping[str, int],
    hemispheres: Sequence[str] = ("lh", "rh"),
    noise_ceiling: float | Mapping[str, float] | np.ndarray = 0.5,
    n_components: int | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Simulate targets that respond linearly to features, with noise at a known ceiling.

    ``y = s + e`` with ``s = F w`` standardised over stimuli, w drawn from a standard normal, and e normal
    with variance ``(1 - c) / c``. Then ``c = var(s) / (var(s) + var(e))`` is the largest share of variance
    (r²) that any model can explain, and ``sqrt(c)`` the largest correlation.

    Parameters
    ----------
    features : array of shape (n_stimuli, n_features)
        Any units; they are centred here, and directions of large variance weigh more.
    rois : mapping of str to int
        Targets per region and hemisphere.
    hemispheres : sequence of str
    noise_ceiling : float, mapping from region to float, or array of shape (n_targets,)
        c, above 0 and at most 1.
    n_components : int, optional
        Let responses depend on that many principal components of the features only, which makes them
        learnable from few stimuli.
    seed : int

    Returns
    -------
    responses : ndarray of shape (n_stimuli, n_targets), float32
    targets : DataFrame of n_targets rows with columns name, hemisphere, roi, noise_ceiling

    Raises
    ------
    DatasetError
        When the features are no finite matrix or constant, or a ceiling is out of range.
    """
    drive = _drive(np.asarray(features, dtype=np.float64), n_components)
    targets = _simulated_targets(rois, hemispheres, noise_ceiling)
    rng = np.random.default_rng(seed)
    signal = drive @ rng.standard_normal((drive.shape[1], len(targets)))
    signal = (signal - signal.mean(axis=0)) / signal.std(axis=0)
    ceiling = targets["noise_ceiling"].to_numpy()
    noise = rng.standard_normal(signal.shape) * np.sqrt((1 - ceiling) / ceiling)
    return (signal + noise).astype(np.float32), targets


def colour_fields(
    n_images: int, *, size: int | tuple[int, int] = 64, grid: int = 4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Make smooth random images and the coarse colours that they were made from.

    Returns
    -------
    pixels : ndarray of shape (n_images, height, width, 3), uint8
    colours : ndarray of shape (n_images, grid * grid * 3), float32
        Colour of each cell of the grid, row by row, 0 to 255.
    """
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed)
    coarse = np.clip(128 + 50 * rng.standard_normal((n_images, grid, grid, 3)), 0, 255).astype(np.uint8)
    pixels = np.empty((n_images, height, width, 3), dtype=np.uint8)
    for row, cells in enumerate(coarse):
        pixels[row] = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
    return pixels, coarse.reshape(n_images, -1).astype(np.float32)


def _drive(features: np.ndarray, n_components: int | None) -> np.ndarray:
    if features.ndim != 2 or not np.isfinite(features).all():
        raise DatasetError(
            f"Features of shape {features.shape} must be a finite matrix (n_stimuli, n_features)."
        )
    centred = features - features.mean(axis=0)
    if not centred.any():
        raise DatasetError("The features are the same for all stimuli; no response can depend on them.")
    if n_components is None:
        return np.asarray(centred)
    U, s, _ = np.linalg.svd(centred, full_matrices=False)
    return np.asarray((U * s)[:, :n_components])


def _simulated_targets(
    rois: Mapping[str, int],
    hemispheres: Sequence[str],
    noise_ceiling: float | Mapping[str, float] | np.ndarray,
) -> pd.DataFrame:
    rows = [
        {"name": f"{hemisphere}.{roi}.{number}", "hemisphere": hemisphere, "roi": roi}
        for roi, count in rois.items()
        for hemisphere in hemispheres
        for number in range(count)
    ]
    targets = pd.DataFrame(rows, columns=["name", "hemisphere", "roi"])
    if isinstance(noise_ceiling, Mapping):
        ceiling = np.asarray([float(noise_ceiling.get(roi, math.nan)) for roi in targets["roi"]])
    else:
        ceiling = np.broadcast_to(np.asarray(noise_ceiling, dtype=np.float64), (len(rows),)).copy()
    if not rows or not ((ceiling > 0) & (ceiling <= 1)).all():
        raise DatasetError(
            f"Simulated targets need at least one region and noise ceilings above 0 and up to 1, for every "
            f"region; got {noise_ceiling!r} for {list(rois)}."
        )
    targets["noise_ceiling"] = ceiling
    return targets


def _shares(n_targets: int) -> dict[str, int]:
    """Divide targets equally: targets per region and hemisphere."""
    return dict.fromkeys(_REGIONS, n_targets // (2 * len(_REGIONS)))


def _options(text: str) -> dict[str, float]:
    options = dict(_DEFAULTS)
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in options:
            close = get_close_matches(key, options, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(options)}."
            raise DatasetError(f"synthetic: has no option {key!r}; {hint}")
        low, high = _LIMITS[key]
        try:
            number = float(value) if key == "noise" else int(value)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise DatasetError(f"synthetic: needs {key}= a number from {low} to {high}, got {value!r}.")
        options[key] = number
    if options["targets"] % (2 * len(_REGIONS)):
        raise DatasetError(
            f"synthetic: spreads targets over 2 hemispheres × {len(_REGIONS)} regions, so their number must "
            f"be a multiple of {2 * len(_REGIONS)}, got {options['targets']:g}."
        )
    return options


def _stimuli(n_images: int, size: int, seed: int) -> tuple[StimulusSet, np.ndarray]:
    """Lay the images out in the user's cache folder, where other processes find them too."""
    pixels, colours = colour_fields(n_images, size=size, seed=seed)
    path = platformdirs.user_cache_path("featpipe") / f"synthetic-{n_images}-{size}-{seed}.npy"
    if not _holds(path, pixels):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npy", delete=False) as file:
            np.save(file, pixels)
        os.replace(file.name, path)
    stimuli = StimulusSet.from_source(path)
    return stimuli.rename({old: f"synthetic-{row:05d}" for row, old in enumerate(stimuli.ids)}), colours


def _holds(path: Path, pixels: np.ndarray) -> bool:
    if not path.exists():
        return False
    try:
        return np.array_equal(np.load(path, mmap_mode="r", allow_pickle=False), pixels)
    except (ValueError, OSError, EOFError):
        return False  # half a file from an earlier run; written anew
