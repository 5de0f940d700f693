"""What watches a run: skipped steps, waits and goodput, a stuck step, a profile, and the peers of a process."""

import datetime
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest
from training import make_corpus, pretraining

from jaxformer import config as configs
from jaxformer.cli.main import main
from jaxformer.devices.processes import _local_devices, _peers
from jaxformer.errors import UserError
from jaxformer.runs.log import MetricsLog
from jaxformer.runs.monitor import Meter, Watchdog
from jaxformer.runs.progress import Display
from jaxformer.storage import read_metrics
from jaxformer.training.flops import step_flops


def meter_in(
    workdir: Path, *overrides: str, start: int = 0, created: datetime.timedelta = datetime.timedelta()
) -> Meter:
    config = configs.load("gpt:smoke", ["training.log_every=1", *overrides])
    began = (datetime.datetime.now(datetime.UTC) - created).isoformat()
    record = {"name": "gpt:smoke", "config": config.to_dict(), "labels": [], "created": began}
    (workdir / "config.json").write_text(json.dumps(record))
    log = MetricsLog(workdir, start)
    learner: Any = SimpleNamespace(
        config=config, learning_rate=lambda step: 0.1, flops=lambda step: 1e9, mesh=SimpleNamespace(size=1)
    )
    return Meter(learner, start, log, Display(quiet=True))


def metrics(loss: float, norm: float = 1.0) -> dict[str, Any]:
    return {name: jnp.float32(value) for name, value in {"loss": loss, "grad_norm": norm, "tokens": 8.0}.items()}


def test_a_loss_that_is_not_finite_stops_at_once_or_after_as_many_steps_as_may_be_skipped(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step 1: the loss is nan .* stopped, and .*training.skip_non_finite"):
        meter_in(tmp_path).read(1, metrics(math.nan))
    meter = meter_in(tmp_path, "training.skip_non_finite=2")
    meter.read(1, metrics(1.0))
    meter.read(2, metrics(math.inf))
    meter.read(3, metrics(1.0, math.nan))
    meter.read(4, metrics(1.0))  # which ends the row
    meter.read(5, metrics(math.nan))
    meter.read(6, metrics(math.nan))
    with pytest.raises(UserError, match=r"step 7: .* stopped after 2 skipped ones in a row"):
        meter.read(7, metrics(math.nan))
    lines = {line["step"]: line for line in read_metrics(tmp_path)}
    assert [lines[step].get("train/skipped_steps") for step in range(1, 7)] == [None, 1, 2, 2, 3, 4]
    assert "train/loss" not in lines[2] and "train/grad_norm" not in lines[3]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    meter.log.close()
    assert meter_in(tmp_path, start=5).skipped == 3


def test_a_batch_that_predicts_nothing_is_said_and_has_no_loss(tmp_path: Path) -> None:
    meter, notes = meter_in(tmp_path), []
    meter.display.note = notes.append  # type: ignore[method-assign]
    counts = {"count/tokens": jnp.float32(5), "count/label": jnp.float32(2), "label_loss": jnp.float32(0.5)}
    meter.read(1, metrics(1.5) | counts)
    meter.read(2, metrics(0.5) | counts | {"count/tokens": jnp.float32(0), "tokens_loss": jnp.float32(0)})
    meter.read(3, metrics(0.5) | counts | {"count/tokens": jnp.float32(0), "tokens_loss": jnp.float32(0)})
    meter.read(4, metrics(1.25) | counts)
    lines = {line["step"]: line for line in read_metrics(tmp_path)}
    assert [lines[step].get("train/loss") for step in range(1, 5)] == [1.5, None, None, 1.25]
    assert [lines[step].get("train/batches_without_predictions") for step in range(1, 5)] == [None, 1, 2, 2]
    assert lines[2]["train/label_loss"] == 0.5 and "train/tokens_loss" not in lines[2]
    assert not any("count/" in name for line in lines.values() for name in line)
    said = [note for note in notes if "predicts nothing" in note]
    assert len(said) == 1 and said[0].startswith("step 2: the batch predicts nothing (tokens)")
    meter.log.close()
    assert meter_in(tmp_path, start=4).empty == 2


def test_waits_and_goodput_are_counted(tmp_path: Path) -> None:
    meter = meter_in(tmp_path, created=datetime.timedelta(seconds=100))
    for _ in range(2):
        with meter.waiting_for_data():
            time.sleep(0.05)
    with meter.saving():
        time.sleep(0.1)
    with meter.waiting_for_data():  # for step 3, before the numbers of step 2 are read
        time.sleep(0.3)
    meter.read(1, metrics(1.0))
    meter.read(2, metrics(1.0))
    first, line = read_metrics(tmp_path)
    assert 0.05 <= first["train/data_wait_seconds"] < 0.2 and 0.05 <= line["train/data_wait_seconds"] < 0.2
    assert 0.1 <= first["train/checkpoint_wait_seconds"] < 0.3 and line["train/checkpoint_wait_seconds"] == 0
    assert line["train/goodput"] == pytest.approx(line["train/seconds"] / 100, rel=0.05)
    assert line["train/seconds"] < 0.6  # the save is none of it
    meter.read(3, metrics(1.0))
    assert 0.3 <= read_metrics(tmp_path)[-1]["train/data_wait_seconds"] < 0.5


def test_flops_follow_the_phases() -> None:
    from jaxformer.runs.loading import build_model

    config = configs.load("gpt:smoke", ["training.phases=[{'steps': 3, 'batch_size': 8}]", "training.batch_size=16"])
    flops = step_flops(config.phases, build_model(config, config.supervision), config.supervision, None)
    assert flops(1) == flops(3) == flops(4) / 2 == flops(100) / 2 > 1e8


def test_a_stuck_step_is_reported_once_with_its_stack(tmp_path: Path) -> None:
    notes: list[str] = []
    display = Display(quiet=True)
    display.note = notes.append  # type: ignore[method-assign]
    watchdog = Watchdog(0.2, tmp_path, display)
    for step in range(1, 4):
        watchdog.watch(step)
        time.sleep(0.05)

    def where_it_hangs() -> None:
        time.sleep(0.8)

    where_it_hangs()
    assert len(notes) == 1 and "step 3 is not done after 0.2 seconds" in notes[0] and "stuck-0.txt" in notes[0]
    text = (tmp_path / "stuck-0.txt").read_text()
    assert "where_it_hangs" in text and text.count("step 3 is not done") == 1
    watchdog.watch(4)
    time.sleep(0.6)
    assert len(notes) == 2 and "step 4" in notes[1]
    watchdog.watch(5)
    watchdog.close()
    time.sleep(0.5)
    assert len(notes) == 2


@pytest.mark.slow
def test_a_profile_of_a_few_steps_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_corpus(tmp_path)
    keys = {"training.num_steps": 10, "footprint.enabled": False, "evaluation.max_examples": 8}
    assert main([*pretraining("gpt", corpus, tmp_path / "run", **keys), "--profile"]) == 0
    assert "a profile of 5 steps is in" in capsys.readouterr().err
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_the_environment_says_who_a_process_is() -> None:
    assert _peers({}) is None
    own = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert _peers(own) == {"num_processes": 4, "process_id": 3, "cluster_detection_method": "deactivate"}
    assert _peers(own | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None
    for wrong, message in (
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID from 0 to 3"),
        ({"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES='four' is not a whole number"),
    ):
        with pytest.raises(UserError, match=message):
            _peers(own | wrong)
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        _peers({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"})
    task = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "a,b"}
    assert _peers(task) == {"local_device_ids": None}
    assert _peers(task | {"SLURM_NTASKS": "1"}) is None
    assert _peers({"SLURM_NTASKS": "2"}) is None  # in the batch script, outside of srun
    assert _peers({"OMPI_COMM_WORLD_SIZE": "2"}) == {}


def test_a_slurm_task_takes_its_share_of_the_gpus() -> None:
    def share(gpus: str, tasks: str, local: int, node: int = 0) -> list[int] | None:
        places = {"SLURM_LOCALID": str(local), "SLURM_NODEID": str(node)}
        return _local_devices({"CUDA_VISIBLE_DEVICES": gpus, "SLURM_STEP_TASKS_PER_NODE": tasks, **places})

    assert share("0,1,2,3", "4(x2)", 2) == [2]  # one GPU a task
    assert share("0,1,2,3", "1(x2)", 0) == [0, 1, 2, 3]  # one task a node
    assert share("0,1,2,3", "2", 1) == [2, 3]
    assert share("0", "4", 3) == [0]  # each task bound to its own
    assert share("0,1", "2,1", 1) == [1] and share("0,1", "2,1", 0, node=1) == [0, 1]
    assert share("", "4", 3) is None
