"""Kubernetes and SkyPilot: fakes of kubectl and sky run the workers on this machine, and fail as the real ones do."""

import json
import subprocess
from pathlib import Path

import clouds
import pytest
from launching import COMMAND, GKE, SECRET, SKY, Launch, output, status, stub, until

from jaxformer.launch.records import jobs_folder


@pytest.mark.slow
@pytest.mark.parametrize("place", ["skypilot", "gke"])
def test_a_job_that_was_never_taken_can_be_stopped_and_forgotten(
    place: str, cloud: clouds.Cloud, launch: Launch
) -> None:
    words = SKY if place == "skypilot" else [*GKE, "--accelerator=v4-16"]
    cloud.fail(*(("sky", ["launch"]) if place == "skypilot" else ("kubectl", ["apply"])), "login")
    assert "log in" in output(launch(*words, *COMMAND), 2)
    assert "already" in output(launch("stop", "job"), 0)
    output(launch("logs", "job"), 0)
    output(launch("delete", "job"), 0)
    assert "no job was launched" in output(launch("status"), 0)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["gke", "skypilot"])
def test_the_dry_run_of_a_manifest_can_be_pasted(
    place: str, cloud: clouds.Cloud, launch: Launch, project: Path
) -> None:
    stub(cloud, 'echo "${#HF_TOKEN} $WHO $*" > "$WHERE/$JAX_PROCESS_ID"')
    cloud.worker_environment["WHERE"] = str(project)
    words = [*SKY] if place == "skypilot" else [*GKE, "--accelerator=v4-16"]
    text = output(launch(*words, "--dry-run", "--secret=HF_TOKEN", "--env=WHO=$(you) & me", *COMMAND), 0)
    assert SECRET not in text
    environment = {**cloud.environment, "HF_TOKEN": SECRET}
    subprocess.run(["bash", "-e"], input=text, cwd=project, env=environment, check=True, text=True)
    until(lambda: all((project / str(index)).exists() for index in range(2)))
    for index in range(2):
        said = (project / str(index)).read_text()
        assert said == f"{len(SECRET)} $(you) & me train --config=gpt:smoke --workdir=gs://b/job\n"


@pytest.mark.parametrize(
    "accelerator",
    [
        ["--accelerator=v4-16", "--slices=2"],
        pytest.param(["--accelerator=h100:8", "--hosts=4"], marks=(pytest.mark.slow, pytest.mark.full)),
    ],
)
def test_a_jobset_is_applied_followed_and_deleted(accelerator: list[str], cloud: clouds.Cloud, launch: Launch) -> None:
    cloud.settings["check_manifests"] = True
    stub(cloud, 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES: $HF_TOKEN $WHO $*"')
    said = output(launch(*GKE, *accelerator, "--secret=HF_TOKEN", "--env=WHO=$(you) & me", "--queue=q", *COMMAND), 0)
    for index in range(4):
        assert f"[{index}] {index} of 4: *** $(you) & me train --config=gpt:smoke --workdir=gs://b/job" in said, said
    kept = "".join(path.read_text(errors="replace") for path in (jobs_folder() / "job").iterdir())
    assert SECRET not in kept and SECRET not in json.dumps(cloud.calls("kubectl"))
    found = status(launch, "job")
    assert (found["state"], found["attempts"], set(found["workers"])) == ("done", 1, {"0", "1", "2", "3"})  # type: ignore[arg-type]
    output(launch("delete", "job"), 0)
    assert not cloud.state().get("jobsets") and not cloud.state().get("secrets")


@pytest.mark.slow
def test_a_jobset_runs_again_on_75_and_stops_on_2(cloud: clouds.Cloud, launch: Launch) -> None:
    script = (
        'echo "attempt $ATTEMPT"; sleep 1.5; [ $ATTEMPT -lt 2 ] && exit 75; [ $JAX_PROCESS_ID = 1 ] || exec sleep 20'
    )
    stub(cloud, f'{script}; echo "data.path: gone"; exit 2')
    said = output(launch(*GKE, "--accelerator=v4-16", "--secret=HF_TOKEN", *COMMAND), 2)
    assert "failed: worker 1 ended with exit code 2: data.path: gone" in said
    assert all(f"[1] attempt {number}" in said for number in range(3))
    assert status(launch, "job")["attempts"] == 3
    # The same command makes room for itself.
    stubbed = cloud.folder / "image" / "jaxformer"
    stubbed.write_text("#!/bin/bash\nexit 75\n")
    output(launch(*GKE, "--accelerator=v4-16", "--restarts=1", "--secret=HF_TOKEN", *COMMAND), 75)
    assert status(launch, "job")["attempts"] == 2


@pytest.mark.slow
def test_a_jobset_that_is_stopped_has_time_to_save(cloud: clouds.Cloud, launch: Launch) -> None:
    stub(cloud, "trap 'echo saved >> ../saved; exit 75' TERM; echo ready; while true; do sleep 0.1; done")
    output(launch(*GKE, "--accelerator=v4-16", "--detach", *COMMAND), 0)
    until(lambda: status(launch, "job")["workers"] == {"0": ["ready"], "1": ["ready"]})
    again = output(launch(*GKE, "--accelerator=v4-16", *COMMAND), 2)
    assert "runs on this cluster already" in again and "lost sight" not in again
    output(launch("stop", "job"), 0)
    assert len(list(cloud.folder.rglob("saved"))) >= 1
    found = status(launch, "job")
    assert (found["state"], found["workers"]) == ("stopped", {"0": ["ready"], "1": ["ready"]})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"),
    [pytest.param("permission", "ask the project's owner", marks=pytest.mark.full), ("login", "log in")],
)
def test_a_cluster_that_refuses_is_said_so(kind: clouds.Kind, said: str, cloud: clouds.Cloud, launch: Launch) -> None:
    cloud.fail("kubectl", ["apply"], kind)
    assert said in output(launch(*GKE, "--accelerator=v4-16", *COMMAND), 2).splitlines()[-1]


def test_skypilot_runs_again_on_75_and_stops_on_2(cloud: clouds.Cloud, launch: Launch) -> None:
    stub(
        cloud,
        'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at ${JAX_COORDINATOR_ADDRESS##*:}: ${#HF_TOKEN}"; echo x >> runs\n'
        "[ $(wc -l < runs) -lt 3 ] && exit 75; [ $JAX_PROCESS_ID = 1 ] || exec sleep 20\n"
        'echo "data.path: gone"; exit 2',
    )
    said = output(launch(*SKY, "--secret=HF_TOKEN", *COMMAND), 2)
    for index in range(2):
        # The first may be ended, for the other's sake, before it speaks again.
        assert said.count(f"[{index}] {index} of 2 at 8476: {len(SECRET)}") in ((1, 2, 3), (3,))[index], said
    assert "failed: worker 1 ended with exit code 2: data.path: gone" in said
    assert SECRET not in json.dumps(cloud.calls("sky"))
    assert SECRET not in (jobs_folder() / "job" / "task.yaml").read_text()
    found = status(launch, "job")
    assert found["state"] == "failed" and "data.path: gone" in str(found["workers"])


@pytest.mark.slow
def test_skypilots_job_is_stopped(cloud: clouds.Cloud, launch: Launch) -> None:
    stub(cloud, "echo ready; exec sleep 100")
    output(launch(*SKY, "--detach", *COMMAND), 0)
    until(lambda: status(launch, "job")["state"] == "running")
    assert "not over" in output(launch(*SKY, *COMMAND), 2)
    output(launch("stop", "job"), 0)
    until(lambda: status(launch, "job")["state"] == "stopped")
