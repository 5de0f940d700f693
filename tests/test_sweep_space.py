"""What a sweep searches: spaces read from data and from words, their points, and what is no space."""

import json
import math
from typing import Any

import pytest

from jaxformer.errors import UserError
from jaxformer.studies.space import Space, read_space, read_words


def of(*words: str) -> Space:
    return read_space(read_words(words))


def test_words_and_data_give_the_same_space() -> None:
    found = of(
        "optimizer.learning_rate=1e-5..1e-3:log", "training.batch_size=8,16", "seed=0:3", "model.num_layers=2..8:2",
        "model.d_model,model.d_ff=(128,512),(256,1024)", "task.text_fields=[a,b],[c]",
    )  # fmt: skip
    content = {
        "optimizer.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "training.batch_size": [8, 16],
        "seed": range(3),
        "model.num_layers": {"low": 2, "high": 8, "step": 2, "integer": True},
        "model.d_model, model.d_ff": [(128, 512), (256, 1024)],
        "task.text_fields": ["[a,b]", "[c]"],
    }
    assert found == read_space(content)
    assert read_space(json.loads(json.dumps(found.to_dict()))) == found
    assert found.seeds == (0, 1, 2) and "seed" not in found.keys


def test_a_grid_is_the_product_of_its_lists_and_conditions_take_keys_out() -> None:
    content = {
        "optimizer.beta1": {"values": [0.8, 0.9], "when": {"optimizer.name": ["adamw"]}},
        "optimizer.name": ["adamw", "adafactor"],
    }
    assert read_space(content).grid() == [
        {"optimizer.name": "adamw", "optimizer.beta1": 0.8},
        {"optimizer.name": "adamw", "optimizer.beta1": 0.9},
        {"optimizer.name": "adafactor"},
    ]
    together = of("model.d_model,model.d_ff=(8,16),(16,32)", "model.num_layers=1,2").grid()
    assert len(together) == 4 and {(point["model.d_model"], point["model.d_ff"]) for point in together} == {
        (8, 16),
        (16, 32),
    }


def test_points_may_be_given_one_by_one() -> None:
    points = [{}, {"objective.name": "causal_lm"}, {"model.d_model": 8, "model.d_ff": 32}]
    space = read_space({"points": points, "seed": [0, 1]})
    assert space.grid() == space.checked() == points and space.seeds == (0, 1)
    assert space.keys == ("objective.name", "model.d_model", "model.d_ff")
    assert read_space(json.loads(json.dumps(space.to_dict()))) == space
    drawn = space.drawn(0, 2)
    assert drawn == space.drawn(0, 2) and len(drawn) == 2 and all(point in points for point in drawn)


def test_points_drawn_at_random_are_the_same_again_and_spread_as_the_range_says() -> None:
    space = of("optimizer.learning_rate=1e-5..1e-1:log", "model.num_layers=2..5", "model.dropout=0..0.3:0.1")
    points = space.drawn(0, 200)
    assert points == space.drawn(0, 200) and points[:20] == space.drawn(0, 20) != space.drawn(1, 20)
    rates = sorted(point["optimizer.learning_rate"] for point in points)
    assert 1e-5 <= rates[0] < 2e-5 and 5e-2 < rates[-1] <= 1e-1
    assert abs(math.log10(rates[100]) + 3) < 0.4  # half of them below the middle of the logarithms
    assert {point["model.num_layers"] for point in points} == {2, 3, 4, 5}
    assert {round(point["model.dropout"], 6) for point in points} == {0.0, 0.1, 0.2, 0.3}
    assert len(of("model.num_layers=1,2,3").drawn(0, 10)) == 3, "no point twice"


def test_the_ends_of_ranges_stand_for_all_when_a_space_is_checked() -> None:
    space = of("optimizer.learning_rate=1e-5..1e-3:log", "model.num_layers=1,2")
    assert {point["optimizer.learning_rate"] for point in space.checked()} == {1e-5, 1e-3}
    assert len(space.checked()) == 4
    many = of(*(f"model.key{number}={number}..100" for number in range(12)))  # 4096 corners
    assert 12 < len(many.checked()) <= 24


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "the space is empty"),
        ({"a.b": []}, "an empty list"),
        ({"a.b": {"low": 1, "high": 1}}, "the range 1..1 is empty"),
        ({"a.b": {"low": 0, "high": 1, "log": True}}, "a log range begins above 0"),
        ({"a.b": {"low": 0, "high": "x"}}, "high is 'x'"),
        ({"a.b": {"low": 0, "high": 1, "step": 2}}, "a step of 2 does not fit"),
        ({"a.b": {"low": 0.5, "high": 2, "integer": True}}, "whole ends"),
        ({"a.b": {"lo": 0, "high": 1}}, "no 'lo'; did you mean 'low'?"),
        ({"a.b, a.c": [(1, 2), (3,)]}, "does not give 2 values"),
        ({"a.b, a.c": {"low": 0, "high": 1}}, "need a list of values"),
        ({"a.b": [1], "a.b, a.c": [(1, 2)]}, "--sweep.a.b: searched twice"),
        ({"a.b": {"values": [1], "when": {"a.c": [1]}}}, "names a.c, which is not searched"),
        ({"a.b": {"values": [1], "when": {"a.c": [3]}}, "a.c": [1, 2]}, "which it never is"),
        (
            {"a.b": {"values": [1], "when": {"a.c": [1]}}, "a.c": {"values": [1], "when": {"a.b": [1]}}},
            "round in a circle",
        ),
        ({"seed": [0, 0]}, "a seed is given twice"),
        ({"seed": [0.5]}, "is no seed"),
        ({"seed, a.b": [(0, 1)]}, "go with no other key"),
        ({"seed": {"low": 0, "high": 3}}, "go with no other key"),
        ([1], "not a dict"),
        ({"points": []}, "give a list of dicts"),
        ({"points": [{"a.b": 1}, 2]}, "give a list of dicts"),
        ({"points": [{"a.b": 1}, {"a.b": 1}]}, "a point is given twice"),
        ({"points": [{"a.b": 1}], "c.d": [1]}, "where points are given one by one, nothing else is searched"),
    ],
)
def test_what_is_no_space_is_refused_in_a_line(content: Any, said: str) -> None:
    with pytest.raises(UserError) as refused:
        read_space(content)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.b"], "no values"),
        (["a.b="], "no values"),
        (["a.b=1", "a.b=2"], "given twice"),
        (["a.b=1..2:lug"], "'lug' is no number"),
    ],
)
def test_words_that_say_nothing_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        of(*words)


def test_paths_are_no_ranges() -> None:
    assert of("data.path=../one,../other").grid() == [{"data.path": "../one"}, {"data.path": "../other"}]
