import jax
import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.trees import count, flatten, mask, match, num_layers, unflatten

PARAMS = {
    "embedding": {"tokens": np.zeros((7, 4))},
    "decoder": {
        "layers": {"attention": {"query": {"kernel": np.zeros((6, 4, 8)), "bias": np.zeros((6, 8))}}},
        "final_norm": {"scale": np.zeros(4)},
    },
}
QUERY = "decoder/layers/attention/query/kernel"


def test_flatten_and_back() -> None:
    flat = flatten(PARAMS)
    assert list(flat) == [
        "embedding/tokens",
        QUERY,
        "decoder/layers/attention/query/bias",
        "decoder/final_norm/scale",
    ]
    assert unflatten(flat) == PARAMS
    assert count(PARAMS) == 28 + 192 + 48 + 4
    assert count({"a": jax.ShapeDtypeStruct((2, 3), "float32")}) == 6


def test_only_what_lies_below_layers_is_stacked() -> None:
    assert num_layers(QUERY, (6, 4, 8)) == 6
    assert num_layers("decoder/final_norm/scale", (4,)) == 0
    assert num_layers("decoder/layers", (4,)) == 0


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("decoder/layers[0:3]/.*", [0, 1, 2]),
        (".*/layers[2]/.*", [2]),
        (".*/layers[-1]/.*/kernel", [5]),
        (".*/layers[::2]/.*", [0, 2, 4]),
        (".*/layers[4:99]/.*", [4, 5]),
        (".*/layers[-2:]/.*", [4, 5]),
    ],
)
def test_patterns_select_layers(pattern: str, expected: list[int]) -> None:
    assert np.flatnonzero(match(QUERY, (6, 4, 8), (pattern,))).tolist() == expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), False),
        ((".*",), True),
        (("decoder",), False),  # the whole path must match
        (("decoder/layers/.*",), True),
        (("decoder/layers[0:6]/.*",), True),
        (("decoder/layers[:3]/.*", "decoder/layers[3:]/.*"), True),
        (("decoder/layers[7]/.*",), False),
        (("decoder/layers[0:3]/.*/bias",), False),
    ],
)
def test_patterns_select_all_or_nothing(patterns: tuple[str, ...], expected: bool) -> None:
    assert match(QUERY, (6, 4, 8), patterns) is expected


def test_a_layer_selection_means_nothing_outside_a_stack() -> None:
    assert match("decoder/layers", (6,), ("decoder/layers[0:3]",)) is False


def test_mask_broadcasts_to_leaves() -> None:
    chosen = flatten(mask(PARAMS, ("embedding/.*", "decoder/layers[1:3]/.*")))
    assert chosen["embedding/tokens"] is True and chosen["decoder/final_norm/scale"] is False
    assert chosen[QUERY].shape == (6, 1, 1) and chosen["decoder/layers/attention/query/bias"].shape == (6, 1)
    assert (PARAMS["decoder"]["layers"]["attention"]["query"]["kernel"] + chosen[QUERY]).sum() == 2 * 32


def test_a_pattern_that_selects_nothing_shows_the_nearest_paths() -> None:
    message = r"optimizer\.x: pattern 'decodr/final_norm/.\*'.*nearest: decoder/final_norm/scale"
    with pytest.raises(UserError, match=message):
        mask(PARAMS, (".*", "decodr/final_norm/.*"), "optimizer.x")
    with pytest.raises(UserError, match="selects no parameter"):
        mask(PARAMS, ("decoder/layers[6]/.*",))


def test_bad_patterns_are_user_errors() -> None:
    with pytest.raises(UserError, match="not a regular expression"):
        match(QUERY, (6, 4, 8), ("decoder/(.*",))
    with pytest.raises(UserError, match="twice"):
        match(QUERY, (6, 4, 8), ("layers[0]/layers[1]",))
