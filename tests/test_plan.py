"""The plan: what it says of GPT-3, the estimate by hand, what is printed and what is refused."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import make_run, tokenizer_of

from jaxformer.cli.main import main
from jaxformer.config import Config, load
from jaxformer.errors import UserError
from jaxformer.footprint.chips import CHIPS, PEAKS, peak
from jaxformer.footprint.electricity import WORLD_AVERAGE, carbon_intensity
from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.model import Model
from jaxformer.planning.plan import formulas, make_plan, print_plan
from jaxformer.trees import count


def test_gpt3_175b_in_seconds(run_cli: Callable[..., Any]) -> None:
    began = time.monotonic()
    done = run_cli(
        "plan", "--config=gpt3:175b", "--devices=128", "--chip=h100", "--config.sharding.fsdp=16",
        "--config.sharding.tensor=8", "--json",
    )  # fmt: skip
    assert time.monotonic() - began < 20
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["num_parameters"] == 174_604_259_328
    d, layers = 12_288, 96
    kernels = layers * 12 * d * d // 128  # query, key, value, output; two of d_ff = 4 d
    # By heads and d_ff: the biases of query, key, value and of the first feed-forward product; whole: the rest.
    small = layers * ((3 * d + 4 * d) // 8 + 2 * d + 4 * d) + 2 * d
    tables = 50_304 * d // 128 + 2048 * d // 16  # rows of the vocabulary, padded to a multiple of 128, by 8, too
    assert plan["bytes_per_device"]["parameters"] == 4 * (kernels + small + tables)
    assert plan["bytes_per_device"]["gradients"] == 4 * (kernels + small + tables)
    # Two moments, and the numbers of the step and of Adam's updates.
    assert plan["bytes_per_device"]["optimizer"] == 2 * 4 * (kernels + small + tables) + 2 * 4
    per_token = 6 * (layers * 12 * d * d + 50_304 * d) + 6 * layers * d * 2048
    assert plan["flops_per_token"] == pytest.approx(per_token)
    assert plan["fits"] is False
    (table,) = (entry for entry in plan["parameters"] if entry["path"] == "embedding/tokens")
    assert table["spec"] == ["tensor", "fsdp"] and not table["notes"]


# The estimate.


def test_the_estimate_by_hand() -> None:
    phases = "[{'steps': 100, 'batch_size': 8}]"
    config = load("gpt:smoke", [
        f"training.phases={phases}", "training.num_steps=300", "training.batch_size=16", "footprint.pue=1.2",
        "footprint.country_iso_code=FRA",
    ])  # fmt: skip
    plan = make_plan(config, num_devices=2, chip="A100", utilisation=0.25)
    model, length = config.model, config.objective.sequence_length
    layer = 4 * model.d_model**2 + 2 * model.d_model * model.d_ff
    row = 6 * length * (model.num_layers * layer + model.vocab_size * model.d_model)
    row += 6 * model.num_layers * model.d_model * length**2
    assert plan["tokens"] == (100 * 8 + 200 * 16) * length
    assert plan["flops"] == pytest.approx((100 * 8 + 200 * 16) * row)
    assert plan["flops_per_token"] == pytest.approx(row / length)
    hours = plan["flops"] / (2 * 312e12 * 0.25) / 3600
    assert plan["hours"] == pytest.approx(hours)
    kwh = hours * 2 * 0.400 * 1.1 * 1.2
    assert plan["kwh"] == pytest.approx(kwh)
    grams, where = carbon_intensity("FRA")
    assert 10 < grams < 150 and "France" in where
    assert plan["kg_co2eq"] == pytest.approx(kwh * grams / 1000)
    text = formulas(plan)
    assert "2 devices x 3.12e+14 FLOP/s x 0.25" in text["hours"] and "400 W x 1.1" in text["kWh"]
    assert "France" in text["kgCO2eq"] and f"{grams:g} g/kWh" in text["kgCO2eq"]


def test_without_a_country_it_is_the_world() -> None:
    plan = make_plan(load("gpt:smoke"), chip="l4")
    assert plan["grams_per_kwh"] == WORLD_AVERAGE == 475 and "world" in plan["electricity"]
    assert carbon_intensity("") == carbon_intensity("XYZ") == (plan["grams_per_kwh"], plan["electricity"])


def test_gpt3_costs_what_is_published() -> None:
    """Patterson et al. 2021, table 4: 3.14e23 FLOPs, 10,000 V100 at 24.6 TFLOP/s, 14.8 days, 1287 MWh, 552 t."""
    batch = ["training.batch_size=20000", "training.phases=()", "training.num_steps=7324", "footprint.pue=1.1",
             "optimizer.warmup_steps=10", "training.unroll_layers=1"]  # fmt: skip
    plan = make_plan(load("gpt3:175b", batch), num_devices=10_000, chip="v100", utilisation=24.6 / 125)
    assert plan["tokens"] == pytest.approx(300e9, rel=1e-3)
    assert plan["flops"] == pytest.approx(3.14e23, rel=0.02)
    assert plan["hours"] / 24 == pytest.approx(14.8, rel=0.03)
    assert plan["kwh"] == pytest.approx(1_287_000, rel=0.03)
    assert plan["kwh"] * 429 / 1e6 == pytest.approx(552, rel=0.03)


def test_chips_are_data() -> None:
    for name, chip in CHIPS.items():
        assert peak(f"NVIDIA {chip.kind} x") == chip.peak == PEAKS[chip.kind], name
        assert 8e9 <= chip.memory <= 200e9 and (chip.watts is None or 50 < chip.watts <= 1000) and chip.source, name
    assert peak("NVIDIA A100-SXM4-80GB") == 312e12 and peak("TPU v5 lite") == 197e12 and peak("TPU v5") == 459e12


def test_a_chip_of_unknown_power_asks_for_it() -> None:
    config = load("gpt:smoke")
    plan = make_plan(config, chip="v5p")
    assert plan["kwh"] is plan["kg_co2eq"] is None and plan["hours"] > 0 and "--watts" in formulas(plan)["kWh"]
    assert make_plan(config, chip="v5p", watts=300.0)["kwh"] > 0


# The command line.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chip=h10"], "did you mean 'h100'"),
        (["--devices=2", "--config.sharding.fsdp=4"], "need 4 devices; there are 2"),
        (["--devices=2", "--config.sharding.data=4"], "4 devices wanted"),
        (["--devices=3"], "do not divide among 3 devices"),
        (["--devices=0"], "--devices: 0 must be at least 1"),
        (["--utilisation=1.5"], "--utilisation: 1.5 must be above 0 and at most 1"),
        (["--chip=l4", "--watts=0"], "--watts: 0.0 must be above 0"),
        (["--config.sharding.fdsp=2"], "did you mean 'fsdp'"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config=gpt:smoke", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config=gpt:smoke", "--config.sharding.tensor=8", "--config.model.num_heads=4"]) == 0
    text = capsys.readouterr().out
    assert "937,216" in text and "--chip=NAME" in text and "hours" not in text.replace("how long", "")
    assert re.search(r"decoder/layers/feed_forward/input/kernel +2 x 128 x 512 +-, -, tensor +65,536", text)
    assert "heads 4 does not divide by tensor 8" in text
    assert main(["plan", "--config=gpt:smoke", "--chip=h100"]) == 0
    text = capsys.readouterr().out
    assert "fits" in text and "kgCO2eq" in text and "NVIDIA H100 data sheet" in text


def test_a_teacher_that_is_not_there_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(load("distilbert:smoke"))
    assert "teacher" not in plan["bytes_per_device"] and any("teacher" in note for note in plan["notes"])
    print_plan(plan)
    assert "teacher" in capsys.readouterr().out


def test_a_teacher_takes_part(tmp_path: Path) -> None:
    taught = [
        f"model.vocab_size={tokenizer_of('wordpiece').vocab_size}",
        "distillation.cosine_weight=0",
        "objective.sequence_length=64",
        f"distillation.teacher={make_run('bert', tmp_path / 'teacher')}",
    ]
    with_one, without = make_plan(load("distilbert:smoke", taught)), make_plan(load("distilbert:smoke", taught[:3]))
    stored = json.loads((tmp_path / "teacher" / "config.json").read_text())["config"]["model"]
    stored.pop("preset")
    model = Model(TransformerConfig(**stored), Execution(unroll=1))
    assert with_one["bytes_per_device"]["teacher"] == 4 * count(model.shapes)
    assert with_one["bytes_per_device"]["activations"] > without["bytes_per_device"]["activations"]
    with pytest.raises(UserError, match="another vocabulary"):
        make_plan(load("distilbert:smoke", taught[2:]))
    assert with_one["flops"] > without["flops"] and not any("teacher" in note for note in with_one["notes"])


def test_labels_are_those_of_the_data(tmp_path: Path) -> None:
    def classes(config: Config) -> int:
        (kernel,) = (e for e in make_plan(config)["parameters"] if e["path"] == "row_heads/label/kernel")
        return kernel["shape"][1]

    assert classes(load("finetune/area:bert,smoke")) == 10
    missing = load("finetune/area:bert,smoke", ["data.name=json_lines", f"data.path={tmp_path}/none.jsonl"])
    assert classes(missing) == 2 and any("labels" in note for note in make_plan(missing)["notes"])
