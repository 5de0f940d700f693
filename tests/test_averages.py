"""Averages of parameters: over the last checkpoints of a run, and over the updates of its training."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import make_run, params_of
from tiny import batch_of, model_of, supervision_of
from training import SIZES, logged, make_corpus, pretraining

import jaxformer
from jaxformer import config as configs
from jaxformer.checkpoint import Checkpoints, CheckpointConfig, save_params, source_of, Which, NEWEST, restore_params
from jaxformer.checkpoint.source import read_params_in_groups
from jaxformer.cli.main import main
from jaxformer.devices import ShardingConfig, make_mesh, param_shardings, placed
from jaxformer.errors import UserError
from jaxformer.planning.plan import make_plan
from jaxformer.training.moving_average import beginning_with, parameters_of, with_moving_average
from jaxformer.training.step import init_state, make_train_step
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
    """An array at a time, each split as its target is; of one that is copied to all devices one copy is summed."""
    monkeypatch.setattr("jaxformer.checkpoint.source._GROUP_BYTES", 1)
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
    model, supervision, decay = model_of("gpt3"), supervision_of("gpt3"), 0.24
    plain = optax.with_extra_args_support(optax.adam(0.05))
    averaging = with_moving_average(plain, decay)
    assert with_moving_average(plain, 0.0) is plain
    batch, rng = batch_of("gpt3", rows=4), jax.random.key(1)
    without = init_state(model, plain, jax.random.key(0))
    state = beginning_with(init_state(model, averaging, jax.random.key(0)), without.params)
    expected = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(without.params).items()}
    step = jax.jit(make_train_step(model, supervision, plain))
    with_average = jax.jit(make_train_step(model, supervision, averaging), donate_argnums=0)
    without = jax.tree.map(jnp.copy, without)
    for rate in (2 / 11, 3 / 12, 4 / 13):
        state, without = with_average(state, batch, rng, 0.05)[0], step(without, batch, rng, 0.05)[0]
        d = min(decay, rate)
        for path, leaf in flatten(without.params).items():
            expected[path] = d * expected[path] + (1 - d) * np.asarray(leaf, np.float64)
            np.testing.assert_array_equal(flatten(state.params)[path], leaf, err_msg=path)  # training is the same
    for path, leaf in flatten(parameters_of(state, "ema")).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)
    assert parameters_of(state, "trained") is state.params
