"""Made-up recordings and images in the formats of real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd
import scipy.io
from PIL import Image

from featpipe.datasets import REGIONS, colour_fields, simulate_responses
from featpipe.rsa._challenge import CHALLENGE_VARIABLES

# (left, right) vertices of the challenge's subjects
VERTICES = {
    **dict.fromkeys(range(1, 9), (19_004, 20_544)),
    6: (18_978, 20_220),
    8: (18_981, 20_530),
}
_TINY = (64, 72)
_FSAVERAGE = 163_842


def make_images(
    folder: str | Path, names: Sequence[str], *, size: int | tuple[int, int] = 32, seed: int = 0
) -> np.ndarray:
    """Write one smooth random image per name, such as ``a/image_01.png``, and return what they are made of.

    Returns
    -------
    colours : ndarray of shape (len(names), 48), float32
        Coarse colours of each image: features that predict it.
    """
    pixels, colours = colour_fields(len(names), size=size, seed=seed)
    for name, image in zip(names, pixels, strict=True):
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return colours


def make_table_dataset(
    folder: str | Path,
    *,
    n: int = 24,
    rois: Mapping[str, int] | None = None,
    noise_ceiling: float = 0.5,
    n_repeats: int | None = None,
    splits: bool = False,
    seed: int = 0,
) -> Path:
    """Write a folder that ``table:DIR`` reads: ``stimuli/``, ``responses.npy``, ``targets.csv``.

    Parameters
    ----------
    folder : path
    n : int
        Images, named ``image_0.png`` on; responses are linear in their coarse colours.
    rois : mapping of str to int, optional
        Targets per region and hemisphere; two each of V1v and hV4 by default.
    noise_ceiling : float
        Of every target, as a fraction of variance.
    n_repeats : int, optional
        Write responses of shape (n, targets, n_repeats), each repeat with noise of its own.
    splits : bool
        Write ``splits.csv``, the last quarter as the test split.
    seed : int

    Returns
    -------
    Path
        The folder.
    """
    folder = Path(folder)
    names = [f"image_{number}" for number in range(n)]
    colours = make_images(folder / "stimuli", [f"{name}.png" for name in names], seed=seed)
    rois = {"V1v": 2, "hV4": 2} if rois is None else rois
    responses, targets = simulate_responses(colours, rois=rois, noise_ceiling=noise_ceiling, seed=seed)
    if n_repeats is not None:
        noise = np.random.default_rng(seed + 1).standard_normal((*responses.shape, n_repeats))
        responses = (responses[:, :, None] + noise).astype(np.float32)
    np.save(folder / "responses.npy", responses)
    targets.to_csv(folder / "targets.csv", index=False)
    if splits:
        split = ["test" if number >= n - n // 4 else "train" for number in range(n)]
        pd.DataFrame({"id": names, "split": split}).to_csv(folder / "splits.csv", index=False)
    return folder


def make_algonauts2023(
    folder: str | Path,
    *,
    subject: int | Sequence[int] = 1,
    n_train: int = 12,
    n_test: int = 4,
    vertices: Literal["tiny", "real"] | tuple[int, int] = "tiny",
    test_responses: bool = False,
    ceiling: Literal["fraction", "percent"] | None = None,
    image_size: int = 32,
    seed: int = 0,
) -> Path:
    """Write subjects in the official layout of the Algonauts 2023 challenge, under the real names.

    Responses are linear in the coarse colours of the images, with noise: each vertex has a ceiling of its own, and
    one in fifty has none, as real ones. A tenth of the training images are the same for all subjects.

    Parameters
    ----------
    folder : path
        Gets ``subj01`` (or other subjects) inside.
    subject : int or sequence of int, 1 to 8
        ``range(1, 9)`` for the whole challenge.
    n_train, n_test : int
        Images; the real numbers are about 9 841 and 159 to 395.
    vertices : {"tiny", "real"} or (left, right)
        "real" are the subject's own counts, about 19 000 and 20 500.
    test_responses : bool
        Also write ``test_fmri``, as the organisers' release has it.
    ceiling : {"fraction", "percent"}, optional
        Write ``noise_ceiling``, the true ones, in that unit.
    image_size : int
        Side of the images in pixels; the real one is 425.
    seed : int

    Returns
    -------
    Path
        The folder of the subject, or the last one's.
    """
    for number in [subject] if isinstance(subject, int) else subject:
        rng = np.random.default_rng([seed, number])
        home = Path(folder) / f"subj{number:02d}"
        counts = {"tiny": _TINY, "real": VERTICES[number]}.get(vertices, vertices)  # type: ignore[arg-type]
        colours = _make_nsd_images(home, number, n_train, n_test, image_size, seed)
        for hemisphere, count in zip(("lh", "rh"), counts, strict=True):
            responses, ceilings = _vertex_responses(colours, count, rng)
            train, test = home / "training_split", home / "test_split"
            _save(train / "training_fmri" / f"{hemisphere}_training_fmri.npy", responses[:n_train])
            if test_responses:
                _save(test / "test_fmri" / f"{hemisphere}_test_fmri.npy", responses[n_train:])
            if ceiling is not None:
                unit = np.float32(100 if ceiling == "percent" else 1)
                _save(test / "noise_ceiling" / f"{hemisphere}_noise_ceiling.npy", ceilings * unit)
        _save_rois(home / "roi_masks", counts, rng)
    return home


_NSD_SHARED, _NSD_OWN = 1_000, 9_000  # images that all subjects of NSD saw, and those of one alone


def _make_nsd_images(home: Path, subject: int, n_train: int, n_test: int, size: int, seed: int) -> np.ndarray:
    """Write a subject's images, named as the challenge does, and return their colours, train before test.

    An NSD id gives the same image whoever sees it. Ids of the two splits are disjoint and ascending in each.
    """
    nsd = np.random.default_rng([seed, 73]).permutation(_NSD_SHARED + 8 * _NSD_OWN)
    shared, own = nsd[:_NSD_SHARED], nsd[_NSD_SHARED + (subject - 1) * _NSD_OWN :][:_NSD_OWN]
    n_shared = max(n_train // 10, n_train + n_test - _NSD_OWN)
    ids = {
        "train": np.sort(np.concatenate([shared[:n_shared], own[: n_train - n_shared]])),
        "test": np.sort(own[n_train - n_shared :][:n_test]),
    }
    colours = []
    for split, folder in (("train", "training_split/training_images"), ("test", "test_split/test_images")):
        (home / folder).mkdir(parents=True, exist_ok=True)
        for row, number in enumerate(ids[split].tolist()):
            pixels, cells = colour_fields(1, size=size, seed=seed * 73_000 + number)
            Image.fromarray(pixels[0]).save(home / folder / f"{split}-{row + 1:04d}_nsd-{number:05d}.png")
            colours.append(cells[0])
    return np.stack(colours)


def _vertex_responses(
    colours: np.ndarray, n_vertices: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return responses (n_images, n_vertices) of unit variance, and the ceiling of each vertex."""
    ceiling = rng.uniform(0.05, 0.9, n_vertices).astype(np.float32)
    ceiling[rng.random(n_vertices) < 0.02] = 0
    drive = (colours - colours.mean(axis=0)).astype(np.float32)
    signal = drive @ rng.standard_normal((drive.shape[1], n_vertices), dtype=np.float32)
    signal *= np.sqrt(ceiling) / signal.std(axis=0)
    responses = rng.standard_normal(signal.shape, dtype=np.float32)
    responses *= np.sqrt(1 - ceiling)
    responses += signal
    return responses, ceiling


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def make_fsaverage(
    folder: str | Path, *, form: Literal["gifti", "freesurfer"] = "gifti", n_vertices: int = 163_842
) -> str:
    """Write a made-up surface per hemisphere, points on a sphere of 100 mm, and return ``lh=FILE,rh=FILE``.

    Needs nibabel.
    """
    import nibabel

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for number, hemisphere in enumerate(("lh", "rh")):
        points = np.random.default_rng(number).standard_normal((n_vertices, 3))
        points = (100 * points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
        triangles = np.array([[0, 1, 2]], dtype=np.int32)
        files[hemisphere] = folder / (f"{hemisphere}.sphere" + (".surf.gii" if form == "gifti" else ""))
        if form == "gifti":
            arrays = [
                nibabel.gifti.GiftiDataArray(points, intent="NIFTI_INTENT_POINTSET"),
                nibabel.gifti.GiftiDataArray(triangles, intent="NIFTI_INTENT_TRIANGLE"),
            ]
            nibabel.save(nibabel.gifti.GiftiImage(darrays=arrays), files[hemisphere])
        else:
            nibabel.freesurfer.write_geometry(files[hemisphere], points, triangles, create_stamp="made up")
    return ",".join(f"{hemisphere}={path}" for hemisphere, path in files.items())


def _save_rois(folder: Path, counts: tuple[int, int], rng: np.random.Generator) -> None:
    """Write masks in the vertices of the challenge and of fsaverage, and the names of their labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, names in REGIONS.items():
        mapping = {0: "Unknown", **dict(enumerate(names, start=1))}
        np.save(folder / f"mapping_{kind}.npy", mapping, allow_pickle=True)  # type: ignore[arg-type]
    for hemisphere, count in zip(("lh", "rh"), counts, strict=True):
        where = np.sort(rng.choice(_FSAVERAGE, count, replace=False))
        _save_fsaverage(folder / f"{hemisphere}.all-vertices_fsaverage_space.npy", where, 1)
        for kind, names in REGIONS.items():
            labels = _labels(count, len(names), rng)
            np.save(folder / f"{hemisphere}.{kind}_challenge_space.npy", labels)
            _save_fsaverage(folder / f"{hemisphere}.{kind}_fsaverage_space.npy", where, labels)


def _labels(n_vertices: int, n_regions: int, rng: np.random.Generator) -> np.ndarray:
    """Label patches of neighbouring vertices; the last region is empty, as regions of some subjects are."""
    labels = np.zeros(n_vertices, dtype=np.int64)
    width = n_vertices // (2 * n_regions)
    start = int(rng.integers(0, n_vertices // 2))
    for number in range(1, n_regions):
        labels[start + (number - 1) * width : start + number * width] = number
    return labels


def _save_fsaverage(path: Path, where: np.ndarray, values: Any) -> None:
    whole = np.zeros(_FSAVERAGE, dtype=np.uint8)
    whole[where] = values
    np.save(path, whole)


def make_algonauts2019(
    folder: str | Path,
    *,
    sets: Mapping[str, int] | None = None,
    n_test: int = 0,
    n_subjects: int = 4,
    n_times: int | None = 3,
    form: Literal["v5", "v7.3", "npz", "npy"] = "v5",
    test_targets: bool = False,
    noise: float = 0.05,
    image_size: int = 24,
    seed: int = 0,
) -> Path:
    """Write image sets in the official layout of the Algonauts 2019 challenge, under the real names.

    The RDM of every target is planted: ``1 - r`` of the coarse colours of the images, weighted per target, to
    which each subject adds noise. Each set has an offset of its own, as real ones do.

    Parameters
    ----------
    folder : path
        Gets ``Training_Data`` and, with ``n_test``, ``Test_Data`` inside.
    sets : mapping of str to int, optional
        Images per training set; ``{"92": 12, "118": 15}`` by default.
    n_test : int
        Images of the test set, called ``78``.
    n_subjects : int
        The real number is 15.
    n_times : int, optional
        Length of MEG's time axis, 20 in the real files. None writes ``target_meg_timeavg`` without one.
    form : {"v5", "v7.3", "npz", "npy"}
        Format of the targets: either of MATLAB's, or arrays of NumPy.
    test_targets : bool
        Also write the targets of the test set, as the organisers have them.
    noise : float
        Standard deviation of what subjects differ by; planted dissimilarities run from 0 to 2.
    image_size : int
        Side of the images in pixels; real ones have 175 and 300.
    seed : int

    Returns
    -------
    Path
        The folder.
    """
    folder, rng = Path(folder), np.random.default_rng(seed)
    weights = {target: rng.uniform(0, 1, 48) ** 4 for target in CHALLENGE_VARIABLES}
    given = {"92": 12, "118": 15} if sets is None else dict(sets)
    homes = {name: folder / "Training_Data" / f"{name}_Image_Set" for name in given}
    if n_test:
        given["78"], homes["78"] = n_test, folder / "Test_Data" / "78_Image_Set"
    for number, (name, n) in enumerate(given.items()):
        width = max(2, len(name), len(str(n)))
        names = [f"image_{row + 1:0{width}d}.jpg" for row in range(n)]
        colours = make_images(homes[name] / f"{name}images", names, size=image_size, seed=seed * 16 + number)
        if homes[name].parent.name == "Training_Data" or test_targets:
            rdms = {target: planted_rdm(colours, weight) for target, weight in weights.items()}
            _save_targets(homes[name], rdms, n_subjects, n_times, noise, form, rng)
    return folder


def planted_rdm(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return ``1 - r`` between rows of features of shape (n_stimuli, n_features), weighted and centred."""
    weighted = (features - features.mean(axis=0)) * weights
    return np.asarray(1 - np.corrcoef(weighted.astype(np.float64)))


def _save_targets(
    folder: Path,
    rdms: Mapping[str, np.ndarray],
    n_subjects: int,
    n_times: int | None,
    noise: float,
    form: str,
    rng: np.random.Generator,
) -> None:
    """Write the RDMs of all subjects, and for MEG of all times, each with an offset and noise."""
    offset = rng.uniform(0.1, 0.5)
    tracks: dict[str, dict[str, np.ndarray]] = {"target_fmri": {}, "target_meg": {}}
    for target, rdm in rdms.items():
        over_time = n_times is not None and target.startswith("MEG")
        lead = (n_subjects, n_times) if over_time else (n_subjects,)
        errors = np.triu(noise * rng.standard_normal((*lead, *rdm.shape)), 1)
        values = rdm + offset + errors + errors.swapaxes(-1, -2)
        values[..., np.arange(len(rdm)), np.arange(len(rdm))] = 0
        track = "target_meg" if target.startswith("MEG") else "target_fmri"
        tracks[track][CHALLENGE_VARIABLES[target]] = (values + values.swapaxes(-1, -2)) / 2
    if n_times is None:
        tracks["target_meg_timeavg"] = tracks.pop("target_meg")
    for stem, arrays in tracks.items():
        save_targets(folder / stem, arrays, form)


def save_targets(path: Path, arrays: Mapping[str, np.ndarray], form: str) -> Path:
    """Write arrays by name in one of the forms of `make_algonauts2019`, and return the file (or folder)."""
    if form == "npy":
        for name, values in arrays.items():
            np.save(path.with_name(f"{name}.npy"), values)
        return path.parent
    file = path.with_suffix(".npz" if form == "npz" else ".mat")
    if form == "npz":
        np.savez(file, allow_pickle=False, **arrays)
    elif form == "v5":
        scipy.io.savemat(file, dict(arrays), do_compression=True)
    else:
        _save_v73(file, arrays)
    return file


def _save_v73(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write what MATLAB writes with -v7.3: HDF5 behind 512 bytes of text, all axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            dataset = file.create_dataset(
                name, data=np.ascontiguousarray(values.T), chunks=True, compression="gzip"
            )
            dataset.attrs["MATLAB_class"] = np.bytes_("double" if values.dtype == np.float64 else "single")
    header = (
        b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Wed Feb 20 18:46:15 2019 HDF5 schema 1.00 ."
    )
    with path.open("r+b") as raw:
        raw.write(header.ljust(116) + bytes(8) + b"\x00\x02IM")
