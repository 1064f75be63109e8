"""A training that was killed ends as one that was not; a state of another training, or a damaged one, is refused."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from featpipe.errors import CacheCorrupt, CacheWriteError, RequestError
from featpipe.tuning import Training, train
from featpipe.tuning.heads._columns import Columns
from featpipe.tuning.heads._linear_module import LinearModule
from featpipe.tuning.heads._objective import SquaredError

FAST = Training(learning_rate=0.05, batch_size=8, max_epochs=8, patience=None, device="cpu", clip=1.0)
ROWS, HELD_OUT = np.arange(30), np.arange(30, 40)


def _problem(*, owners: bool):
    """Return a module, its loss and what `train` is told of it: a net with batch norm and dropout, or two ROIs."""
    rng = np.random.default_rng(0)
    X = torch.as_tensor(rng.standard_normal((40, 4)), dtype=torch.float32)
    Y = X @ torch.as_tensor(rng.standard_normal((4, 6)), dtype=torch.float32)
    Y[:, 3:] = torch.as_tensor(rng.standard_normal((40, 3)))  # of noise alone: the second ROI stops early
    generator = torch.Generator().manual_seed(0)
    if owners:
        columns = Columns(("one", "two"), np.arange(6), np.array([0, 0, 0, 1, 1, 1]), 6)
        module = LinearModule(columns, 4, zeros=False, generator=generator)
        loss = SquaredError(module, X, Y, weight=None, n_parts=2)
        return module, loss, {"names": ("one", "two"), "owners": module.owners()}
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 6))
    for p in module.parameters():
        p.data = torch.empty_like(p).normal_(0, 0.3, generator=generator)
    module[3].bias.requires_grad_(False)

    def loss(rows, generator):
        return (module(X[rows]) - Y[rows]).square().sum()[None], torch.tensor([6.0 * len(rows)])

    return module, loss, {"from_start": True}


def _bits(module, history):
    tensors = [*module.parameters(), *module.buffers()]
    seen = [value.tobytes() for value in history.table().values()]
    return b"".join([t.detach().numpy().tobytes() for t in tensors] + seen)


def _run(path=None, training=FAST, *, owners=False, on_epoch=None, **changed):
    module, loss, told = _problem(owners=owners)
    given = {"rows": ROWS, "held_out": HELD_OUT, "saved": path, **told, **changed}
    return module, train(module, loss, training, on_epoch=on_epoch, **given)


def _stop_after(number):
    def stop(epoch):
        if epoch.number == number:
            raise KeyboardInterrupt

    return stop


ALONE = replace(FAST, patience=2, max_epochs=25)  # parts stop at different epochs
OPTIMISERS = [replace(FAST, optimiser=name) for name in ("adamw", "adam", "sgd")]


@pytest.mark.parametrize("training", [*OPTIMISERS, replace(FAST, schedule="one-cycle")])
def test_stopped_after_any_epoch_it_ends_as_if_undisturbed(tmp_path, training):
    expected = _bits(*_run(training=training))
    for number in range(0, 9, 2):
        path = tmp_path / f"{number}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            _run(path, training, on_epoch=_stop_after(number))
        assert _bits(*_run(path, training)) == expected


def test_parts_that_were_cut_out_stay_out(tmp_path):
    module, history = _run(training=ALONE, owners=True)
    ends = np.isfinite(np.stack(history.held_out_loss)).sum(axis=0)
    assert ends[0] != ends[1]
    for number in (1, int(ends.min()), int(ends.min()) + 1, int(ends.max())):
        path = tmp_path / f"{number}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            _run(path, ALONE, owners=True, on_epoch=_stop_after(number))
        assert _bits(*_run(path, ALONE, owners=True)) == _bits(module, history)


def test_killed_at_random_moments_it_ends_as_if_undisturbed(tmp_path):
    program = [sys.executable, __file__, str(tmp_path)]  # its children are killed: torch is imported once
    found = subprocess.run(program, capture_output=True, text=True, timeout=250, check=True)
    for line in found.stdout.splitlines():
        told = json.loads(line)
        assert any(0 < number < LONG.max_epochs for number in told["seen"]), "no child was killed on its way"
        assert told["resumed"] == told["undisturbed"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net", "parts"]


LONG = replace(FAST, max_epochs=80)


def _kill_children(path: Path, owners: bool) -> list[int]:
    """Start the training, and kill it, again and again; return the epochs that were saved each time."""
    rng, seen = np.random.default_rng(0), []
    for _ in range(6):
        if _epochs(path) == LONG.max_epochs:  # a finished one writes nothing any more
            break
        before = path.stat().st_mtime_ns if path.exists() else None
        child = os.fork()
        if child == 0:
            _run(path, LONG, owners=owners)
            os._exit(0)
        while not path.exists() or path.stat().st_mtime_ns == before:
            time.sleep(1e-3)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen.append(_epochs(path))
    return seen


def _epochs(path: Path) -> int:
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        return len(file.get_tensor("history/learning_rate"))


def test_a_finished_training_is_not_done_again(tmp_path):
    path, told = tmp_path / "state.safetensors", []
    expected = _bits(*_run(path))
    written = path.read_bytes()

    assert _bits(*_run(path, on_epoch=lambda epoch: told.append(epoch.number))) == expected
    assert told == [8]  # its last, once more
    assert path.read_bytes() == written


def test_more_epochs_may_be_asked_for_and_fewer_not(tmp_path):
    path = tmp_path / "state.safetensors"
    _run(path)
    longer = replace(FAST, max_epochs=11)
    assert _bits(*_run(path, longer)) == _bits(*_run(training=longer))
    with pytest.raises(RequestError, match="holds 11 epochs, more than max_epochs=8"):
        _run(path)


def test_a_final_training_keeps_its_best_alone(tmp_path):
    path, again = tmp_path / "final.safetensors", tmp_path / "not.safetensors"
    expected = _bits(*_run())
    assert _bits(*_run(path, final=True)) == expected
    _run(again)
    assert path.stat().st_size < again.stat().st_size
    assert _bits(*_run(path, final=True)) == expected


OTHERS = {
    "learning_rate": (0.1, "learning_rate was 0.05 and is 0.1"),
    "clip": (None, "clip was 1.0 and is None"),
    "optimiser": ("adam", "optimiser was adamw and is adam"),
    "weight_decay": (0.0, "weight_decay was 0.01 and is 0.0"),
    "batch_size": (4, "batch_size was 8 and is 4"),
    "schedule": ("one-cycle", "schedule was step and is one-cycle"),
    "seed": (3, "seed was 0 and is 3"),
    "patience": (3, "patience was None and is 3"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_another_training_is_refused_and_left_alone(tmp_path, name):
    path = tmp_path / "state.safetensors"
    _run(path, replace(FAST, max_epochs=1))
    written = path.read_bytes()
    value, message = OTHERS[name]
    with pytest.raises(RequestError, match=f"holds another training: .*{message}.*Name another file"):
        _run(path, replace(FAST, **{name: value}))
    assert path.read_bytes() == written


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": np.arange(29)}, r"rows was int64\[30\] .* and is int64\[29\]"),
        ({"held_out": None}, r"held_out was int64\[10\] .* and is none"),
        ({"from_start": False}, "from_start was True and is False"),
        ({"fingerprint": "others"}, "fingerprint was  and is others"),
        ({"owners": True}, r"parts was \['all'\] and is \['one', 'two'\].*; and \d+ more"),
    ],
)
def test_other_stimuli_or_another_module_are_refused(tmp_path, changed, message):
    path = tmp_path / "state.safetensors"
    _run(path, replace(FAST, max_epochs=1))
    with pytest.raises(RequestError, match=message):
        _run(path, **changed)


def test_other_weights_to_start_from_are_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    module, loss, told = _problem(owners=False)
    given = {"rows": ROWS, "held_out": HELD_OUT, "saved": path, **told}
    train(module, loss, FAST, **given)
    with pytest.raises(
        RequestError, match=r"tensor 0.weight was float32\[8, 4\] \w+ trained and is float32\[8, 4\]"
    ):
        train(module, loss, FAST, **given)


def test_a_flipped_byte_anywhere_is_an_error(tmp_path):
    path = tmp_path / "state.safetensors"
    _run(path)
    written = path.read_bytes()
    for place in np.random.default_rng(0).integers(8, len(written), 40):
        path.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        with pytest.raises((CacheCorrupt, RequestError), match=r"damaged|no saved training"):
            _run(path)
    path.write_bytes(written[:-7])
    with pytest.raises(CacheCorrupt, match=r"cannot be read as a saved training .*Delete it"):
        _run(path)


def test_a_file_of_another_kind_is_not_overwritten(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(RequestError, match="is no saved training, but other tensors"):
        _run(path)
    assert path.stat().st_size < 200


def test_a_full_disk_leaves_the_former_state(tmp_path):
    path = tmp_path / "state.safetensors"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(epoch):
        if epoch.number == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    try:
        with pytest.raises(
            CacheWriteError, match=r"cannot be saved to .* after epoch 4.*saved before is still there"
        ):
            _run(path, on_epoch=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    told = []
    assert _bits(*_run(path, on_epoch=lambda epoch: told.append(epoch.number))) == _bits(*_run())
    assert told[0] == 3


def test_what_cannot_change_is_not_kept(tmp_path):
    path = tmp_path / "state.safetensors"
    module = nn.Sequential(nn.Linear(4, 500), nn.Linear(500, 1))
    module[0].requires_grad_(False)
    module.register_buffer("table", torch.zeros(10_000))
    X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))

    def loss(rows, generator):
        return module(X[rows]).square().sum()[None], torch.tensor([float(len(rows))])

    train(module, loss, replace(FAST, max_epochs=1), rows=ROWS, saved=path)
    with safe_open(path, framework="pt") as file:
        names = {name for name in file.keys() if not name.startswith(("history", "moment"))}
    assert names == {"now/1.weight", "now/1.bias"}  # without held-out stimuli the last epoch is the best


def test_a_layer_that_a_callback_frees_is_free_again(tmp_path):
    def run(path, stop=None):
        module, loss, told = _problem(owners=False)
        module[0].requires_grad_(False)

        def free(epoch):
            if epoch.number == 2:
                module[0].requires_grad_(True)
            if epoch.number == stop:
                raise KeyboardInterrupt

        groups = [{"params": module[3].parameters()}, {"params": module[0].parameters(), "lr": 0.01}]
        given = {"rows": ROWS, "held_out": HELD_OUT, "groups": groups, **told}
        return _bits(module, train(module, loss, FAST, on_epoch=free, saved=path, **given))

    expected = run(None)
    for stop in (1, 2, 3, 5):
        path = tmp_path / f"{stop}.safetensors"
        with pytest.raises(KeyboardInterrupt):
            run(path, stop)
        assert run(path) == expected


def test_weights_in_channels_last_go_on_with_the_same_bits(tmp_path):
    def run(path, stop=None):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(20, 1))
            X = torch.randn(40, 3, 4, 4)
        module.to(memory_format=torch.channels_last)

        def loss(rows, generator):
            return module(X[rows]).square().sum()[None], torch.tensor([float(len(rows))])

        callback = None if stop is None else _stop_after(stop)
        history = train(module, loss, FAST, rows=ROWS, held_out=HELD_OUT, saved=path, on_epoch=callback)
        assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
        return _bits(module, history)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state.safetensors", 3)
    assert run(tmp_path / "state.safetensors") == run(None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _run(training=replace(LONG, max_epochs=0))  # what torch imports late, before the clock runs
    for name in ("net", "parts"):
        file, own = Path(sys.argv[1]) / name, {"owners": name == "parts"}
        about = {"seen": _kill_children(file, own["owners"])}
        # all with the same threads, which a sum's last bits depend on
        about["resumed"] = _bits(*_run(file, LONG, **own)).hex()
        about["undisturbed"] = _bits(*_run(training=LONG, **own)).hex()
        sys.stdout.write(json.dumps(about) + "\n")


def test_a_second_training_of_a_file_waits_and_finds_it_finished(tmp_path):
    path, seen, others = tmp_path / "state", [], []

    def second():
        others.append(_bits(*_run(path, owners=True, on_epoch=lambda epoch: seen.append(epoch.number))))

    thread = threading.Thread(target=second)
    first = _bits(*_run(path, owners=True, on_epoch=lambda epoch: epoch.number == 2 and thread.start()))
    thread.join()
    assert seen == [8]
    assert others == [first]
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
