"""A claim has one owner, who is known to be alive, and goes to somebody else when that ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import pytest

from featpipe.errors import CacheBusy, CacheWriteError
from featpipe.spec import FeatureSpec, Preprocessing, Reduction
from featpipe.store import ClaimFiles, Claims, exclusive_claim, work_of
from featpipe.store.claims import _claims

WORK, FOREVER = "a" * 64, 1e9

OWNER = """
import os, sys
from pathlib import Path
from featpipe.store import ClaimFiles, Claims
root, work, first, step, stop = sys.argv[1:]
with Claims(ClaimFiles(Path(root), work), expiry=1e9) as claims:
    sys.stdin.readline()
    numbers = range(int(first), int(stop), int(step)) if int(step) > 0 else range(int(stop) - 1, int(first) - 1, -1)
    print(*[number for number in numbers if claims.take(str(number))], flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def claims_on(tmp_path):
    """Make the claims of another run on the same work."""
    return lambda expiry=FOREVER: Claims(ClaimFiles(tmp_path, WORK), expiry=expiry)


def start_owner(root, numbers):
    """Start a process that claims numbers, each once told to go on."""
    given = [str(root), WORK, *map(str, (numbers.start, numbers.step, numbers.stop))]
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, *given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()


def claim_file(root, name="0"):
    return root / "claims" / WORK / f"{name}.json"


def shift(path, seconds):
    """Make a claim look as if it was touched so many seconds earlier or, below zero, later."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_a_claim_has_one_owner_until_it_is_released(tmp_path, claims_on):
    with claims_on() as first, claims_on() as second:
        assert first.take("0")
        assert not second.take("0")
        assert second.take("1")
        assert second.holder("0").pid == os.getpid()
        first.release("0")
        assert second.take("0")
    assert list((tmp_path / "claims").iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def fail_with(claims):
    with claims:
        claims.take("0")
        raise ZeroDivisionError


def test_the_end_releases_everything_also_after_an_error(tmp_path, claims_on):
    with pytest.raises(ZeroDivisionError):
        fail_with(claims_on())
    assert not claim_file(tmp_path).exists()


def test_a_claim_that_is_not_touched_expires(tmp_path, claims_on):
    with claims_on() as stopped, claims_on(expiry=150) as other:
        stopped.take("0")
        shift(claim_file(tmp_path), 100)
        assert not other.take("0")
        shift(claim_file(tmp_path), 100)
        assert other.take("0")


def test_a_claim_that_is_held_is_touched(tmp_path, claims_on):
    with claims_on(expiry=0.1) as claims:
        claims.take("0")
        shift(claim_file(tmp_path), 1000)
        past = claim_file(tmp_path).stat().st_mtime
        while claim_file(tmp_path).stat().st_mtime < past + 500:
            time.sleep(0.01)


def test_the_robbed_leave_the_claim_of_the_thief_alone(tmp_path, claims_on):
    with claims_on(expiry=0.1) as robbed, claims_on() as thief:
        robbed.take("0")
        thief._storage.remove("0", thief._storage.look("0"))
        while not thief.take("0"):  # the robbed one may have touched it in between
            thief._storage.remove("0", thief._storage.look("0"))
        stolen = claim_file(tmp_path).read_bytes()
        shift(claim_file(tmp_path), 1000)
        before = claim_file(tmp_path).stat()
        time.sleep(0.1)  # several heartbeats of the robbed
        robbed.release("0")
        assert claim_file(tmp_path).read_bytes() == stolen
        assert claim_file(tmp_path).stat().st_mtime == before.st_mtime


def test_a_claim_that_was_touched_since_it_was_looked_at_stays(tmp_path, claims_on):
    with claims_on() as owner, claims_on() as other:
        owner.take("0")
        seen = other._storage.look("0")
        shift(claim_file(tmp_path), -1)
        other._storage.remove("0", seen)
        assert not other.take("0")


def test_one_that_was_swapped_while_it_was_moved_goes_back(tmp_path, claims_on, monkeypatch):
    with claims_on() as owner, claims_on() as other:
        owner.take("0")
        seen = other._storage.look("0")
        rename = os.rename
        monkeypatch.setattr(os, "rename", lambda a, b: (shift(claim_file(tmp_path), -1), rename(a, b)))
        other._storage.remove("0", seen)
        assert json.loads(claim_file(tmp_path).read_bytes())["owner"] == owner._owner.owner


@pytest.mark.parametrize("hours", [-30, 30])
def test_the_local_clock_is_not_asked(claims_on, monkeypatch, hours):
    with claims_on() as owner:
        owner.take("0")
        wrong = time.time() + hours * 3600
        monkeypatch.setattr(time, "time", lambda: wrong)
        with claims_on(expiry=150) as other:
            assert not other.take("0")


def test_a_clock_that_was_set_back_delays_by_one_expiry_at_most(tmp_path, claims_on, monkeypatch):
    with claims_on() as stopped, claims_on(expiry=150) as other:
        stopped.take("0")
        shift(claim_file(tmp_path), -36_000)
        assert not other.take("0")
        began = time.monotonic()
        monkeypatch.setattr(_claims.time, "monotonic", lambda: began + 149)
        assert not other.take("0")
        monkeypatch.setattr(_claims.time, "monotonic", lambda: began + 160)
        assert other.take("0")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"owner":1}', b"\xff" * 5000])
def test_a_claim_that_cannot_be_read_is_judged_by_its_age(tmp_path, claims_on, content):
    claim_file(tmp_path).parent.mkdir(parents=True)
    claim_file(tmp_path).write_bytes(content)
    with claims_on(expiry=150) as claims:
        assert not claims.take("0")
        assert claims.holder("0") is None
        shift(claim_file(tmp_path), 200)
        assert claims.take("0")


def test_the_claim_of_a_dead_owner_on_this_machine_is_taken_at_once(tmp_path, claims_on):
    with start_owner(tmp_path, range(0, 1, 1)) as owner:
        go_on(owner)
        assert owner.stdout.readline() == "0\n"
        with claims_on() as claims:
            assert not claims.take("0")
            assert claims.holder("0").pid == owner.pid
            owner.send_signal(signal.SIGKILL)
            owner.wait()
            assert claims.take("0")


def test_of_an_owner_elsewhere_only_the_age_is_known(tmp_path, claims_on, monkeypatch):
    with start_owner(tmp_path, range(0, 1, 1)) as owner:
        go_on(owner)
        owner.stdout.readline()
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    monkeypatch.setattr("featpipe.store.claims._claim_files.boot_id", lambda: "another boot")
    with claims_on(expiry=150) as claims:
        assert not claims.take("0")
        shift(claim_file(tmp_path), 200)
        assert claims.take("0")


def test_two_processes_race_for_claims_and_each_has_one_owner(tmp_path):
    with start_owner(tmp_path, range(0, 100, 1)) as up, start_owner(tmp_path, range(0, 100, -1)) as down:
        for process in (up, down):
            go_on(process)
        taken = [line.split() for line in (up.stdout.readline(), down.stdout.readline())]
        for process in (up, down):
            go_on(process)
    assert sorted(map(int, taken[0] + taken[1])) == list(range(100))


def refuse(code):
    def refused(*given, **_):
        raise OSError(code, os.strerror(code))

    return refused


def test_claims_work_without_hard_links(tmp_path, claims_on, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    with claims_on() as first, claims_on(expiry=150) as second:
        assert first.take("0")
        assert not second.take("0")
        shift(claim_file(tmp_path), 200)
        assert second.take("0")
        first.release("0")
        assert claim_file(tmp_path).exists()


def test_without_locks_a_claim_is_judged_by_its_age(tmp_path, claims_on, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    with claims_on() as first, claims_on(expiry=150) as second:
        assert first.take("0")
        monkeypatch.undo()  # whoever looks could lock it
        assert not second.take("0")


def test_a_cache_that_cannot_be_written_is_told(tmp_path, claims_on, monkeypatch):
    monkeypatch.setattr(os, "open", refuse(errno.EROFS))
    with claims_on() as claims, pytest.raises(CacheWriteError, match="read-only"):
        claims.take("0")


CHANGES = {
    "model": "timm:other",
    "weights": "1" * 64,
    "layer": "layer2",
    "preprocessing": Preprocessing(32, (32, 32), "bilinear", (0.5,) * 3, (0.5,) * 3),
    "model_args": (("a", 1),),
    "code": "2" * 64,
    "call": 1,
    "element": "x",
    "prefix_tokens": 1,
    "layout": "channels_last",
    "reduction": Reduction("mean"),
    "reduction_version": 2,
    "store_dtype": "float16",
    "precision": "bf16",
    "view": 1,
    "augmentation": "crop:0.875:1",
    "view_seed": 1,
}
OF_THE_LAYER = {
    *("layer", "call", "element", "prefix_tokens", "layout"),
    *("reduction", "reduction_version", "store_dtype"),
}


@pytest.mark.parametrize("field", [field.name for field in fields(FeatureSpec)])
def test_layers_of_one_pass_are_one_work_and_other_passes_another(make_spec, field):
    spec = make_spec()
    changed = replace(spec, **{field: CHANGES[field]})
    assert (work_of(changed, WORK) == work_of(spec, WORK)) == (field in OF_THE_LAYER)
    assert work_of(spec, "b" * 64) != work_of(spec, WORK)


def test_an_exclusive_claim_names_who_has_it(tmp_path):
    with exclusive_claim(tmp_path, WORK):
        with (
            pytest.raises(CacheBusy, match=f"process {os.getpid()} on .* 150 seconds"),
            exclusive_claim(tmp_path, WORK),
        ):
            pytest.fail("two at once")
        with exclusive_claim(tmp_path, "b" * 64):
            pass  # another array
    with exclusive_claim(tmp_path, WORK):
        pass
