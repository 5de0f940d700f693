"""What a training does before its first step: what it compiles and imports, and what it shows and writes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from compiling import AS_USERS, xla_flags
from training import make_corpus, pretraining

from jaxformer.cli.main import main
from jaxformer.devices import options_of_one_run
from jaxformer.runs.learner import Learner
from jaxformer.storage import read_metrics

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
heavy = [name for name in ("torch", "tensorflow", "transformers") if name in sys.modules]
print(json.dumps({"code": code, "programs": programs, "heavy": heavy}))
"""


@pytest.mark.slow
def test_a_start_compiles_each_program_once_and_imports_no_other_framework(tmp_path: Path) -> None:
    keys = {
        "training.num_steps": 1,
        "optimizer.warmup_steps": 0,
        "evaluation.max_examples": 0,
        "training.eval_every": 0,
        "footprint.enabled": False,
    }
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


def test_what_runs_once_is_compiled_quickly_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options_of_one_run() is None  # the tests' own flags say how
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    options = options_of_one_run()
    assert options is not None
    draw = jax.jit(lambda rng: jax.random.truncated_normal(rng, -2.0, 2.0, (64, 32)), compiler_options=options)
    as_users = jax.jit(lambda rng: jax.random.truncated_normal(rng, -2.0, 2.0, (64, 32)), compiler_options=AS_USERS)
    np.testing.assert_array_equal(draw(jax.random.key(3)), as_users(jax.random.key(3)))


def test_a_step_that_has_run_is_logged_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPU a step has run once it returns; its line does not wait for the next one."""
    step, logged = Learner.step, []

    def watched(self: Learner, number: int, *arguments: Any) -> Any:
        logged.append((number, [line["step"] for line in read_metrics(tmp_path / "run")]))
        # As on a user's CPU: the devices of this process were made before programs could be told to run at once.
        return jax.block_until_ready(step(self, number, *arguments))

    monkeypatch.setattr(Learner, "step", watched)
    keys = {"training.num_steps": 3, "optimizer.warmup_steps": 0, "evaluation.max_examples": 0, "sharding.data": 1}
    keys |= {"training.eval_every": 0, "checkpoint.every": 0, "footprint.enabled": False}
    assert main(pretraining("gpt", make_corpus(tmp_path), tmp_path / "run", **keys)) == 0
    assert logged == [(1, []), (2, [1]), (3, [1, 2])]
