"""The vertex model equals Conv1d layers of torch's own, and draws, chunks and stacks without changing that."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from featpipe import LayerBlocks
from featpipe.errors import RequestError
from featpipe.tuning import VERTEX_POSITION_RESIDUAL, Training, VertexPositionHead
from featpipe.tuning.heads import _maps
from featpipe.tuning.heads._columns import columns_of
from featpipe.tuning.heads._positions import encode_positions

ROIS = {"lh.V1v": [0, 1, 2], "rh.OFA": np.array([2, 5]), "lh.PPA": [3]}  # ragged, overlapping; 4 in none
SMALL = {"batch_size": 16, "device": "cpu"}
NET = {"channels": 8, "n_convolutions": 4, "n_frequencies": 2}


@pytest.fixture
def positions():
    return np.random.default_rng(4).uniform(-60, 60, (6, 3))


def _head(rois, positions, **given):
    training = {"learning_rate": 0.01, "patience": 3, "max_epochs": 6, **SMALL}
    return VertexPositionHead(rois, positions, **{**training, **NET, **given})


class _Naive(nn.Module):
    """Conv1d over the vertices of one ROI; the code is concatenated to the channels of every layer."""

    def __init__(self, code, *, residual):
        super().__init__()
        self.code, self.residual = torch.as_tensor(code).T, residual  # (n_code, n_vertices)
        n_code = len(self.code)
        self.layers = nn.ModuleList(nn.Conv1d(n + n_code, 8, 1, bias=False) for n in (5, 8, 8, 8))
        self.norms = nn.ModuleList(nn.BatchNorm1d(8) for _ in range(4))
        self.out = nn.Conv1d(8, 1, 1)
        generator = torch.Generator().manual_seed(0)
        for layer in self.layers:
            bound, n_in = layer.in_channels**-0.5, layer.in_channels - n_code
            drawn = [torch.empty(8, n).uniform_(-bound, bound, generator=generator) for n in (n_in, n_code)]
            layer.weight.data = torch.cat(drawn, 1)[:, :, None]
        for values in (self.out.weight, self.out.bias):
            values.data.uniform_(-(8**-0.5), 8**-0.5, generator=generator)

    def forward(self, x):
        h = x[:, :, None].expand(-1, -1, self.code.shape[1])
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            start = h if number % 2 == 0 else start  # noqa: F821 (number 0 sets it)
            h = layer(torch.cat([h, self.code.expand(len(x), -1, -1)], 1))
            h = nn.functional.leaky_relu(norm(h))
            h = h + start if self.residual and number == 3 else h
        return self.out(h)[:, 0]


@pytest.mark.parametrize("residual", [False, True])
def test_equals_a_naive_network_on_all_vertices(problem, positions, naive_training, residual):
    X, Y = problem
    Y = np.where(np.random.default_rng(1).random(Y.shape) < 0.2, np.nan, Y)
    head = _head("all", positions, residual=residual, dropout=0.0, init="uniform").fit(X, Y)
    rows = np.setdiff1d(np.arange(len(X)), head.validation_rows_)
    net = _Naive(encode_positions(positions, columns_of("all", 6), 2), residual=residual)
    training = Training(0.01, patience=3, max_epochs=6, decay_every=5, **SMALL)
    scaled = (Y - head.response_mean_) / head.response_scale_
    losses, best = naive_training(net, X, scaled, training, rows, head.validation_rows_)
    np.testing.assert_allclose(head.history_["validation_loss"][:, 0], losses, rtol=1e-3)
    assert head.best_epoch_["all"] == best
    expected = net(torch.as_tensor(X)).detach().numpy() * head.response_scale_ + head.response_mean_
    np.testing.assert_allclose(head.predict(X), expected, rtol=0.01, atol=0.01)


def test_a_roi_does_not_depend_on_the_others(rng):
    X, places = rng.standard_normal((60, 5)), rng.standard_normal((20, 3))
    Y = X @ rng.standard_normal((5, 20))
    rois = {"lh.V1v": np.arange(12), "lh.V2v": np.arange(12, 20)}  # both larger than a step
    together = _head(rois, places, vertices_per_step=6).fit(X, Y)
    for name, targets in rois.items():
        alone = _head("all", places[targets], vertices_per_step=6).fit(X, Y[:, targets])
        found = together.history_["validation_loss"][:, together.roi_names_.index(name)]
        np.testing.assert_allclose(
            found[np.isfinite(found)], alone.history_["validation_loss"][:, 0], rtol=2e-3
        )
        assert together.best_epoch_[name] == alone.best_epoch_["all"]


def test_ragged_rois_are_stopped_and_predicted(problem, positions):
    X, Y = problem
    head = _head(ROIS, positions, max_epochs=30, patience=5).fit(X, Y)
    assert len(set(head.best_epoch_.values())) > 1
    assert head.predict(X).shape == Y.shape
    assert head.score(X, Y) > 0.2


@pytest.mark.parametrize("vertices", [1, 2, 5])
def test_chunks_change_no_prediction(problem, positions, vertices):
    X, Y = problem
    head = _head(ROIS, positions).fit(X, Y)
    expected = head.predict(X)
    head.architecture_["vertices_per_step"] = vertices
    head.set_params(batch_size=7)
    np.testing.assert_allclose(head.predict(X), expected, rtol=1e-4, atol=1e-4)


def test_every_vertex_is_drawn_as_often(positions):
    columns = columns_of({"a": np.arange(5), "b": [5]}, 6)
    head = _head({"a": np.arange(5), "b": [5]}, positions, vertices_per_step=3)
    head.architecture_ = head._architecture(np.empty((2, 5)), columns)
    module = head._build(columns, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    drawn = torch.stack([module._draw(torch.as_tensor(columns.sizes), generator) for _ in range(3000)])
    counts = torch.bincount(drawn[:, 0].flatten(), minlength=5) / 3000
    np.testing.assert_allclose(counts, 3 / 5, atol=0.04)
    assert (drawn[:, 1] == 0).all()


def test_moving_and_scaling_a_brain_changes_nothing(problem, positions):
    X, Y = problem
    first = _head(ROIS, positions).fit(X, Y).predict(X)
    np.testing.assert_allclose(
        _head(ROIS, positions / 1000 - 5).fit(X, Y).predict(X), first, rtol=0.02, atol=0.02
    )
    other = _head(ROIS, positions[::-1].copy()).fit(X, Y).predict(X)
    assert not np.allclose(other, first, atol=0.05)


def test_position_is_what_tells_vertices_apart(rng):
    """Responses that turn with the place along a sulcus: a network that shares all weights must use the code."""
    places = np.stack([np.linspace(0, 40, 30), np.zeros(30), np.zeros(30)], axis=1)
    X = rng.standard_normal((300, 2)).astype(np.float32)
    angle = np.pi * places[:, 0] / 40
    Y = X[:, :1] * np.cos(angle) + X[:, 1:] * np.sin(angle)
    given = {"max_epochs": 25, "patience": None, "dropout": 0.0, "channels": 16, "decay_every": 30}
    told = _head("all", places, **given).fit(X[:250], Y[:250]).score(X[250:], Y[250:])
    shuffled = _head("all", np.zeros_like(places), **given).fit(X[:250], Y[:250]).score(X[250:], Y[250:])
    assert told > 0.9 > 0.6 > shuffled


def test_codes_of_one_roi_differ(rng):
    places = rng.standard_normal((50, 3))
    code = encode_positions(places, columns_of({"a": np.arange(30)}, 50), 4)
    assert code.shape == (50, 24)
    assert np.abs(code).max() <= 1
    distance = np.linalg.norm(code[:30, None] - code[None, :30], axis=2) + 9 * np.eye(30)
    assert distance.min() > 0.01
    alone = encode_positions(places[:1], columns_of("all", 1), 4)
    np.testing.assert_allclose(alone[0, :4], 0)  # in the middle of itself


@pytest.fixture
def maps(problem):
    """The features of the problem as 5 channels, each a constant map with a bright corner."""
    X, _ = problem
    values = X[:, :, None, None] * np.ones((1, 1, 20, 12), dtype=np.float32)
    ids = np.array([f"i{number:02d}" for number in range(len(X))])
    return LayerBlocks(
        ids,
        names=["neck"],
        shapes=[(5, 20, 12)],
        dims=[("channel", "height", "width")],
        digests=["0"],
        read=lambda _, wanted: values[np.searchsorted(ids, wanted)],
    )


@pytest.mark.parametrize("share", ["roi", "all"])
def test_maps_go_through_a_convolutional_trunk(problem, positions, maps, share):
    _, Y = problem
    head = _head(ROIS, positions, share=share, trunk_channels=6, max_epochs=12, patience=12).fit(maps, Y)
    n_trunks = {"roi": 4, "all": 1}[share]
    assert [head.weights_[f"trunk.weights.{k}"].shape[:3] for k in range(2)] == [
        (n_trunks, 6, 5),
        (n_trunks, 6, 6),
    ]
    assert head.score(maps, Y) > 0.2
    np.testing.assert_allclose(head.predict(maps[:9]), head.predict(maps)[:9], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(head.validation_ids_, maps.ids[head.validation_rows_])
    if share == "all":
        assert len(set(head.best_epoch_.values())) == 1


def test_trunks_of_a_stack_do_not_depend_on_each_other(problem, positions, maps):
    _, Y = problem
    rois = {"a": [0, 1, 2], "b": [3, 4, 5]}
    together = _head(rois, positions, trunk_channels=4, dropout=0.0).fit(maps, Y)
    alone = _head("all", positions[3:], trunk_channels=4, dropout=0.0).fit(maps, Y[:, 3:])
    found = together.history_["validation_loss"][:, 1]
    np.testing.assert_allclose(found[np.isfinite(found)], alone.history_["validation_loss"][:, 0], rtol=0.01)


def test_maps_too_large_to_keep_are_read_by_batch(problem, positions, maps, monkeypatch):
    _, Y = problem
    kept = _head(ROIS, positions, max_epochs=2).fit(maps, Y)
    monkeypatch.setattr(_maps, "IN_MEMORY", 1000)
    streamed = _head(ROIS, positions, max_epochs=2).fit(maps, Y)
    np.testing.assert_array_equal(kept.predict(maps), streamed.predict(maps))


def test_goes_through_pickle_and_skops(problem, positions):
    from skops.io import dumps, get_untrusted_types, loads

    X, Y = problem
    head = _head(ROIS, positions, **VERTEX_POSITION_RESIDUAL).fit(X, Y)
    text = dumps(head)
    foreign = get_untrusted_types(data=text)
    assert foreign == ["featpipe.tuning.heads._vertex_position_head.VertexPositionHead"]
    for again in (pickle.loads(pickle.dumps(head)), loads(text, trusted=foreign)):
        np.testing.assert_array_equal(again.predict(X), head.predict(X))
    assert not any(torch.is_tensor(value) for value in vars(head).values())


def test_missing_positions_say_where_to_get_them(problem, positions):
    X, Y = problem
    with pytest.raises(
        RequestError, match=r"positions is None.*--surface lh=FILE,rh=FILE.*columns x, y and z"
    ):
        _head(ROIS, None).fit(X, Y)
    with pytest.raises(RequestError, match=r"shape \(5, 3\), but there are 6 targets: give \(6, 3\)"):
        _head(ROIS, positions[:5]).fit(X, Y)
    with pytest.raises(RequestError, match="positions of 1 of 6 targets are not finite"):
        _head(ROIS, np.where(np.arange(6)[:, None] == 2, np.nan, positions)).fit(X, Y)


def test_layers_that_do_not_fit_are_refused(problem, positions, maps):
    _, Y = problem
    head = _head(ROIS, positions, max_epochs=1).fit(maps, Y)
    other = LayerBlocks(
        maps.ids, names=["x"], shapes=[(5, 4, 4)], dims=maps.dims, digests=["1"], read=lambda *_: None
    )
    with pytest.raises(RequestError, match=r"fitted to maps of shape \(5, 20, 12\), but got \(5, 4, 4\)"):
        head.predict(other)
    two = LayerBlocks.join([("a", maps), ("b", maps)])
    with pytest.raises(RequestError, match="takes vectors, or one layer of shape"):
        head.fit(two, Y)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"channels": 0}, "channels must be an int >= 1, got 0"),
        ({"vertices_per_step": None}, "vertices_per_step must be an int >= 1, got None"),
        ({"dropout": -0.1}, "dropout must be a number >= 0 and < 1"),
        ({"share": "both"}, "share must be one of 'roi', 'all'"),
    ],
)
def test_wrong_parameters_say_what_is_right(problem, positions, given, message):
    with pytest.raises(RequestError, match=message):
        _head(ROIS, positions, **given).fit(*problem)
