"""Every bad input has an error of its own that says what came."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.datasets import load_dataset
from featpipe.errors import DatasetError
from featpipe.testing import make_algonauts2023, make_table_dataset

MINIMAL = 'stimuli = "stimuli"\nresponses = "responses.npy"\n'
SORTED = MINIMAL + 'rows = "sorted"\n'


def toml(text):
    def spoil(folder):
        (folder / "dataset.toml").write_text(text)

    return spoil


def both(text, name, content):
    def spoil(folder):
        toml(text)(folder)
        (folder / name).write_text(content)

    return spoil


def responses(change):
    def spoil(folder):
        np.save(folder / "responses.npy", change(np.load(folder / "responses.npy")), allow_pickle=True)

    return spoil


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def remove(name):
    return lambda folder: (folder / name).unlink()


def put(value):
    def change(array):
        array[3, 5] = value
        return array

    return change


def targets(ceiling):
    rows = "".join(f"t{k},{ceiling}\n" for k in range(8))
    return text("targets.csv", "name,noise_ceiling\n" + rows)


ALL_IDS = [f"image_{k}" for k in range(12)]
TABLE = {
    "no responses file": (
        remove("responses.npy"),
        "needs either stimuli/ or stimuli.zip, and responses.npy or RDMs in rdms.npz",
    ),
    "two sources of images": (text("stimuli.zip", ""), "needs either stimuli/ or stimuli.zip"),
    "too few rows": (responses(lambda r: r[:-1]), r"12 stimuli and 11 rows in 'responses.npy'"),
    "a vector": (responses(lambda r: r[:, 0]), r"shape \(12,\); \(n_stimuli, n_targets\) is needed"),
    "no targets": (responses(lambda r: r[:, :0]), r"shape \(12, 0\)"),
    "text": (responses(lambda r: r.astype(str)), "are of type <U.*real numbers"),
    "complex numbers": (responses(lambda r: r.astype(complex)), "are of type complex128"),
    "pickled objects": (responses(lambda r: r.astype(object)), "pickled objects are not loaded"),
    "torn file": (text("responses.npy", "torn"), "cannot be read as an array of numbers"),
    "infinity": (responses(put(np.inf)), "hold infinity, first in row 3, target 5"),
    "beyond float32": (responses(lambda r: put(1e300)(r.astype(float))), "hold infinity, first in row 3"),
    "never measured": (
        responses(lambda r: r * np.where(np.arange(8) == 6, np.nan, 1)),
        "1 of 8 targets.*target 6",
    ),
    "targets of another length": (
        text("targets.csv", "name\na\n"),
        "has 1 rows, the responses have 8 targets",
    ),
    "targets not a table": (text("targets.csv", ""), "cannot be read as a CSV"),
    "ceiling not a number": (
        targets("high"),
        "'noise_ceiling' of 'targets.csv' should hold numbers, row 1 is 'high'",
    ),
    "ceiling in percent": (targets(62), "reach 62, which looks like percent"),
    "ceiling just above one": (targets(1.2), "reach 1.2; a fraction of variance is at most 1"),
    "ceiling beyond percent": (targets(620), "run from 620 to 620; neither"),
    "negative ceiling": (targets(-0.1), "run from -0.1 to -0.1; neither"),
    "splits without id": (text("splits.csv", "image,split\na,train\n"), "it needs id and one of split"),
    "splits misspelt": (text("splits.csv", "id,spilt,group\na,train,g\n"), "did you mean 'split'"),
    "splits incomplete": (
        text("splits.csv", "id,split\nimage_1,train\n"),
        "no row for 11 of 12 ids, 'image_0'",
    ),
    "splits twice": (text("splits.csv", "id,split\na,train\na,test\n"), "several rows for 'a'"),
    "split empty": (
        text("splits.csv", "id,split\n" + "".join(f"{i},\n" for i in ALL_IDS)),
        "12 stimuli have no entry in splits",
    ),
    "n_repeats zero": (
        text("splits.csv", "id,n_repeats\n" + "".join(f"{i},0\n" for i in ALL_IDS)),
        "must be positive numbers, row 0 holds 0",
    ),
    "n_repeats text": (
        text("splits.csv", "id,n_repeats\n" + "".join(f"{i},x\n" for i in ALL_IDS)),
        "must be positive numbers, row 0 holds nan",
    ),
    "not TOML": (toml("stimuli = "), "cannot be read as TOML"),
    "RDMs and responses": (toml(SORTED + 'rdms = "r.npy"'), "names both rdms and responses"),
    "unknown key": (toml(SORTED + 'tragets = "t.csv"'), "unknown key 'tragets'; did you mean 'targets'"),
    "no stimuli": (
        toml('responses = "responses.npy"\nrows = "sorted"'),
        "does not say where the stimuli are",
    ),
    "no responses": (toml('stimuli = "stimuli"\nrows = "sorted"'), "does not say where the responses are"),
    "neither ids nor rows": (toml(MINIMAL), "does not say which row is which image"),
    "both ids and rows": (toml(SORTED + 'ids = "i.csv:id"'), "gives both ids and rows"),
    "rows otherwise": (toml(MINIMAL + 'rows = "random"'), "rows can only be 'sorted', got 'random'"),
    "wrong type": (
        toml('stimuli = 3\nresponses = "responses.npy"\nrows = "sorted"'),
        "stimuli must be a text, got 3",
    ),
    "targets a list": (
        toml(SORTED + "targets = []"),
        "targets must be a text or a table of texts per subject",
    ),
    "ceiling a text": (toml(SORTED + 'noise_ceiling = "c.npy"'), "must be a table with file, unit, of"),
    "ceiling of no column": (toml(SORTED + 'noise_ceiling = {unit = "percent"}'), "names no file"),
    "ceiling unit": (
        toml(SORTED + 'noise_ceiling = {unit = "per cent"}'),
        "unit must be fraction or percent",
    ),
    "ceiling key": (
        toml(SORTED + 'noise_ceiling = {units = "percent"}'),
        "unknown key 'units'; did you mean 'unit'",
    ),
    "no such file": (toml(SORTED.replace("responses.npy", "r.npy")), "There is no file .*r.npy"),
    "no such kind": (
        toml(SORTED.replace("responses.npy", "dataset.toml")),
        "is of no kind that is read here",
    ),
    "no such column": (
        both(MINIMAL + 'ids = "i.csv:image"', "i.csv", "id,x\na,1\n"),
        "no column 'image', only 'id', 'x'",
    ),
    "ids of another length": (
        both(MINIMAL + 'ids = "i.csv:id"', "i.csv", "id\na\n"),
        "gives 1 ids, 'responses.npy' has 12 rows",
    ),
    "ids repeat": (
        both(MINIMAL + 'ids = "i.csv:id"', "i.csv", "id\n" + "image_1\n" * 12),
        "1 ids stand in several rows, 'image_1'",
    ),
    "ids without image": (
        both(MINIMAL + 'ids = "i.csv:id"', "i.csv", "id\n" + "".join(f"img{k}\n" for k in range(12))),
        "12 of 12 ids have no image in .*'img0', 'img1', 'img2', …",
    ),
    "percent that is none": (
        both(
            SORTED + 'targets = "t.csv"\nnoise_ceiling = {unit = "percent"}',
            "t.csv",
            "noise_ceiling\n" + ".5\n" * 8,
        ),
        "said to be percent but reach only 0.5",
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_table(tmp_path, case):
    spoil, message = TABLE[case]
    folder = make_table_dataset(tmp_path / "data", n=12)
    load_dataset(f"table:{folder}")
    spoil(folder)
    with pytest.raises(DatasetError, match=message):
        load_dataset(f"table:{folder}")


FMRI = "training_split/training_fmri/lh_training_fmri.npy"
ALGONAUTS = {
    "rows missing": (FMRI, np.zeros((5, 64)), "6 train images and 5 rows of lh responses"),
    "not a matrix": (FMRI, np.zeros(6), r"has shape \(6,\); \(images, vertices\) is needed"),
    "a mask of another length": (
        "roi_masks/lh.streams_challenge_space.npy",
        np.zeros(9),
        r"shape \(9,\), the responses of that hemisphere have 64",
    ),
    "a label without name": (
        "roi_masks/lh.streams_challenge_space.npy",
        np.full(64, 99),
        r"labels \[99\] that its mapping does not name",
    ),
    "a ceiling of another length": (
        "test_split/noise_ceiling/rh_noise_ceiling.npy",
        np.zeros(3),
        "3 ceilings for 72 vertices",
    ),
    "a ceiling out of range": (
        "test_split/noise_ceiling/rh_noise_ceiling.npy",
        np.full(72, 400.0),
        "neither fractions",
    ),
    "a mapping of numbers": ("roi_masks/mapping_streams.npy", np.zeros(3), "is no mapping of the challenge"),
    "a file missing": (FMRI, None, "There is no file .*lh_training_fmri.npy.*download may be incomplete"),
    "a mapping missing": ("roi_masks/mapping_streams.npy", None, "There is no file .*mapping_streams.npy"),
    "a ceiling missing": (
        "test_split/noise_ceiling/rh_noise_ceiling.npy",
        None,
        "beside the ceiling of the other",
    ),
}


@pytest.mark.parametrize("case", ALGONAUTS)
def test_algonauts2023(tmp_path, case):
    name, value, message = ALGONAUTS[case]
    home = make_algonauts2023(tmp_path, n_train=6, ceiling="fraction")
    (home / name).unlink()
    if value is not None:
        np.save(home / name, value)
    with pytest.raises(DatasetError, match=message):
        load_dataset(f"algonauts2023:{tmp_path}")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("tabel:x", "did you mean table:x"),
        ("recordings", "not of the form KIND:PLACE; KIND is one of table"),
        ("/", "to read what lies at that path write table:/"),
        ("table:", "names no folder: write table:DIR"),
        ("table:nowhere", "no folder or TOML file 'nowhere'"),
        ("algonauts2023:nowhere", "no folder 'nowhere'"),
        ("algonauts2023:.", "holds no subject of the challenge"),
        ("algonauts2019:x", "There is no folder 'x': write algonauts2019:DIR"),
        ("synthetic:noize=1", "no option 'noize'; did you mean 'noise'"),
        ("synthetic:n=many", "needs n= a number from 10"),
        ("synthetic:n=1", "needs n= a number from 10 to 100000, got '1'"),
        ("synthetic:noise=-1", "needs noise= a number from 0"),
        ("synthetic:targets=41", "must be a multiple of 8, got 41"),
    ],
)
def test_data(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=message):
        load_dataset(data)
