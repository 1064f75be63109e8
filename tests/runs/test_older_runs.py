"""Run folders of other versions."""

from __future__ import annotations

import shutil
import zipfile

import pytest

from featpipe import RidgeEncoder
from featpipe.errors import RecipeError
from featpipe.runs import RunFolder


@pytest.mark.parametrize("moved", ["featpipe.encoding._nowhere", "featpipe.nowhere.encoder"])
@pytest.mark.parametrize("trust", [False, True])
def test_a_class_that_has_moved_is_said_to_be_of_another_version(plain, tmp_path, moved, trust):
    run = RunFolder(shutil.copytree(plain.path, tmp_path / "run"))
    with zipfile.ZipFile(plain.path / "pipeline.skops") as there:
        files = {name: there.read(name) for name in there.namelist()}
    files["schema.json"] = files["schema.json"].replace(RidgeEncoder.__module__.encode(), moved.encode())
    with zipfile.ZipFile(run.path / "pipeline.skops", "w") as other:
        for name, content in files.items():
            other.writestr(name, content)
    with pytest.raises(RecipeError, match=rf"{moved}\.RidgeEncoder, .* saved by another version"):
        run.load_pipeline(trust=trust)
