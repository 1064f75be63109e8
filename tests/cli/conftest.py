"""A folder with a bit of everything that commands take, good and bad, and a way to run commands in it."""

from __future__ import annotations

import io
import json
import os
import shlex
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featpipe.cli import main
from featpipe.testing import make_algonauts2019, make_algonauts2023, make_images, make_table_dataset

TINY_NET = """
import torch
from torch import nn


class Pair(nn.Module):
    def forward(self, x):
        return x, x.mean((2, 3))


def build():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("stem", nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(inplace=True)))
    net.add_module("head", nn.Conv2d(8, 4, 3, stride=2))
    size = {"resize": 36, "crop": [32, 32], "interpolation": "bilinear"}
    return net, {**size, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def build_pair():
    net, preprocessing = build()
    net.add_module("pair", Pair())
    return net, preprocessing


def build_text():
    return "no network"
"""
MODEL = "--model python:tiny.py:build --trust"
EXTRACT = f"extract {MODEL} --layers stem:grid:2 --layers head:mean --images table:table --cache cache"
RDM_EXTRACT = (
    f"extract {MODEL} --layers stem:mean --layers head:mean --images algonauts2019:rdm --cache rdmcache"
)
RDM_FIT = (
    "fit baseline_algonauts2019 --data algonauts2019:rdm --target EVC --cache rdmcache "
    "--set features__layers=head --out evc"
)
TUNER = """
from sklearn.pipeline import Pipeline
from featpipe.recipes import Recipe
from featpipe.tuning.rdms._siamese_tuner import SiameseTuner

small = {"weights": "random:0", "image_size": 32, "max_epochs": 1, "validation_fraction": 0}
RECIPE = Recipe(
    summary="A tiny network",
    citation="nobody",
    pipeline=Pipeline([("tuner", SiameseTuner("timm:test_resnet", "layer1:mean", **small))]),
    data=("algonauts2019", "table"),
    scoring=("rdm_rho", "rdm_r2", "rdm_percent"),
    search_scoring="rdm_rho",
    cv="set",
)
"""
TUNE = "fit tuner.py --data algonauts2019:rdm --target EVC --out tuned --threads 1"
FIT = "fit baseline_ridge --data table:table --cache cache --set features__layers=stem --cv 3 --out run"


def _main(words: str) -> int:
    try:
        main(shlex.split(words))
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def _write_stimuli(root: Path) -> None:
    make_images(root / "images", [f"new_{number}.png" for number in range(6)], size=40, seed=7)
    good = (root / "images" / "new_0.png").read_bytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    jpeg = io.BytesIO()
    noise.save(jpeg, "JPEG")
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    folders = {
        "broken": {"good.png": good, "broken.png": b"this is no image"},
        "truncated": {"good.png": good, "half.jpg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2]},
        "bomb": {"bomb.png": bomb.getvalue()},
        "twice": {"a.png": good, "a.jpg": jpeg.getvalue()},
        "empty": {},
    }
    for folder, files in folders.items():
        (root / folder).mkdir()
        for name, content in files.items():
            (root / folder / name).write_bytes(content)
    with zipfile.ZipFile(root / "evil.zip", "w") as archive:
        archive.writestr("../outside.png", good)
    with tarfile.open(root / "evil.tar", "w") as archive:
        entry = tarfile.TarInfo("/outside.png")
        entry.size = len(good)
        archive.addfile(entry, io.BytesIO(good))


def _write_arrays(root: Path) -> None:
    np.save(root / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(root / "vectors.npy", np.zeros((4, 5), np.float32))
    np.save(root / "rows39.npy", np.zeros((39, 2), np.float32))
    np.save(root / "nan.npy", np.full((40, 2), np.nan))
    np.save(root / "embedding.npy", np.random.default_rng(3).standard_normal((40, 5)))
    ids = [f"image_{number}" for number in range(40)]
    (root / "ids.csv").write_text("\n".join(["id", *ids]) + "\n")
    (root / "ids_twice.csv").write_text("\n".join(["id", *ids[:39], ids[0]]) + "\n")
    (root / "names.csv").write_text("\n".join(["name", *ids]) + "\n")
    (root / "away.csv").write_text("id,path\na,images/nothing.png\n")
    (root / "junk.pth").write_bytes(b"not a checkpoint")
    (root / "junk.zip").write_bytes(b"not an archive")
    (root / "notes.txt").write_text("hello")


def _write_datasets(root: Path) -> None:
    make_table_dataset(root / "table", n=40)
    make_table_dataset(root / "split", n=24, splits=True, seed=2)
    make_algonauts2023(root / "alg", subject=1, n_train=12, n_test=4)
    make_algonauts2023(root / "alg", subject=2, n_train=12, n_test=4)
    for name, text in {
        "typo": 'stimuli = "stimuli"\nrows = "sorted"\nresponse = "responses.npy"\n',
        "unordered": 'stimuli = "stimuli"\nresponses = "responses.npy"\n',
        "percent": 'stimuli = "stimuli"\nrows = "sorted"\nresponses = "responses.npy"\n'
        'targets = "percent.csv"\n',
        "negative": 'stimuli = "stimuli"\nrows = "sorted"\nresponses = "responses.npy"\n'
        'targets = "negative.csv"\n',
        "tested": 'stimuli = "stimuli"\nrows = "sorted"\nresponses = "responses.npy"\nsplits = "tested.csv"\n',
        "misnamed": 'stimuli = "stimuli"\nrows = "sorted"\nresponses = "responses.npy"\n'
        'splits = "misnamed.csv"\n',
        "torn": 'stimuli = "stimuli"\nrows = "sorted"\nresponses = "torn.npy"\n',
        "short": 'stimuli = "stimuli"\nrows = "sorted"\nresponses = "../rows39.npy"\n',
    }.items():
        (root / "table" / f"{name}.toml").write_text(text)
    (root / "table" / "percent.csv").write_text("roi,noise_ceiling\n" + "V1v,47.5\n" * 8)
    (root / "table" / "negative.csv").write_text("roi,noise_ceiling\n" + "V1v,-0.2\n" * 8)
    for name, ending in {"tested": "", "misnamed": ".png"}.items():
        rows = [f"image_{number}{ending},test" for number in range(40)]
        (root / "table" / f"{name}.csv").write_text("\n".join(["id,split", *rows]) + "\n")
    (root / "table" / "torn.npy").write_bytes((root / "table" / "responses.npy").read_bytes()[:700])


def _write_rdms(root: Path) -> None:
    make_algonauts2019(root / "rdm", sets={"92": 20, "118": 21}, n_test=6, n_subjects=3, test_targets=True)
    make_algonauts2019(root / "untold", sets={"92": 6}, n_subjects=2)
    (root / "untold" / "Training_Data" / "92_Image_Set" / "target_fmri.mat").unlink()
    (root / "untold" / "Training_Data" / "92_Image_Set" / "target_meg.mat").unlink()
    names = [f"image_{number}" for number in range(6)]
    make_images(root / "own" / "stimuli", [f"{name}.png" for name in names], size=24)
    values = np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))[None].repeat(3, axis=0)
    skew, empty = values.copy(), values.copy()
    skew[1, 0, 2] = 9
    empty[2] = np.nan
    for name, array in {"good": values, "few": values[:, :5, :5], "skew": skew, "empty": empty}.items():
        np.save(root / "own" / f"{name}.npy", array)
        text = f'stimuli = "stimuli"\nrows = "sorted"\nrdms = "{name}.npy"\n'
        (root / "own" / f"{name}.toml").write_text(text)
    both = 'stimuli = "stimuli"\nrows = "sorted"\nrdms = "good.npy"\nresponses = "good.npy"\n'
    (root / "own" / "both.toml").write_text(both)
    np.savez(root / "five.npz", EVC_RDMs=values[0, :5, :5])
    np.savez(root / "other.npz", V4_RDMs=values[0])
    np.savez(root / "flat.npz", EVC_RDMs=values[0, 0])
    np.savez(root / "skew.npz", EVC_RDMs=skew[1])
    np.savez(root / "seen.npz", EVC_RDMs=values[0], ids=names, in_training=np.ones(6, dtype=bool))


def _write_weights(root: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from featpipe.models import ModelRequest, load

    state = load(ModelRequest("torchvision:squeezenet1_0", "random:0")).module.state_dict()
    save_file(
        {name: v for name, v in state.items() if "classifier" not in name}, root / "partial.safetensors"
    )
    save_file({"other.weight": torch.zeros(3)}, root / "unfit.safetensors")


def _write_recipes(root: Path) -> None:
    (root / "tiny.py").write_text(TINY_NET)
    (root / "tuner.py").write_text(TUNER)
    (root / "norecipe.py").write_text("x = 1\n")
    (root / "failing.py").write_text("import nothing_of_that_name\n")
    (root / "syntax.py").write_text("RECIPE = (\n")


def _build(root: Path) -> None:
    _write_stimuli(root)
    _write_arrays(root)
    _write_datasets(root)
    _write_recipes(root)
    _write_weights(root)
    _write_rdms(root)
    for words in (
        RDM_EXTRACT,
        RDM_FIT,
        EXTRACT,
        EXTRACT.replace("stem:grid:2", "stem:mean"),
        FIT + " --set features__reduce=mean",
        TUNE,
    ):
        assert _main(words) == 0
    spoilt = bytearray((root / "tuned" / "tuned.safetensors").read_bytes())
    spoilt[len(spoilt) // 2] ^= 0xFF
    (root / "spoilt.safetensors").write_bytes(spoilt)
    make_images(root / "classes" / "few", [f"{n}.png" for n in range(3)], size=24)
    make_images(root / "classes" / "many", [f"{n}.png" for n in range(9)], size=24, seed=1)
    (root / "notarun").mkdir()
    (root / "damaged").mkdir()
    (root / "damaged" / "run.json").write_text("{")
    (root / "damaged" / "summary.json").write_text("{}")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The folder. Tests leave it as it is; those that write name files elsewhere."""
    root = tmp_path_factory.mktemp("world")
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("world-cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        os.chdir(root)
        try:
            _build(root)
        finally:
            os.chdir(before)
    return root


@pytest.fixture
def featpipe(world, monkeypatch, capfd):
    """Return a function that runs a command inside the world: (exit code, stdout, stderr)."""
    monkeypatch.chdir(world)

    def run(words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = _main(words)
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def featpipe_json(featpipe):
    """Return a function that runs a command with ``--json`` and reads the one object on stdout."""

    def run(words: str, code: int = 0):
        came, out, err = featpipe(words + " --json")
        assert came == code, err
        assert out.count("\n") == 1, out
        return json.loads(out)

    return run
