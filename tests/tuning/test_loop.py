"""The loop trains any module as a naive loop does, restores the best epoch and is the same twice."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from featpipe.errors import RequestError, WorkError
from featpipe.tuning import Training, train

FAST = Training(learning_rate=0.05, batch_size=8, max_epochs=6, patience=None, device="cpu")


class Regression:
    """Mean squared error of a module of one output: one part."""

    def __init__(self, module, n_stimuli=40):
        rng = np.random.default_rng(3)
        self.module, self.seen = module, []
        self.X = torch.as_tensor(rng.standard_normal((n_stimuli, 4)), dtype=torch.float32)
        self.y = self.X @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])

    def __call__(self, rows, generator):
        if generator is not None:
            self.seen.append(rows.numpy())
        return (self.module(self.X[rows]) - self.y[rows]).square().sum()[None], torch.tensor(
            [float(len(rows))]
        )


def _net(dropout=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1))


def _weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).numpy()


def _trained(training=FAST, *, dropout=0.0, rows=None, **given):
    module = _net(dropout)
    objective = Regression(module)
    rows = np.arange(30) if rows is None else rows
    history = train(module, objective, training, rows=rows, **given)
    return module, objective, history


def test_every_epoch_sees_each_stimulus_once_in_even_batches():
    rows = np.arange(5, 32)
    _, objective, _ = _trained(rows=rows)
    batches = objective.seen[:4]  # 27 in batches of at most 8
    assert sorted(len(batch) for batch in batches) == [6, 7, 7, 7]
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), rows)
    assert not np.array_equal(objective.seen[0], objective.seen[4])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_one_seed_gives_identical_weights_and_leaves_global_generators_alone(dropout):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = _weights(_trained(dropout=dropout)[0])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    np.testing.assert_array_equal(_weights(_trained(dropout=dropout)[0]), first)
    assert not np.array_equal(_weights(_trained(replace(FAST, seed=1), dropout=dropout)[0]), first)


def test_step_schedule_is_torchs():
    training = replace(FAST, decay=0.5, decay_every=2)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 2, 0.5)
    for epoch in range(7):
        assert {training.rate(step, 4) for step in range(epoch * 4, epoch * 4 + 4)} == set(
            schedule.get_last_lr()
        )
        optimiser.step()
        schedule.step()


@pytest.mark.parametrize("n_epochs", [1, 3, 10])
def test_one_cycle_is_torchs(n_epochs):
    training = replace(FAST, schedule="one-cycle", max_epochs=n_epochs)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.0, 5 * n_epochs, cycle_momentum=False)
    for step in range(5 * n_epochs - 1):
        assert training.rate(step, 5) == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()


def test_the_first_epochs_of_a_longer_cycle_are_its_beginning():
    whole = replace(FAST, schedule="one-cycle", max_epochs=10)
    first = replace(whole, max_epochs=4, cycle_epochs=10)
    assert _trained(first)[2].learning_rate == _trained(whole)[2].learning_rate[:4]


def test_parameter_groups_have_their_own_rates():
    module = _net()
    start = [p.detach().clone() for p in module.parameters()]
    groups = [{"params": module[0].parameters(), "lr": 0.0}, {"params": module[3].parameters()}]
    seen = []
    training = replace(FAST, decay=0.5, decay_every=1, max_epochs=2)
    train(
        module,
        Regression(module),
        training,
        rows=np.arange(30),
        groups=groups,
        on_epoch=lambda epoch: seen.append([group["lr"] for group in epoch.optimiser.param_groups]),
    )
    assert seen == [[0.0, 0.05], [0.0, 0.025]]
    moved = [not torch.equal(p, q) for p, q in zip(module.parameters(), start, strict=True)]
    assert moved == [False, False, True, True]


def test_frozen_parameters_stay():
    module = _net()
    module[0].requires_grad_(False)
    start = module[0].weight.clone()
    train(module, Regression(module), FAST, rows=np.arange(30))
    assert torch.equal(module[0].weight, start)


def test_the_best_epoch_is_restored_and_patience_stops():
    held_out = np.arange(30, 40)
    longer = replace(FAST, learning_rate=0.5, max_epochs=60, patience=4, schedule="fixed")
    module, _, history = _trained(longer, held_out=held_out)
    losses = np.concatenate(history.held_out_loss)
    best = int(history.best_epoch[0])
    assert best == losses.argmin() + 1
    assert len(losses) == best + 4 < 60
    again, _, _ = _trained(replace(longer, max_epochs=best, patience=None))
    np.testing.assert_array_equal(_weights(module), _weights(again))


def test_nothing_stops_before_min_epochs():
    impatient = replace(FAST, learning_rate=0.5, max_epochs=40, patience=1, schedule="fixed")
    _, _, history = _trained(impatient, held_out=np.arange(30, 40))
    early = len(history.learning_rate)
    _, _, history = _trained(replace(impatient, min_epochs=early + 5), held_out=np.arange(30, 40))
    assert len(history.learning_rate) >= early + 5


def test_held_out_losses_are_of_the_whole_and_in_evaluation_mode():
    module, objective, history = _trained(
        replace(FAST, max_epochs=1), dropout=0.5, held_out=np.arange(30, 40)
    )
    with torch.no_grad():
        errors = (module(objective.X[30:]) - objective.y[30:]).square().mean()
    assert history.held_out_loss[0][0] == pytest.approx(float(errors), rel=1e-5)
    assert not module.training


def test_clipping_is_torchs(monkeypatch):
    clipped = []
    original = nn.utils.clip_grad_norm_
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *a: clipped.append(original(*a)))
    training = replace(FAST, optimiser="sgd", momentum=0.0, weight_decay=0.0, clip=1e-3, schedule="fixed")
    start = _weights(_net())
    moved = _weights(_trained(replace(training, max_epochs=1))[0]) - start
    assert len(clipped) == 4
    assert np.linalg.norm(moved) <= 4 * 0.05 * 1e-3 * 1.001


def test_a_callback_sees_every_epoch():
    seen = []
    _trained(on_epoch=lambda epoch: seen.append((epoch.number, len(epoch.history.train_loss))))
    assert seen == [(n, n) for n in range(1, 7)]


def test_bf16_computes_less_exactly_and_keeps_weights_in_float32():
    slow = replace(FAST, learning_rate=5e-3)
    exact, low = _trained(slow)[0], _trained(replace(slow, precision="bf16"))[0]
    moved = np.abs(_weights(exact) - _weights(_net())).max()
    assert 0 < np.abs(_weights(exact) - _weights(low)).max() < 0.1 * moved
    assert next(low.parameters()).dtype == torch.float32


def test_divergence_at_once_is_an_error_and_later_goes_back_to_the_best_epoch():
    wild = replace(FAST, optimiser="sgd", learning_rate=1e30, schedule="fixed")
    with pytest.raises(WorkError, match=r"'all' diverged in its first epoch.*Lower learning_rate \(1e\+30\)"):
        _trained(wild)

    def ruin(epoch):
        if epoch.number == 2:
            next(epoch.module.parameters()).data.fill_(np.nan)

    module, _, history = _trained(held_out=np.arange(30, 40), on_epoch=ruin)
    assert np.isfinite(_weights(module)).all()
    assert len(history.train_loss) == 3


@pytest.mark.parametrize("schedule", ["fixed", "step", "one-cycle"])
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_schedules_train_as_with_torchs_own(name, schedule):
    rate = 0.01
    training = replace(
        FAST,
        optimiser=name,
        learning_rate=rate,
        weight_decay=0.1,
        decay=0.5,
        decay_every=2,
        schedule=schedule,
    )
    module, objective, history = _trained(training, from_start=True)
    bare = _net()
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name]
    more = {"momentum": 0.9} if name == "sgd" else {}
    optimiser = kind(bare.parameters(), lr=rate, weight_decay=0.1, **more)
    n_steps = len(objective.seen)
    schedules = {
        "fixed": lambda: torch.optim.lr_scheduler.ConstantLR(optimiser, 1.0),
        "step": lambda: torch.optim.lr_scheduler.StepLR(optimiser, 2 * n_steps // 6, 0.5),
        "one-cycle": lambda: torch.optim.lr_scheduler.OneCycleLR(
            optimiser, rate, n_steps, cycle_momentum=False
        ),
    }
    scheduler = schedules[schedule]()
    for rows in objective.seen:
        optimiser.zero_grad()
        nn.functional.mse_loss(bare(objective.X[rows]), objective.y[rows]).backward()
        optimiser.step()
        seen = optimiser.param_groups[0]["lr"]
        scheduler.step()
    np.testing.assert_allclose(_weights(module), _weights(bare), rtol=1e-4, atol=1e-6)
    assert history.learning_rate[-1] == pytest.approx(seen)


def test_epoch_0_is_the_best_where_there_is_nothing_to_learn():
    """Targets of noise: a few epochs on the fitted ones lose on the others."""
    module = _net()
    objective = Regression(module)
    objective.y = torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
    start, seen = _weights(module), []
    with torch.no_grad():
        objective.y[30:] = module(objective.X[30:])  # as good as can be, untrained
    history = train(
        module,
        objective,
        replace(FAST, patience=3, max_epochs=20),
        rows=np.arange(30),
        held_out=np.arange(30, 40),
        from_start=True,
        on_epoch=lambda epoch: seen.append(epoch.number),
    )
    np.testing.assert_array_equal(_weights(module), start)
    assert history.best_epoch[0] == 0
    assert seen == [0, 1, 2, 3]  # patience counts from epoch 0
    table = history.table()
    np.testing.assert_array_equal(table["epoch"], np.arange(4))
    assert table["validation_loss"][0, 0] == pytest.approx(0.0)
    assert np.isnan(table["learning_rate"][0])


def test_scoring_the_start_changes_no_step():
    given = {"held_out": np.arange(30, 40)}
    module, _, history = _trained(dropout=0.5, **given)
    other, _, from_start = _trained(dropout=0.5, from_start=True, **given)
    np.testing.assert_array_equal(_weights(module), _weights(other))
    for name, column in history.table().items():
        np.testing.assert_array_equal(column, from_start.table()[name][1:])


def test_no_epochs_score_the_start_and_train_nothing():
    none = replace(FAST, max_epochs=0)
    module, objective, history = _trained(none, held_out=np.arange(30, 40), from_start=True)
    np.testing.assert_array_equal(_weights(module), _weights(_net()))
    assert objective.seen == []
    assert len(history.table()["epoch"]) == 1
    with pytest.raises(RequestError, match="max_epochs must be an int >= 1, got 0"):
        _trained(none)


def test_batches_and_scores_may_be_the_callers():
    from featpipe.tuning._steps import shuffled

    held_out = np.arange(30, 40)
    module, _, history = _trained(held_out=held_out)
    other = _net()
    theirs = Regression(other)

    def score():
        assert not other.training
        assert not torch.is_grad_enabled()
        losses, weights = theirs(torch.as_tensor(held_out), None)
        return (losses / weights).numpy()

    def batches(seed):
        return shuffled(np.arange(30), 8, seed)

    again = train(other, theirs, FAST, rows=batches, held_out=score)
    np.testing.assert_array_equal(_weights(other), _weights(module))
    np.testing.assert_allclose(again.held_out_loss, history.held_out_loss, rtol=1e-6)


def test_each_epoch_has_a_seed_of_its_own_for_the_callers_batches():
    def seeds(training):
        seen = []
        _trained(training, rows=lambda seed: seen.append(seed) or [torch.arange(6)])
        return seen

    first = seeds(FAST)
    assert len(set(first)) == 6
    assert seeds(FAST) == first
    assert not set(seeds(replace(FAST, seed=1))) & set(first)


def test_a_group_may_be_frozen_at_first():
    module, weights = _net(), []
    groups = [{"params": module[3].parameters()}, {"params": module[0].parameters(), "from_epoch": 3}]
    train(
        module,
        Regression(module),
        FAST,
        rows=np.arange(30),
        groups=groups,
        on_epoch=lambda epoch: weights.append([module[i].weight.detach().clone() for i in (0, 3)]),
    )
    start = _net()
    moved = [
        [not torch.equal(seen, start[i].weight) for i, seen in zip((0, 3), pair, strict=True)]
        for pair in weights
    ]
    assert moved == [[False, True]] * 2 + [[True, True]] * 4


def test_what_a_callback_raises_ends_the_training():
    def stop(epoch):
        if epoch.number == 2:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        _trained(on_epoch=stop)


def test_requests_that_mean_nothing():
    module = _net().requires_grad_(False)
    with pytest.raises(RequestError, match="nothing to train: all parameters are frozen"):
        train(module, Regression(module), FAST, rows=np.arange(30))
    with pytest.raises(RequestError, match="no stimuli to fit"):
        _trained(rows=np.arange(0))
    with pytest.raises(
        RequestError, match=r"must return an array of shape \(1,\), one loss a part, got \(2,\)"
    ):
        _trained(held_out=lambda: np.zeros(2))


WRONG = {
    "learning_rate": (0.0, "learning_rate must be a number > 0, got 0.0"),
    "seed": (-1, "seed must be an int >= 0, got -1"),
    "precision": ("fp8", "precision must be one of 'fp32', 'tf32', 'bf16', got 'fp8'"),
    "optimiser": ("lion", "optimiser must be one of 'adamw', 'adam', 'sgd'"),
    "betas": ((0.9, 1.0), r"betas must be two numbers in \[0, 1\)"),
    "epsilon": (0, "epsilon must be a number > 0"),
    "momentum": (-0.1, "momentum must be a number >= 0"),
    "cycle_epochs": (0, "cycle_epochs must be an int >= 6, got 0"),
    "weight_decay": (float("nan"), "weight_decay must be a number >= 0, got nan"),
    "batch_size": (0, "batch_size must be an int >= 1, got 0"),
    "max_epochs": (2.5, "max_epochs must be an int >= 0, got 2.5"),
    "schedule": ("cosine", "schedule must be one of 'fixed', 'step', 'one-cycle'"),
    "decay": ("half", "decay must be a number > 0, got 'half'"),
    "decay_every": (True, "decay_every must be an int >= 1, got True"),
    "clip": (0.0, "clip must be a number > 0"),
    "patience": (0, "patience must be an int >= 1, got 0"),
    "min_epochs": (-1, "min_epochs must be an int >= 0"),
}


@pytest.mark.parametrize("name", [f.name for f in fields(Training) if f.name != "device"])
def test_wrong_values_say_what_is_right(name):
    value, message = WRONG[name]
    with pytest.raises(RequestError, match=message):
        replace(FAST, **{name: value})
