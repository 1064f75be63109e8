"""Folds keep together what must not be separated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import GroupKFold, KFold

from featpipe.errors import RequestError
from featpipe.model_selection import make_cv, merge_groups

LABELS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=20)


def _components(pairs):
    """Connected components by repeated relabelling, the slow way."""
    label = list(range(len(pairs)))
    for _ in pairs:
        for i, (group, digest) in enumerate(pairs):
            for j, (other_group, other_digest) in enumerate(pairs):
                if group == other_group or digest == other_digest:
                    label[i] = label[j] = min(label[i], label[j])
    return label


@given(LABELS)
def test_merged_groups_are_the_connected_components(pairs):
    groups, digests = zip(*pairs, strict=True)
    merged, expected = merge_groups(groups, [str(d) for d in digests]), np.array(_components(pairs))
    np.testing.assert_array_equal(merged[:, None] == merged, expected[:, None] == expected)


def test_without_groups_only_equal_images_are_joined():
    np.testing.assert_array_equal(merge_groups(None, ["a", "b", "a", "c"]), [0, 1, 0, 2])


def test_a_group_may_be_named_like_an_image():
    np.testing.assert_array_equal(merge_groups(["a", "b"], ["b", "c"]), [0, 1])


def test_a_number_is_shuffled_folds_or_respects_groups():
    cv = make_cv(5, 20)
    assert isinstance(cv, KFold)
    assert cv.shuffle
    assert isinstance(make_cv("5", 20, groups=np.arange(20)), GroupKFold)


def test_train_and_test_labels_are_one_fold():
    [(train, test)] = make_cv("splits", 4, splits=np.array(["train", "test", "val", "train"]))
    np.testing.assert_array_equal(train, [0, 3])
    np.testing.assert_array_equal(test, [1])


def test_each_set_is_left_out_once():
    folds = make_cv("set", 4, ids=np.array(["92/a", "118/a", "92/b", "118/b"]))
    assert [test.tolist() for _, test in folds] == [[1, 3], [0, 2]]


def test_each_group_is_left_out_once():
    assert [test.tolist() for _, test in make_cv("group", 3, groups=["x", "y", "x"])] == [[1], [0, 2]][::-1]


def test_a_splitter_is_taken_as_it_is():
    cv = KFold(3)
    assert make_cv(cv, 9) is cv


@pytest.mark.parametrize(
    ("spec", "given_data", "message"),
    [
        (9, {}, "9 folds cannot be made of 4 stimuli"),
        (1, {}, "choose from 2 to 4"),
        (3, {"groups": [0, 0, 1, 1]}, "3 folds cannot be made of 2 groups"),
        ("splits", {}, "labels here: none"),
        ("splits", {"splits": ["train"] * 4}, "labels here: .*train"),
        ("set", {"ids": ["92/a", "b", "c", "d"]}, "SET/NAME, got .*'b'"),
        ("set", {"ids": ["92/a", "92/b"]}, "at least two of them, got 1"),
        ("group", {}, "at least two of them, got 0"),
        ("loo", {}, "Unknown folds 'loo'"),
    ],
)
def test_folds_that_cannot_be_made_are_named(spec, given_data, message):
    with pytest.raises(RequestError, match=message):
        make_cv(spec, 4, **given_data)


def test_groups_and_digests_of_different_length_are_refused():
    with pytest.raises(RequestError, match="2 groups for 3 image digests"):
        merge_groups([0, 1], ["a", "b", "c"])
