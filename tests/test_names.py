import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aniso import InputError
from aniso._names import natural_key, select_names

LAYERS = ["embeddings", *(f"encoder.layer.{i}" for i in range(12))]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (None, LAYERS),
        ("embeddings", ["embeddings"]),
        ("encoder.layer.1", ["encoder.layer.1"]),
        ("encoder.layer.1*", ["encoder.layer.1", "encoder.layer.10", "encoder.layer.11"]),
        ("encoder.layer.[23]", ["encoder.layer.2", "encoder.layer.3"]),
        ("*", LAYERS),
        (0, ["embeddings"]),
        (-1, ["encoder.layer.11"]),
        (-13, ["embeddings"]),
        ("3", ["encoder.layer.2"]),
        ("-2", ["encoder.layer.10"]),
        ([-1, "embeddings", 1], ["embeddings", "encoder.layer.0", "encoder.layer.11"]),
        (["*.layer.3", 4, "encoder.layer.3"], ["encoder.layer.3"]),
    ],
)
def test_names_globs_and_positions_in_order_of_execution(selection, expected):
    assert select_names(selection, LAYERS) == expected


@pytest.mark.parametrize(
    ("selection", "near"),
    [("encoder.layr.3", "encoder.layer.3"), ("embedings", "embeddings"), ("zz*", "embeddings")],
)
def test_no_match_lists_near_names(selection, near):
    with pytest.raises(InputError, match=re.escape(repr(selection))) as caught:
        select_names(selection, LAYERS)
    assert near in str(caught.value).split("near names are")[1]


@pytest.mark.parametrize("position", [13, -14, "99"])
def test_a_position_out_of_range_says_how_many_there_are(position):
    with pytest.raises(InputError, match=f"no layer {position}; there are 13"):
        select_names(position, LAYERS)


def test_one_miss_among_matches_is_an_error():
    with pytest.raises(InputError, match="'nothing'"):
        select_names(["embeddings", "nothing"], LAYERS)


def test_a_name_wins_over_what_it_means_as_position_or_glob():
    names = ["1", "0", "h[0]", "h0"]
    assert select_names("0", names) == ["0"]
    assert select_names("h[0]", names) == ["h[0]"]
    assert select_names("2", names) == ["h[0]"]


def test_known_names_can_be_asked_for_but_are_not_taken_by_default():
    assert select_names(None, ["a", "b"], known=["a", "c"]) == ["a", "b"]
    assert select_names(["c", "a"], ["a", "b"], known=["a", "c"]) == ["a", "c"]
    with pytest.raises(InputError):
        select_names(2, ["a", "b"], known=["a", "c"])


def test_numbers_sort_by_value():
    names = ["rows-2", "rows-10", "rows-1", "rows", "x", "h.2.mlp.10", "h.2.mlp.9", "h.10.mlp.1"]
    expected = ["h.2.mlp.9", "h.2.mlp.10", "h.10.mlp.1", "rows", "rows-1", "rows-2", "rows-10", "x"]
    assert sorted(names, key=natural_key) == expected


@given(st.data(), st.lists(st.text("019²a-.", max_size=4), max_size=6, unique=True))
def test_any_names_have_one_order(data, names):
    shuffled = data.draw(st.permutations(names))
    assert sorted(shuffled, key=natural_key) == sorted(names, key=natural_key)


@given(st.lists(st.integers(0, 10**12), unique=True))
def test_natural_order_is_numeric_order(numbers):
    names = [f"layer.{n}.out" for n in numbers]
    random.Random(0).shuffle(names)
    expected = [f"layer.{n}.out" for n in sorted(numbers)]
    assert sorted(names, key=natural_key) == expected


def test_superscripts_are_letters():
    assert sorted(["x2", "²", "2²"], key=natural_key)[0] == "2²"
