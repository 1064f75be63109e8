"""A cache that a stranger made: whatever its files say, it is read rightly or refused, soon and in little memory."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer

from featpipe.cli._console import note, say
from featpipe.cli.cache._ls import ls_command
from featpipe.cli.cache._show import show_command
from featpipe.errors import FeatpipeError
from featpipe.stimuli import StimulusManifest
from featpipe.store import FeatureCache
from featpipe.testing import file_server

pytestmark = [pytest.mark.usefixtures("impatient_disk"), pytest.mark.timeout(120)]


def _opened(look):
    return lambda root: [look(FeatureCache(root).array(key)) for key in FeatureCache(root).keys()]


def _ls(root):
    for as_json in (False, True):
        try:
            ls_command(str(root), model=None, layers=None, as_json=as_json)
        except typer.Exit as end:  # arrays that were left out, and named
            if as_json or end.exit_code != 1:
                raise FeatpipeError("there are damaged arrays") from end


def _show(root):
    for key in FeatureCache(root).keys():
        show_command(key, str(root))
        show_command(key, str(root), as_json=True)


def _verify(root):
    problems = FeatureCache(root).verify()
    for problem in problems:
        say(str(problem))
    if problems:
        raise FeatpipeError("there are problems")


def _committed(array):
    return array.committed, array.complete, array.missing[:1], array.provenance, array.nbytes


ACTIONS = {
    "keys": lambda root: FeatureCache(root).keys(),
    "array": _opened(lambda array: array),
    "manifest": _opened(lambda array: array.manifest),
    "ids": _opened(lambda array: array.ids),
    "committed": _opened(_committed),
    "read": _opened(lambda array: array.read(threads=2)),
    "some rows": _opened(lambda array: array.read(np.array([20, 3, 3]))),
    "verify": _verify,
    "ls": _ls,
    "show": _show,
}


def outcome(action, root):
    """Return the error that an action ends with, None where it ends well."""
    try:
        ACTIONS[action](root)
    except FeatpipeError as error:
        return error
    return None


def require_plain(text):
    """Let no text through that a terminal obeys instead of showing."""
    bad = [
        c for c in text if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or 0x202A <= ord(c) <= 0x202E)
    ]
    assert not bad, sorted(set(bad))


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """A server, and the folder that it serves."""
    folder = tmp_path_factory.mktemp("served")
    with file_server(folder) as server:
        yield server, folder


@pytest.fixture
def copied(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "cache"))


def _tree(folder):
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def look(root, must_fail, bounded, capsys):
    """Do everything with a cache, and require of each that it ends as it may."""
    ended = {}
    for action in ACTIONS:
        with bounded():
            error = ended[action] = outcome(action, root)
        note(f"featpipe: {error}")
        require_plain("".join(capsys.readouterr()))
    for action in must_fail:
        assert action == "nothing" or ended[action] is not None, f"{action} took it for good"


def test_in_a_folder(copied, bounded, capsys, name, damage, must_fail):
    damage(copied)
    before = _tree(copied)
    look(copied, must_fail, bounded, capsys)
    assert _tree(copied) == before


def test_behind_a_web_server(good, served, bounded, capsys, monkeypatch, name, damage, must_fail):
    monkeypatch.setattr("featpipe.store.location._web._FIRST_WAIT", 0.001)
    server, folder = served
    place = folder / hashlib.sha256(name.encode()).hexdigest()[:8]
    shutil.copytree(good, place)
    damage(place)
    if name.startswith(("ids", "data.zarr/stimulus")):
        must_fail = ("verify",)
    if name.startswith("spec.json"):
        must_fail = ("verify",)  # the index has it
    if name.startswith("commits/0.json"):
        must_fail = ()  # the seal has it
    look(f"{server.url}/{place.name}", must_fail, bounded, capsys)
    shutil.rmtree(place)


def test_a_good_cache_is_read(good, bounded, capsys):
    look(good, (), bounded, capsys)
    assert all(outcome(action, good) is None for action in ACTIONS)


def test_names_of_a_strangers_making_are_shown_and_not_obeyed(tmp_path, make_strange, bounded, capsys):
    """All checksums are right, so it is a good cache; only its names are bad."""
    escapes = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202etxt.\r\n\x00\x7f"
    ids = tuple(f"{escapes}{row}" for row in range(9))
    manifest = StimulusManifest(ids, ("0" * 64,) * 9, escapes, escapes)
    told = {"weights_label": escapes, escapes: [escapes], "model_asked": escapes, "layer_order": 3}
    root = make_strange(tmp_path / "cache", manifest, told, layer=escapes, model=f"imported:{escapes}")
    for action in ("ls", "show", "verify", "read"):
        assert outcome(action, root) is None
        shown = "".join(capsys.readouterr())
        require_plain(shown)
        assert action not in ("ls", "show") or r"\x1b[31mred" in shown
    assert FeatureCache(root).arrays()[0].ids == ids


IN_A_BUCKET = (
    "metadata: 2^31 stimuli",
    "commit: size 2^53",
    "commit: size 64 MiB",
    "seal: more commits",
    "stimuli: one id",
    "chunk: a zstd bomb without its size",
    "sealed.json is 10 MiB",
    "spec.json is deep",
)


def test_in_a_bucket(copied, s3_bucket, bounded, capsys, name, damage, must_fail):
    obstore = pytest.importorskip("obstore")
    damage(copied)
    store = obstore.store.from_url(s3_bucket)
    for path in copied.rglob("*"):
        if path.is_file():
            obstore.put(store, str(path.relative_to(copied)), path.read_bytes())
    look(s3_bucket, must_fail, bounded, capsys)
