"""What a training does before its first step: what it compiles and imports, and what it shows and writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from compiling import AS_USERS, xla_flags
from training import make_corpus, pretraining

import jaxformer.runs.tensorboard as tensorboard
from jaxformer.devices import options_of_one_run

# Trains one step in a process of its own, whose programs and imports are its alone.
TRAINS = """
import json, sys
import jaxformer
import jax
from jaxformer.cli.main import main
programs = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **facts: programs.append(facts.get("fun_name")) if "backend_compile" in name else None)
code = main(sys.argv[1:])
heavy = [name for name in ("torch", "tensorflow", "transformers", "tensorboardX") if name in sys.modules]
print(json.dumps({"code": code, "programs": programs, "heavy": heavy}))
"""


def test_a_start_compiles_each_program_once_and_imports_no_other_framework(tmp_path: Path) -> None:
    keys = {"training.num_steps": 1, "evaluation.max_examples": 0, "training.eval_every": 0, "footprint.enabled": False}
    command = pretraining("bert", make_corpus(tmp_path), tmp_path / "run", **keys)
    environment = os.environ | {"XLA_FLAGS": xla_flags(1)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    done = subprocess.run(
        [sys.executable, "-c", TRAINS, *command], env=environment, capture_output=True, text=True, timeout=300
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["code"] == 0 and said["heavy"] == [], done.stderr
    for program in ("_rngs", "make_state", "train_step"):  # the step not once in the thread and once again
        assert sum(program in str(name) for name in said["programs"]) == 1, said["programs"]
    assert "prefer-no-gather" not in done.stderr


def test_scalars_are_the_bytes_of_an_event_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard.time, "time", lambda: 1700000000.25)
    file = tensorboard.EventFile(tmp_path / "new", 8)
    values = {"train/loss": 2.5, "eval/accuracy": -0.125}
    file.write(300, values | {"a": float("nan"), "b": float("-inf"), "c": 1e300})
    file.close()
    (path,) = (tmp_path / "new").iterdir()
    # Written by tensorboardX 2.6.5: a file's version, the start of a session at step 8, two values of step 300.
    assert path.read_bytes().hex() == (
        "1a00000000000000129bd82d0900001040fc54d94110081a0d627261696e2e4576656e743a328802dd51"
        "0f000000000000006d532b090900001040fc54d94110083a020801ed76c781"
        "3700000000000000e7e8ca590900001040fc54d94110ac022a290a110a0a747261696e2f6c6f737315000020400a140a0d"
        "6576616c2f616363757261637915000000bea12ccc84"
    )
    assert "tfevents" in path.name


def test_what_runs_once_is_compiled_quickly_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options_of_one_run() is None  # the tests' own flags say how
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    options = options_of_one_run()
    assert options is not None
    draw = jax.jit(lambda rng: jax.random.truncated_normal(rng, -2.0, 2.0, (64, 32)), compiler_options=options)
    as_users = jax.jit(lambda rng: jax.random.truncated_normal(rng, -2.0, 2.0, (64, 32)), compiler_options=AS_USERS)
    np.testing.assert_array_equal(draw(jax.random.key(3)), as_users(jax.random.key(3)))
