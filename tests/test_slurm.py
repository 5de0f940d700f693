"""SLURM for real: two nodes on loopback, a job of two processes that is cancelled in the middle and run again."""

import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import slurm
from training import logged, make_corpus, pretraining

import jaxformer
from jaxformer.checkpoint import finished_steps
from jaxformer.launch import local
from jaxformer.parameters import flatten
from jaxformer.run import read_metrics, read_record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.missing()), reason=f"no SLURM here: {', '.join(slurm.missing())}"),
]

NUM_STEPS = 120
SCRIPT = """#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --output={folder}/job-%j.txt
export XLA_FLAGS=--xla_force_host_platform_device_count={devices}
srun --kill-on-bad-exit=1 {command}
exit $?
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Slurm]:
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.mark.parametrize("devices", [1, 2])
def test_a_cancelled_job_goes_on_where_it_stopped(devices: int, cluster: slurm.Slurm, tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    keys = {"training.num_steps": NUM_STEPS, "checkpoint.every": 50, "footprint.enabled": False}

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    assert local.wait(local.start(pretraining("gpt", corpus, whole, **keys), 2, flags)) == 0

    command = [sys.executable, "-m", "jaxformer", *pretraining("gpt", corpus, broken, **keys)]
    script = tmp_path / "job.sh"
    script.write_text(SCRIPT.format(folder=tmp_path, devices=devices, command=shlex.join(command)))
    job = cluster.sbatch(script)
    deadline = time.monotonic() + 120
    while not any(line["step"] >= 20 for line in read_metrics(broken)):
        assert time.monotonic() < deadline and cluster.state(job) in ("PENDING", "RUNNING"), cluster.output(job)
        time.sleep(0.05)
    cluster.cancel(job, "--signal=TERM")
    assert cluster.wait(job, ["FAILED"], timeout=90) == "FAILED", cluster.output(job)
    assert cluster.exit_code(job) == (75, 0), cluster.output(job)
    stopped = finished_steps(broken / "checkpoints")[-1]
    assert 20 <= stopped < NUM_STEPS and "stopped by SIGTERM and saved" in cluster.output(job)
    assert read_record(broken)["device"] == {"platform": "cpu", "kind": "cpu", "count": 2 * devices, "processes": 2}

    again = cluster.sbatch(script)
    assert cluster.wait(again, ["COMPLETED"], timeout=180) == "COMPLETED", cluster.output(again)
    assert f"at step {stopped}" in cluster.output(again)
    assert logged(broken) == logged(whole)
    mine, expected = (flatten(jaxformer.load(run).params) for run in (broken, whole))
    for path, leaf in expected.items():
        np.testing.assert_array_equal(mine[path], leaf, err_msg=path)
