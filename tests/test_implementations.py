"""Which attention runs: the table's refusals, one by one; who is chosen where, what is said of it, what is refused."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from cases import CASES, random_row
from tiny import CONFIGS

from jaxformer.config import load
from jaxformer.errors import UserError
from jaxformer.models.config import Execution
from jaxformer.models.implementations import (
    ATTENTIONS,
    DEVICES,
    IMPLEMENTATIONS,
    PREFERRED,
    Wanted,
    attentions_in_words,
    choose,
    chosen_attentions,
    refusal,
)
from jaxformer.planning.plan import make_plan, print_plan
from jaxformer.runs.data import check_batch

EASY = Wanted("gpu", "bfloat16", 64, 1024, 1024, "causal", packed=False)
ON_TPU = EASY._replace(device="tpu")


@pytest.mark.parametrize(
    ("name", "wanted", "reason"),
    [
        ("cudnn", EASY, ""),
        ("cudnn", EASY._replace(device="cpu"), "needs an NVIDIA GPU"),
        ("cudnn", EASY._replace(device="other gpu"), "needs an NVIDIA GPU"),
        ("cudnn", EASY._replace(device="", dtype=""), ""),
        ("cudnn", EASY._replace(dtype="float32"), "not in float32"),
        ("cudnn", EASY._replace(head_dim=60), "multiple of 8"),
        ("cudnn", EASY._replace(head_dim=256), "128 at most"),
        ("cudnn", EASY._replace(queries=1023, keys=1023), ""),
        ("cudnn", EASY._replace(queries=1023, keys=1023, bias=True), "even lengths"),
        ("cudnn", EASY._replace(queries=1023, keys=1023, packed=True), "even lengths"),
        ("cudnn", EASY._replace(bias=True), ""),
        ("cudnn", EASY._replace(bias=True, packed=True), "position bias only"),
        ("cudnn", EASY._replace(bias=True, visibility="full"), ""),
        ("cudnn", EASY._replace(bias=True, visibility="prefix"), "position bias only"),
        ("cudnn", EASY._replace(bias=True, visibility="full", window=9), "position bias only"),
        ("cudnn", EASY._replace(window=9, packed=True), ""),
        ("cudnn", EASY._replace(dropout=True), "no attention dropout"),
        ("cudnn", EASY._replace(decoding=True), "no cache"),
        ("splash", ON_TPU._replace(packed=True, window=9), ""),
        ("splash", EASY, "needs a TPU"),
        ("splash", ON_TPU._replace(bias=True), "no position bias"),
        ("splash", ON_TPU._replace(visibility="prefix"), "no prefix"),
        ("splash", ON_TPU._replace(dropout=True), "no attention dropout"),
        ("flash", ON_TPU._replace(bias=True, packed=True), ""),
        ("flash", ON_TPU._replace(window=9), "no window"),
        ("flash", ON_TPU._replace(head_dim=160), "multiple of it"),
        ("flash", ON_TPU._replace(head_dim=256), ""),
        ("xla", EASY._replace(dropout=True), "no attention dropout"),
    ],
)
def test_the_table_refuses_with_the_reason(name: str, wanted: Wanted, reason: str) -> None:
    found = refusal(name, wanted)
    assert reason in found and bool(reason) == bool(found)


def test_some_implementation_on_each_device_can_do_everything() -> None:
    everything = Wanted("", "float32", 7, 5, 3, "prefix", 2, packed=True, bias=True, dropout=True, decoding=True)
    for device in DEVICES:
        for length in (1, 10_000):
            choice = choose("auto", everything._replace(device=device, queries=length))
            assert not refusal(choice.name, choice.wanted)
    assert set(ATTENTIONS) == {"auto", *IMPLEMENTATIONS}
    assert (
        all(set(order) <= set(IMPLEMENTATIONS) for order in PREFERRED.values()) and PREFERRED.keys() == DEVICES.keys()
    )


def test_auto_goes_by_device_length_and_what_is_asked() -> None:
    def name(wanted: Wanted) -> str:
        return choose("auto", wanted).name

    on_cpu = Wanted("cpu", "float32", 64, 255, 255, "causal")
    assert (name(on_cpu), name(on_cpu._replace(queries=256))) == ("einsum", "blockwise")
    assert (name(EASY), name(ON_TPU), name(ON_TPU._replace(bias=True))) == ("cudnn", "splash", "flash")
    dropped = choose("auto", EASY._replace(dropout=True))
    assert dropped.name == "blockwise" and dropped.refused == {"cudnn": "has no attention dropout"}
    assert name(EASY._replace(dropout=True, queries=511)) == "einsum"
    prefix = choose("auto", ON_TPU._replace(visibility="prefix"))
    assert prefix.name == "blockwise" and prefix.refused.keys() == {"splash", "flash"}


def test_one_that_is_named_is_taken_or_refused_and_decoding_finds_its_own_way() -> None:
    assert choose("flash", ON_TPU).name == "flash" and choose("einsum", EASY).name == "einsum"
    with pytest.raises(UserError, match=r"^training.attention: 'flash' has no window; use auto$"):
        choose("flash", ON_TPU._replace(window=9))
    assert choose("cudnn", EASY._replace(decoding=True)).name == "blockwise"
    assert choose("xla", EASY._replace(decoding=True)).name == "xla"
    with pytest.raises(UserError, match=r"^training.attention: 'cudnn' needs an NVIDIA GPU from Ampere on; "):
        chosen_attentions(CONFIGS["gpt"], Execution(attention="cudnn"), {"inputs": ((8,), np.int32)})  # on a CPU


def test_every_kind_of_attention_is_told_apart() -> None:
    def said(name: str, device: str, **slots: Any) -> list[str]:
        config = dataclasses.replace(CONFIGS[name], head_dim=64, **slots)
        shapes: Any = {"inputs": ((114,), np.int32), "encoder_inputs": ((512,), np.int32)}
        execution = Execution(dtype="bfloat16", packed=False, device=device)
        return attentions_in_words(chosen_attentions(config, execution, shapes))

    assert said("gpt3", "gpu") == ["attention cudnn (114 tokens on gpu)", "banded attention cudnn (114 tokens on gpu)"]
    no_bias = "; splash has no position bias"
    assert said("t5", "tpu") == [
        f"encoder attention flash (512 tokens on tpu){no_bias}",
        f"decoder attention flash (114 tokens on tpu){no_bias}",
        "cross-attention splash (114 x 512 tokens on tpu)",
    ]
    assert said("bert", "gpu", attention_dropout=0.1) == [
        "attention einsum (114 tokens on gpu); cudnn has no attention dropout"
    ]


@pytest.mark.parametrize(
    ("spec", "overrides", "words"),
    [
        ("t5:smoke", ("training.attention=splash",), ("'splash'", "no position bias")),
        ("gpt3:smoke", ("training.attention=flash",), ("'flash'", "no window")),
        ("gpt2:smoke", ("training.attention=cudnn", "training.compute_dtype=float32"), ("'cudnn'", "float32")),
        ("gpt2:smoke", ("training.attention=cudnn", "model.head_dim=20"), ("multiple of 8",)),
        ("transformer:smoke", ("training.attention=cudnn", "objective.target_length=63"), ("even lengths",)),
    ],
)
def test_what_cannot_work_is_refused_when_the_config_is_read(
    spec: str, overrides: tuple[str, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as refused:
        load(spec, ("model.attention_dropout=0", *overrides))
    assert all(word in str(refused.value) for word in ("training.attention: ", "use auto", *words))


# What objectives promise.


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_rows_are_packed_only_where_the_objective_says_so(case: Any) -> None:
    for objective in (part.objective for part in case.objective.parts):
        arrays = [objective(random_row(objective, seed), np.random.default_rng(seed)) for seed in range(20)]
        for name in ("segment_ids", "encoder_segment_ids"):
            if name in arrays[0] and not case.objective.packed:
                segments = np.stack([array[name] for array in arrays])
                assert segments.max() == 1 and (np.diff(segments) <= 0).all()


def test_a_batch_of_several_segments_is_refused_where_none_was_promised() -> None:
    config = load("gpt2:smoke")
    rows = {"inputs": np.ones((2, 4), int), "segment_ids": np.array([[1, 1, 1, 0], [1, 1, 1, 1]])}
    check_batch(rows, config.model, config.objective)
    for bad in ([[1, 1, 2, 2]], [[0, 1, 1, 1]], [[1, 0, 1, 0]]):
        with pytest.raises(UserError, match="packed=True"):
            check_batch(rows | {"segment_ids": np.array(bad)}, config.model, config.objective)
    packed = load("gpt2:smoke", ("objective.packing=documents", "objective.document_mask=True"))
    assert packed.packed and not config.packed
    check_batch(rows | {"segment_ids": np.array([[1, 1, 2, 2]])}, packed.model, packed.objective)


# What is said.


def test_the_plan_says_which_attention_runs(capsys: pytest.CaptureFixture[str]) -> None:
    length = load("gpt2:smoke").longest_row
    assert make_plan(load("gpt2:smoke", ("model.attention_dropout=0.1",)))["attention"] == [
        f"attention einsum ({length} tokens on cpu)",
        f"attention einsum ({length} tokens on gpu); cudnn has no attention dropout",
        f"attention einsum ({length} tokens on tpu); splash has no attention dropout; flash has no attention dropout",
    ]
    print_plan(make_plan(load("gpt2:smoke"), chip="v4"))
    assert f"attention         splash ({length} tokens on tpu)\n" in capsys.readouterr().out
    named = load("gpt2:smoke", ("training.attention=splash",))
    assert make_plan(named)["attention"] == [f"attention splash ({length} tokens on tpu)"]
    with pytest.raises(UserError, match="'splash' needs a TPU"):
        make_plan(named, chip="h100")
