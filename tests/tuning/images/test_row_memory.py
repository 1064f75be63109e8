"""Rows computed once: the values that were put, within a limit, whatever is dropped and whoever asks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from featpipe.tuning.images import RowMemory

CPU = torch.device("cpu")
TABLE = (torch.randn(1000, 10, 5, generator=torch.Generator().manual_seed(0)), torch.arange(1000.0)[:, None])
ROW_BYTES = 51 * 4


class Computing:
    """Rows of `TABLE` by label, and how often each was computed."""

    def __init__(self):
        self.counts = np.zeros(1000, dtype=int)

    def rows(self, store, labels):
        def compute(places):
            chosen = np.asarray(labels)[places]
            np.add.at(self.counts, chosen, 1)
            return tuple(values[chosen] for values in TABLE)

        return store.take_or(labels, compute, device=CPU)


def equal(found, labels):
    return all(torch.equal(part, values[labels]) for part, values in zip(found, TABLE, strict=True))


@pytest.mark.parametrize("expected", [0, 1000])
def test_each_row_is_computed_once(rng, expected):
    store, computing = RowMemory().of("key", expected=expected), Computing()
    for _ in range(150):
        labels = rng.integers(0, 1000, 33).tolist()
        assert equal(computing.rows(store, labels), labels)
    assert computing.counts.max() == 1


@pytest.mark.parametrize("n_rows", [0, 1, 130, 999])
def test_the_limit_is_kept_to_and_changes_no_value(rng, n_rows):
    memory, computing = RowMemory(n_rows * ROW_BYTES), Computing()
    store = memory.of("key")
    for _ in range(100):
        labels = rng.integers(0, 1000, 33).tolist()
        assert equal(computing.rows(store, labels), labels)
        assert memory.nbytes <= n_rows * ROW_BYTES
    assert store.known(range(1000)).sum() == min(n_rows, np.count_nonzero(computing.counts))


def test_rows_that_found_room_stay_for_the_next_epoch():
    store, computing = RowMemory(150 * ROW_BYTES).of("key"), Computing()
    for _ in range(4):
        for start in range(0, 200, 20):
            computing.rows(store, list(range(start, start + 20)))
    np.testing.assert_array_equal(computing.counts[:150], 1)
    np.testing.assert_array_equal(computing.counts[150:200], 4)


def test_a_new_user_takes_the_place_of_the_least_recent():
    memory, computing = RowMemory(128 * ROW_BYTES), Computing()
    for key in ("first", "second"):
        computing.rows(memory.of(key), list(range(64)))
    computing.rows(memory.of("first"), [0])  # used again, so "second" is older
    computing.rows(memory.of("third"), list(range(64)))
    held = [bool(memory.of(key).known([5])[0]) for key in ("first", "second", "third")]
    assert held == [True, False, True]
    assert memory.nbytes <= 128 * ROW_BYTES


def test_users_at_work_do_not_drop_each_others_rows():
    memory, computing = RowMemory(128 * ROW_BYTES), Computing()
    one, other = memory.of("one"), memory.of("other")
    for _ in range(3):
        for store in (one, other):
            for start in (0, 50):
                computing.rows(store, list(range(start, start + 50)))
        assert one.known(range(100)).all()  # it came first
    assert memory.nbytes <= 128 * ROW_BYTES


def test_keys_do_not_share_rows():
    memory = RowMemory()
    memory.of("a").put([1], (torch.zeros(1, 2),))
    memory.of("b").put([1], (torch.ones(1, 3),))
    assert torch.equal(memory.of("a").take([1, 1])[0], torch.zeros(2, 2))
    assert torch.equal(memory.of("b").take([1])[0], torch.ones(1, 3))
    memory.clear()
    assert not memory.of("a").known([1]).any()
    assert memory.nbytes == 0


def test_what_is_held_is_a_copy_without_gradient():
    store = RowMemory().of("key")
    values = torch.ones(2, 3, requires_grad=True)
    store.put(["a", "b"], (values * 2,))
    (first,) = store.take(["a"])
    first.add_(1)  # as an in-place ReLU behind the prefix would
    assert not first.requires_grad
    assert torch.equal(store.take(["a"])[0], torch.full((1, 3), 2.0))


def test_rows_from_inference_serve_training():
    store, weight = RowMemory().of("key"), torch.ones(3, requires_grad=True)
    with torch.inference_mode():
        store.put([0, 1], (torch.ones(2, 3),))
    (store.take([1])[0] * weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(3))


def test_the_first_of_two_values_stays():
    store = RowMemory().of("key")
    store.put(["a", "a"], (torch.tensor([1.0, 2.0]),))
    store.put(["a", "b"], (torch.tensor([3.0, 4.0]),))
    assert store.take(["a", "b"])[0].tolist() == [1.0, 4.0]


def test_threads_get_their_rows():
    memory, computing = RowMemory(300 * ROW_BYTES), Computing()

    def work(seed):
        rng = np.random.default_rng(seed)
        store = memory.of(seed % 2)
        batches = (rng.integers(0, 1000, 17).tolist() for _ in range(60))
        return all(equal(computing.rows(store, labels), labels) for labels in batches)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert memory.nbytes <= 300 * ROW_BYTES


def test_a_row_that_is_not_held_is_an_error():
    store = RowMemory().of("key")
    store.put([0], (torch.ones(1, 3),))
    with pytest.raises(LookupError, match="1 of 2 rows are not held"):
        store.take([0, 7])
