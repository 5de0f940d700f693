"""Every system against the reference: logits, hidden states, loss, every gradient, ten steps of AdamW."""

from pathlib import Path

import comparison
import numpy as np
import pytest
from sampling import sampled

FOLDERS = sorted(path for path in (Path(__file__).parent / "golden" / "reference").iterdir() if path.is_dir())


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: path.name)
def reference(request: pytest.FixtureRequest) -> comparison.Reference:
    return comparison.read(request.param)


def test_logits_and_hidden_states(reference: comparison.Reference) -> None:
    errors = comparison.output_errors(reference)
    layers = reference.model.config.num_layers
    stacks = 2 if reference.model.config.family == "encoder_decoder" else 1
    assert len(errors) >= 1 + stacks * layers
    assert {name: value for name, value in errors.items() if not value <= 1e-5} == {}  # not: NaN is no success


def test_the_gradient_of_every_parameter(reference: comparison.Reference) -> None:
    for path, (difference, norm, total) in comparison.gradient_errors(reference).items():
        assert difference <= max(1e-4 * norm, 1e-6 * total), path


@pytest.mark.parametrize(
    "name",
    # Whose gradients are right is trained right; test_live_reference.py trains all of them.
    sampled([folder.name for folder in FOLDERS], path=lambda name: "the step"),
)
def test_ten_steps_of_adamw(name: str) -> None:
    reference = comparison.read(FOLDERS[0].parent / name)
    expected = reference.expected["losses"]
    found = comparison.losses(reference)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert abs(found[0] - expected[0]) <= 1e-5 * expected[0]


@pytest.mark.parametrize(
    ("name", "slots"),
    # Of every slot one value: what one slot changes is noticed or not by the numbers that are compared, in any system.
    sampled([
        ("transformer", {"embedding_scale": "none"}),
        ("transformer", {"position": "sinusoidal_tensor2tensor"}),
        ("transformer", {"norm_epsilon": 1e-3}),
        ("gpt", {"activation": "gelu"}),
        ("gpt2", {"attention_scale": "none"}),
        ("bert", {"activation": "gelu_tanh"}),
        ("bert", {"norm_epsilon": 1e-5}),
        ("bert", {"visibility": "causal"}),
        ("distilbert", {"attention_scale": "none"}),
        ("bart", {"activation": "gelu_tanh"}),
        ("bart", {"position_offset": 1, "max_length": 25}),
        ("t5", {"attention_scale": "inverse_sqrt_head_dim"}),
        ("t5", {"logit_scale": "none"}),
        ("t5", {"relative_max_distance": 64}),
        ("t5_1_1", {"activation": "gelu"}),
        ("t5_1_1", {"logit_scale": "inverse_sqrt_d_model"}),
        ("gpt3", {"attention_pattern": "banded", "attention_window": 3}),
        ("gpt3_banded", {"attention_pattern": "banded_first"}),
    ], path=lambda name, slots: tuple(slots)),
    ids=str,
)  # fmt: skip
def test_another_value_of_a_slot_is_noticed(name: str, slots: dict) -> None:
    reference = comparison.read(next(folder for folder in FOLDERS if folder.name == name), **slots)
    assert max(comparison.output_errors(reference, differentiates=False).values()) > 1e-5
