"""The demonstration: real photographs, a small network, simulated subjects whose noise ceiling is known.

Offline and in minutes. The photographs are those inside scikit-learn, cut into tiles that do not overlap.
The network has random weights, so nothing is downloaded. Each simulated ROI responds to one layer of it with
noise of a known size, so that the score that ridge should reach is known too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_sample_images

from featpipe.datasets import simulate_responses
from featpipe.extraction import Order, extract
from featpipe.features import CachedFeatures
from featpipe.models import ModelRequest
from featpipe.recipes import load_recipe
from featpipe.report import write_report
from featpipe.runs import FitRequest, RunFolder, fit
from featpipe.spec import LayerRequest, Reduction, digest_of
from featpipe.stimuli import StimulusSet
from featpipe.store import FeatureCache

MODEL = "timm:resnet10t"
WEIGHTS = "random:0"
REDUCE = "grid:2"
ROIS = {"V1v": "layer1", "V2v": "layer2", "hV4": "layer3", "PPA": "layer4"}  # and what drives them
CEILINGS = {"V1v": 0.8, "V2v": 0.7, "hV4": 0.6, "PPA": 0.5}  # explainable share of variance
SUBJECTS = ("subj01", "subj02")
_TARGETS = 12  # per ROI and hemisphere
_COMPONENTS = 8  # of the driving layer, so that two hundred images suffice
_TILE = 48  # pixels

Say = Callable[[str], None]


def run_demo(out: str | Path, *, n_stimuli: int = 208, say: Say) -> list[RunFolder]:
    """Run all stages into a folder: ``data/``, ``cache/``, a run per subject with its report.

    Parameters
    ----------
    out : str or Path
    n_stimuli : int
        At most 208, the tiles of two photographs.
    say : callable
        Gets a line at a time.
    """
    began = time.perf_counter()
    folder, cache = Path(out), str(Path(out) / "cache")
    stimuli = write_tiles(folder / "data" / "stimuli", n_stimuli)
    say(f"1. {len(stimuli)} tiles of the photographs in scikit-learn: {folder / 'data' / 'stimuli'}")
    order = Order(
        ModelRequest(MODEL, WEIGHTS), tuple(LayerRequest(x, Reduction.parse(REDUCE)) for x in ROIS.values())
    )
    done = extract(order, stimuli, FeatureCache(cache))
    rate = done.n_computed / done.seconds
    say(f"2. {len(done.keys)} layers of {MODEL} ({WEIGHTS}) cached in one pass, {rate:.0f} images/s: {cache}")
    data = write_data(folder / "data", stimuli, cache)
    n_targets = 2 * _TARGETS * len(ROIS)
    say(f"3. {len(SUBJECTS)} simulated subjects, {n_targets} targets each, noise ceiling known: {data}")
    runs = []
    for subject in SUBJECTS:
        recipe = load_recipe("baseline_ridge").with_params({"features__layers": list(ROIS.values())})
        request = FitRequest(
            recipe, f"table:{data}", str(folder / subject), cache, subject=subject, overwrite=True
        )
        runs.append(fit(request))
        say(f"\n4. {subject}: ridge on all layers, five folds, penalties chosen inside each")
        say(score_table(runs[-1].read_json("summary.json")))
        say(f"   report: {write_report(runs[-1].path)}")
    say(
        f"\nDone in {time.perf_counter() - began:.0f} s. Open a report in a browser, or look at the cache with"
    )
    say(f"featpipe cache ls --cache {cache}")
    return runs


def write_tiles(folder: Path, n_stimuli: int) -> StimulusSet:
    """Cut the photographs into tiles of 48×48 pixels that do not overlap."""
    folder.mkdir(parents=True, exist_ok=True)
    tiles = {}
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        rows, columns = photo.shape[0] // _TILE, photo.shape[1] // _TILE
        for row, column in np.ndindex(rows, columns):
            top, left = row * _TILE, column * _TILE
            tiles[f"{name}_{row}_{column}"] = photo[top : top + _TILE, left : left + _TILE]
    names = sorted(tiles)
    for name in (names[i] for i in np.linspace(0, len(names) - 1, min(n_stimuli, len(names))).astype(int)):
        path = folder / f"{name}.png"
        if not path.exists():
            Image.fromarray(tiles[name]).save(path)
    return StimulusSet.from_source(folder)


def write_data(folder: Path, stimuli: StimulusSet, cache: str) -> Path:
    """Simulate the subjects from cached features and write them as a dataset of one's own."""
    for seed, subject in enumerate(SUBJECTS):
        responses, targets = _simulated(stimuli, cache, seed)
        np.save(folder / f"{subject}.npy", responses)
    targets.to_csv(folder / "targets.csv", index=False)
    pd.DataFrame({"id": stimuli.ids}).to_csv(folder / "ids.csv", index=False)
    lines = [
        'name = "featpipe demo"',
        'stimuli = "stimuli"',
        'ids = "ids.csv:id"',
        'targets = "targets.csv"',
        "[responses]",
        *(f'{subject} = "{subject}.npy"' for subject in SUBJECTS),
    ]
    text = "\n".join(lines)
    (folder / "dataset.toml").write_text(text + "\n", encoding="utf-8")
    return folder / "dataset.toml"


def _simulated(stimuli: StimulusSet, cache: str, seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    parts = []
    for roi, layer in ROIS.items():
        reader = CachedFeatures(cache, MODEL, layer, REDUCE, weights=WEIGHTS, stimuli=stimuli.digest)
        parts.append(
            simulate_responses(
                reader.fit_transform(stimuli.ids),
                rois={roi: _TARGETS},
                noise_ceiling=CEILINGS[roi],
                n_components=_COMPONENTS,
                seed=int(digest_of([seed, roi])[:8], 16),
            )
        )
    responses, targets = zip(*parts, strict=True)
    return np.hstack(responses), pd.concat(targets, ignore_index=True)


def score_table(summary: dict) -> str:
    """Return the scores per ROI and hemisphere beside the known ceilings, as text."""
    scores, of_r, ceiling = summary["scores"], summary["noise_ceiling_r"], summary["noise_ceiling"]
    lines = ["   group         r   its ceiling        R²   its ceiling    R² of ceiling"]
    names = ["overall", *scores["r2"]["groups"]]
    for name in [*names[1:], names[0]]:
        r, root, r2, nc, part = (
            table["overall"] if name == "overall" else table["groups"][name]
            for table in (scores["pearson_r"], of_r, scores["r2"], ceiling, scores["noise_normalized_r2"])
        )
        lines.append(f"   {name:<9} {r:6.3f}  {root:12.3f}  {r2:8.3f}  {nc:12.3f}  {100 * part:14.0f} %")
    return "\n".join(lines)
