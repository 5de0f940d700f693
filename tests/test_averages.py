"""Averages of parameters: over the last checkpoints of a run, and over the updates of its training."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import make_run, params_of
from training import SIZES, logged, make_corpus, pretraining

import jaxformer
from jaxformer import config as configs
from jaxformer.checkpoint import Which, restore_params, save_params, source_of
from jaxformer.checkpoint.digest import read_digest
from jaxformer.checkpoint.source import read_params_in_groups
from jaxformer.cli.main import main
from jaxformer.devices import ShardingConfig, make_mesh, param_shardings, placed
from jaxformer.errors import UserError
from jaxformer.planning.plan import make_plan
from jaxformer.storage import read_metrics
from jaxformer.training.moving_average import beginning_with, parameters_of, with_moving_average
from jaxformer.training.step import TrainState
from jaxformer.trees import flatten, unflatten

BIAS = "decoder/final_norm/bias"


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, dict[str, np.ndarray]]]:
    """A run with checkpoints of four steps, and the parameters of each."""
    run = make_run("gpt2", tmp_path_factory.mktemp("runs") / "mine")
    first = params_of(run)
    shutil.rmtree(run / "checkpoints")
    draw = np.random.default_rng(1)
    saved = {}
    for step in (100, 200, 300, 400):
        saved[step] = {path: leaf + draw.normal(0, 10.0, leaf.shape).astype(np.float32) for path, leaf in first.items()}
        save_params(run / "checkpoints", unflatten(saved[step]), step)
    return run, saved


def mean(saved: dict[int, dict[str, np.ndarray]], *which: int) -> dict[str, np.ndarray]:
    """The means in double precision, rounded once."""
    return {
        path: np.mean([np.asarray(saved[step][path], np.float64) for step in which], axis=0).astype(np.float32)
        for path in saved[which[0]]
    }


def assert_equal(found: Any, expected: dict[str, np.ndarray]) -> None:
    flat = found if isinstance(next(iter(found.values())), np.ndarray) else flatten(found)
    assert flat.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(np.asarray(flat[path]), leaf, err_msg=path)


@pytest.mark.parametrize(
    ("step", "average", "of"),
    [("", 3, (200, 300, 400)), ("", 4, (100, 200, 300, 400)), (300, 2, (200, 300)), ("", 1, (400,))],
)
def test_the_mean_of_the_last_checkpoints(steps: Any, step: str | int, average: int, of: tuple[int, ...]) -> None:
    path, saved = steps
    run = jaxformer.load(path, step, average=average)
    assert_equal(run.params, mean(saved, *of))
    assert run.step == of[-1] and run.source.facts.get("average", list(of)) == list(of)


def test_a_mean_is_taken_in_parts_and_on_a_mesh(steps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some arrays at a time, each split as its target is; of one that is copied to all devices one copy is summed."""
    monkeypatch.setattr("jaxformer.checkpoint.source._GROUP_BYTES", 12_000)
    path, saved = steps
    source, expected = source_of(path, Which(average=3)), mean(saved, 200, 300, 400)
    ((_, whole),) = read_params_in_groups(source, [tuple(expected)])
    assert_equal(whole, expected)
    shapes = jaxformer.load(path).model.shapes
    target = placed(shapes, param_shardings(make_mesh(ShardingConfig(data=2, fsdp=2, tensor=2)), shapes, 8))
    params, table = restore_params(source, target)
    assert_equal(params, expected)
    kernel = flatten(params)["decoder/layers/feed_forward/input/kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4 and kernel.sharding.mesh.size == 8
    assert "the mean with the 2 before it" in str(table.source)


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (Which(average=5), r"--average=5: .*mine has 4 checkpoints up to step 400 \(100, 200, 300, 400\); .*"
         r"checkpoint.keep_last says \(here 2; 0: all\), .*checkpoint.every"),
        (Which(200, 3), r"has 2 checkpoints up to step 200 \(100, 200\)"),
        (Which(100, 2), r"has 1 checkpoint up to step 100 \(100\)"),
        (Which(average=0), "--average: 0 must be at least 1"),
        (Which(150, 2), "no checkpoint of step 150"),
        (Which(parameters="emma"), "--parameters: 'emma' is not one of trained, ema"),
    ],
)  # fmt: skip
def test_what_cannot_be_averaged_is_one_line(steps: Any, which: Which, said: str) -> None:
    with pytest.raises(UserError, match=said):
        source_of(steps[0], which)


def test_a_run_without_a_moving_average_says_so(steps: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["generate", "Hello"], ["export", str(tmp_path / "out")]):
        assert main([*verb, f"--workdir={steps[0]}", "--parameters=ema"]) == 2
        assert "no moving average of the parameters: training.ema_decay was 0" in capsys.readouterr().err
    with pytest.raises(UserError, match="evaluation.parameters: ema .*training.ema_decay"):
        configs.load("gpt:smoke", ["evaluation.parameters=ema"])


def test_an_export_takes_the_mean(steps: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    assert main(["export", str(tmp_path / "out"), f"--workdir={steps[0]}", "--average=2", "--step=300"]) == 0
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    found = tensors["transformer.ln_f.bias"]
    np.testing.assert_array_equal(found, mean(steps[1], 200, 300)[BIAS])


# The moving average of training.


def test_the_moving_average_by_hand() -> None:
    """Three updates, from what training begins with; the decay warms up, (1 + n) / (10 + n), to its own value."""
    plain = optax.with_extra_args_support(optax.sgd(1.0))
    assert with_moving_average(plain, 0.0) is plain
    averaging = with_moving_average(plain, 0.24)
    params = {"w": jnp.array([4.0, -8.0])}
    state = TrainState(jnp.int32(0), params, averaging.init({"w": jnp.array([9.0, 9.0])}))
    state = beginning_with(state, params)
    for _ in range(3):
        updates, opt_state = averaging.update({"w": jnp.array([1.0, 2.0])}, state.opt_state, state.params)
        state = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
    first = np.array([4.0, -8.0])
    one = 2 / 11 * first + 9 / 11 * np.array([3.0, -10.0])
    two = 0.24 * one + 0.76 * np.array([2.0, -12.0])  # and no longer 3 / 12
    three = 0.24 * two + 0.76 * np.array([1.0, -14.0])
    np.testing.assert_allclose(parameters_of(state, "ema")["w"], three, rtol=1e-6)
    np.testing.assert_array_equal(parameters_of(state, "trained")["w"], [1.0, -14.0])
    assert int(state.opt_state.num_updates) == 3


KEYS = {f"model.{name}": size for name, size in (SIZES | {"num_layers": 1}).items()} | {
    "training.num_steps": 3, "training.eval_every": 0, "training.ema_decay": 0.24, "evaluation.parameters": "ema",
    "checkpoint.every": 1, "checkpoint.keep_last": 0, "footprint.enabled": False, "optimizer.warmup_steps": 1,
    "sharding.data": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and the run `whole`, of three steps, which averages its parameters."""
    folder = make_corpus(tmp_path_factory.mktemp("trained"))
    assert main(pretraining("gpt", folder, folder / "whole", **KEYS)) == 0
    return folder


def read(run: Path, step: int, parameters: str = "ema") -> dict[str, np.ndarray]:
    found = jaxformer.load(run, step, parameters=parameters).params
    return {path: np.asarray(leaf) for path, leaf in flatten(found).items()}


def test_a_run_averages_and_trains_as_before(trained: Path) -> None:
    """What it averages is what it saves at every step; a run that does not average has the same parameters, and no
    further array."""
    run, plain = trained / "whole", trained / "plain"
    for step, decay in ((2, 0.24), (3, 0.24)):
        before, now, after = read(run, step - 1), read(run, step, "trained"), read(run, step)
        for path, leaf in after.items():
            expected = decay * before[path].astype(np.float64) + (1 - decay) * now[path].astype(np.float64)
            np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-7, err_msg=path)
    assert_equal(jaxformer.load(run).params, read(run, 3))  # as the config has it judged
    keys = KEYS | {"training.ema_decay": 0, "evaluation.parameters": "trained", "checkpoint.every": 0}
    assert main(pretraining("gpt", trained, plain, **keys)) == 0
    assert_equal(jaxformer.load(plain).params, read(run, 3, "trained"))
    arrays = [read_digest(folder / "checkpoints" / "3").arrays for folder in (plain, run)]
    assert not any("ema" in name or "inner" in name for name in arrays[0])
    assert len(arrays[1]) == len(arrays[0]) + len(read(run, 3)) + 1


def test_a_resumed_average_is_that_of_an_unbroken_run(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "whole", tmp_path / "broken")
    for step in (2, 3):
        shutil.rmtree(run / "checkpoints" / str(step))
    assert main(pretraining("gpt", trained, run, **KEYS)) == 0
    for kind in ("ema", "trained"):
        assert_equal(read(run, 3, kind), read(trained / "whole", 3, kind))
    assert logged(run)[-1] == logged(trained / "whole")[-1]
    command = pretraining("gpt", trained, run, **KEYS | {"training.ema_decay": 0.5})
    assert main(command) == 2  # another decay is another run


@pytest.mark.parametrize("kind", ["ema", pytest.param("trained", marks=pytest.mark.slow)])
def test_a_run_may_start_from_the_average(kind: str, trained: Path, tmp_path: Path) -> None:
    keys = KEYS | {
        "init_from": trained / "whole",
        "checkpoint.init_parameters": kind,
        "training.num_steps": 1,
        "optimizer.warmup_steps": 0,
    }
    assert main(pretraining("gpt", trained, tmp_path / "run", **keys, **{"optimizer.learning_rate": 1e-30})) == 0
    for own in ("trained", "ema"):  # which begins as what the run begins with
        for path, leaf in read(trained / "whole", 3, kind).items():
            np.testing.assert_allclose(read(tmp_path / "run", 1, own)[path], leaf, rtol=1e-6, err_msg=path)


def evaluated(run: Path, capsys: Any, *words: str) -> dict[str, float]:
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={run}", "--json", "--config.evaluation.max_examples=13", *words]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_evaluations_of_averages_are_named_by_them(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained / "whole", tmp_path / "run")
    judged = evaluated(run, capsys, "--config.evaluation.max_examples=16")
    logged_loss = next(line["eval/loss"] for line in reversed(read_metrics(run)) if "eval/loss" in line)
    assert judged["loss"] == pytest.approx(logged_loss, rel=1e-6)  # of the moving average, as in training
    other = evaluated(run, capsys, "--parameters=trained")
    assert evaluated(run, capsys, "--parameters=trained", "--average=2", "--step=3")["loss"] != other["loss"]
    assert evaluated(run, capsys, "--average=2")["loss"] != judged["loss"]
    found = {file.stem: json.loads(file.read_text()) for file in (run / "results").glob("*.json")}
    assert {
        name: {k: v for k, v in one.items() if k in ("step", "average", "parameters")} for name, one in found.items()
    } == {
        "evaluate-validation-ema": {"step": 3, "parameters": "ema"},
        "evaluate-validation": {"step": 3},
        "evaluate-validation-step-3-average-2": {"step": 3, "average": [2, 3]},
        "evaluate-validation-average-2-ema": {"step": 3, "average": [2, 3], "parameters": "ema"},
    }


def test_a_plan_counts_the_average() -> None:
    found = make_plan(configs.load("gpt:smoke", ["training.ema_decay=0.9"]))["bytes_per_device"]
    assert found["ema"] == found["parameters"] and found.pop("total") == sum(found.values())
