"""Launching: what is told to each place, word for word; bad descriptions; secrets and odd words."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clouds import check_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import SECRET, job

from jaxformer.cli.main import main
from jaxformer.cli.verbs import default_workdir
from jaxformer.errors import UserError
from jaxformer.launch import commands, gke, records, slurm, worker
from jaxformer.launch.accelerators import GPUS, TPUS, tpu
from jaxformer.launch.job import Job, name_of
from jaxformer.launch.jobset import manifest
from jaxformer.launch.places import PLACES, described

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "launch"
RUN = ["--", "train", "--config=bert:smoke", "--workdir=gs://bucket/it's a run/bert"]
TPU = ["tpu_vm", "--name=bert", "--zone=us-west4-a"]
SWEEP = ["--", "sweep", "--config=bert:smoke", "--sweep.optimizer.learning_rate=1e-4,1e-3", "--study=gs://bucket/lr"]
SHARED = ["--storage=postgresql+psycopg://me@host/studies"]
CASES = {
    "local": ["local", "--", "train", "--config=gpt:smoke"],
    "local-two": ["local", "--processes=2", "--env=WHO=you & me", "--", "train", "--config=gpt:smoke"],
    "slurm": ["slurm", "--hosts=4", "--accelerator=h100:8", "--partition=gpu", "--time=24:00:00",
              "--sbatch=--exclusive", "--reserved=mine", "--setup=module load cuda", "--env=WHO=you & me", *RUN],
    "slurm-cpu": ["slurm", "--tasks-per-node=2", "--restarts=3", "--backoff=60", *RUN],
    "slurm-sweep": ["slurm", "--array=2", "--accelerator=h100:1", *SWEEP[:-1], "--study=studies/lr"],
    "slurm-sweep-hosts": ["slurm", "--array=2", "--hosts=2", "--tasks-per-node=2", "--accelerator=h100:8", *SWEEP[:-1],
                          "--study=studies/lr"],
    "tpu_vm-sweep-hosts": [*TPU, "--accelerator=v5litepod-16", *SWEEP, *SHARED],
    "tpu_vm-sweep": [*TPU, "--accelerator=v5litepod-1", *SWEEP, *SHARED],
    "gke-sweep": ["gke", "--accelerator=v5litepod-1", "--image=i", *SWEEP, *SHARED],
    "skypilot-sweep": ["skypilot", "--accelerator=a100:1", *SWEEP, *SHARED],
    "tpu_vm": [*TPU, "--accelerator=v5litepod-16", "--spot", "--secret=HF_TOKEN", "--env=WHO=you & me", *RUN],
    "tpu_vm-reserved": [*TPU, "--project=p", "--accelerator=v4-8", "--reserved", "--version=mine", "--delete",
                        "--network=n", "--subnetwork=s", "--service-account=a@b.c", "--internal-ips",
                        "--setup=./install", *RUN],
    "tpu_vm-queued": [*TPU, "--accelerator=v5p-16", "--queued", "--valid-until=6h", *RUN],
    "tpu_vm-slices": [*TPU, "--accelerator=v6e-16", "--slices=2", "--spot", *RUN],
    "gke": ["gke", "--accelerator=v5litepod-16", "--image=host/image:1", "--queue=research", "--secret=HF_TOKEN",
            "--env=WHO=$(you) & me", *RUN],
    "gke-slices": ["gke", "--accelerator=tpu7x-16", "--slices=2", "--image=i", "--reserved=mine", "--priority=high",
                   "--topology=2x4x1", "--namespace=n", "--context=c", "--service-account=runner", *RUN],
    "gke-gpus": ["gke", "--accelerator=h100:8", "--hosts=2", "--image=i", "--spot", "--mount=/data=gs://corpus/text",
                 *RUN],
    "skypilot": ["skypilot", "--accelerator=h100:8", "--hosts=2", "--spot", "--secret=HF_TOKEN", "--env=WHO=you & me",
                 "--mount=/data=s3://corpus", *RUN],
    "skypilot-tpu": ["skypilot", "--accelerator=v5litepod-16", "--infra=gcp/us-west4/us-west4-a", *RUN],
    "skypilot-image": ["skypilot", "--accelerator=a100-80gb:4", "--image=host/image:1", "--disk=200", *RUN],
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))  # where jobs are remembered: there are none yet
    monkeypatch.setenv("HF_TOKEN", SECRET)


def parsed(words: list[str]) -> tuple[Job, object]:
    from jaxformer.cli import main as cli

    own, command = words[: words.index("--")], words[words.index("--") + 1 :]
    return described(words[0], command, "gs://b/r", vars(cli._parser().parse_args(["launch", *own])))


# Word for word.


@pytest.mark.parametrize("case", CASES)
def test_the_dry_run_is_the_golden_text(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    place, *words = CASES[case]
    assert main(["launch", place, "--dry-run", *words]) == 0
    text = capsys.readouterr().out
    for path, name in (
        (sys.executable, "PYTHON"), (str(records.jobs_folder()), "JOBS"), (worker.__file__, "HERE/launch/worker.py"),
    ):  # fmt: skip
        text = text.replace(path, name)
    path = GOLDEN / f"{case}.txt"
    if os.environ.get("JAXFORMER_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    assert SECRET not in text
    assert not records.records()  # nothing was launched


@pytest.mark.parametrize("case", CASES)
def test_the_dry_run_is_shell(case: str) -> None:
    subprocess.run(["bash", "-n"], input=(GOLDEN / f"{case}.txt").read_text(encoding="utf-8"), text=True, check=True)


@pytest.mark.parametrize(
    "accelerator", [*(f"{name}-16" for name in TPUS if TPUS[name].gke), *(f"{name}:8" for name in GPUS)]
)
@pytest.mark.parametrize("more", [{}, {"spot": True, "secrets": ("HF_TOKEN",), "mounts": {"/data": "gs://b/c"}}])
def test_every_manifest_fits_the_schemas_of_jobset_and_kubernetes(accelerator: str, more: dict[str, object]) -> None:
    given = job(accelerator=accelerator, environment={"A": "b"}, **more)
    check_manifest(manifest(given, image="i", queue="q", priority="p", service_account="s"))


def test_the_check_of_manifests_notices_a_slip() -> None:
    slip = manifest(job(accelerator="v4-16"), image="i")
    slip["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["hostNetworking"] = True
    with pytest.raises(Exception, match="hostNetworking"):
        check_manifest(slip)


# Bad descriptions: one line, exit code 2, and nothing begun.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*TPU, "--accelerator=v5litepod-12", *RUN], "there is no v5litepod-12; v5litepod comes as 1, 4, 8, 16, 32, …"),
        ([*TPU, "--accelerator=h100:8", *RUN], "'h100:8' is no TPU type"),
        (["gke", "--image=i", "--accelerator=h10:8", *RUN], "did you mean 'h100"),
        (["gke", "--image=i", "--accelerator=v2-8", *RUN], "GKE has no v2"),
        (["gke", "--accelerator=v4-8", *RUN], "--image: give the container image"),
        (["gke", "--image=i", "--accelerator=v4-8", "--hosts=2", *RUN], "has 1 by itself"),
        (["gke", "--image=i", "--accelerator=h100:8", "--slices=2", *RUN], "only TPUs come in slices"),
        (["gke", "--image=i", "--accelerator=h100:8", "--mount=/d=s3://b", *RUN], "GKE mounts gs:// only"),
        (["gke", "--image=i", "--accelerator=v4-8", "--reserved", *RUN], "give the reservation's name"),
        (["skypilot", "--accelerator=tpu7x-16", *RUN], "SkyPilot has no tpu7x"),
        ([*TPU, "--accelerator=v4-8", "--reserved=mine", *RUN], "leave the name out"),
        (["tpu_vm", "--accelerator=v4-8", *RUN], "--zone: give the zone"),
        ([*TPU, "--accelerator=v4-8", "--code=tests", *RUN], "tests has no pyproject.toml"),
        ([*TPU, "--accelerator=v4-8", "--", "train", "--config=bert:smoke"], "share no disk"),
        ([*TPU, "--accelerator=v4-8", "--", "train", "--config=bert:smoke", "--workdir=runs/x"], "give gs://BUCKET/RUN"),
        ([*TPU, "--accelerator=v4-8", "--spot", "--reserved", *RUN], "exclude each other"),
        ([*TPU, "--accelerator=v4-8", "--zone=a;b", *RUN], "--zone: 'a;b' may hold"),
        (["slurm", "--accelerator=v4-8", *RUN], "is not KIND:N"),
        (["slurm", "--partition=a b", *RUN], "--partition: 'a b' may hold"),
        (["slurm", "--sbatch=exclusive", *RUN], "is no option of sbatch"),
        (["slurm", "--tasks-per-node=0", *RUN], "--tasks-per-node: 0 must be at least 1"),
        (["local", "--processes=0", *RUN], "--processes: 0 must be at least 1"),
        (["local", "--restarts=-1", *RUN], "--restarts: -1 must be at least 0"),
        (["local", "--name=Bert", *RUN], "'Bert' must be lower-case"),
        (["local", "--name=a;rm", *RUN], "'a;rm' must be lower-case"),
        (["local", "--env=WHO", *RUN], "'WHO' is not of the form A=B"),
        (["local", "--env=A B=c", *RUN], "'A B' is no name of a variable"),
        (["local", "--env=HF_TOKEN=x", *RUN], "give --secret HF_TOKEN"),
        (["local", "--env=WANDB_API_KEY=x", *RUN], "give --secret WANDB_API_KEY"),
        (["local", "--secret=NOT_SET", *RUN], "export NOT_SET first"),
        (["local", "--", "train", "--config=bert:smok"], "smoke"),
        (["local", "--", "train", "--config=bert:smoke", "--config.model.num_layer=1"], "num_layers"),
        (["local", "--", "train", "--config=bert:smoke", "--workdir=a\nb"], "control characters"),
    ],
)  # fmt: skip
def test_a_job_that_cannot_be_is_refused_in_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not records.records()


@pytest.mark.parametrize(
    "words",
    [["local"], ["local", "--"], ["local", "--", "trian"], ["local", "--", "train", "--confg=x"], ["slrum", *RUN],
     ["local", "--process=2", *RUN], ["status", "--", "train"]],
)  # fmt: skip
def test_a_slip_on_the_command_line_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["launch", *words])
    assert end.value.code == 2 and "jaxformer" in capsys.readouterr().err


def test_generations_that_the_tpu_api_lacks_are_pointed_to_where_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--accelerator=tpu7x-16", "--slices=2", "--spot", "--project=p"]
    assert main(["launch", *TPU, *words, *RUN]) == 2
    err = capsys.readouterr().err
    assert "the Cloud TPU API has no tpu7x" in err
    (gke,) = [line.strip() for line in err.splitlines() if line.strip().startswith("jaxformer launch gke")]
    assert "--slices=2" in gke and "it'\"'\"'s a run" in gke
    groups = [line for line in err.splitlines() if "gcloud compute" in line]
    assert len(groups) == 3 and "--size=2" in groups[2] and "--accelerator-topology=2x2x2" in groups[0]
    assert "--provisioning-model=SPOT" in groups[1] and "tpu7x-standard-4t" in groups[1]


@pytest.mark.parametrize(
    ("accelerator", "chips", "hosts", "topology"),
    [
        ("v2-8", 4, 1, "2x2"), ("v3-32", 16, 4, "4x4"), ("v4-8", 4, 1, "2x2x1"), ("v4-16", 8, 2, "2x2x2"),
        ("v4-32", 16, 4, "2x2x4"), ("v5p-128", 64, 16, "4x4x4"), ("v5litepod-1", 1, 1, "1x1"),
        ("v5litepod-8", 8, 1, "2x4"), ("v5litepod-16", 16, 4, "4x4"), ("v5litepod-256", 256, 64, "16x16"),
        ("v5e-32", 32, 8, "4x8"), ("v6e-8", 8, 1, "2x4"), ("v6e-64", 64, 16, "8x8"), ("tpu7x-8", 4, 1, "2x2x1"),
        ("tpu-v6e-16", 16, 4, "4x4"), ("tpu7x-4096", 2048, 512, "8x16x16"),
    ],
)  # fmt: skip
def test_accelerator_types_are_read_as_the_clouds_count(
    accelerator: str, chips: int, hosts: int, topology: str
) -> None:
    found = tpu(accelerator)
    assert found is not None
    assert (found.chips, found.hosts, found.topology) == (chips, hosts, topology)


def test_a_job_is_called_as_its_run_is() -> None:
    assert name_of(str(default_workdir("gpt:smoke"))) == "gpt-smoke"
    assert name_of(str(default_workdir("my/3d.py:a,b"))) == "job-3d-a-b"
    assert name_of("gs://b/My Run_1/") == "my-run-1"
    assert name_of("demo") == "demo"
    assert len(name_of("x" * 99)) == 40


# Odd words reach the command as they are, and run nothing.

WORDS = st.lists(
    st.text(st.characters(blacklist_categories=("Cc", "Cs")), max_size=12).map(lambda word: word.replace("\x7f", "")),
    min_size=1, max_size=4,
)  # fmt: skip
ODD = ["$(touch pwned)", "`touch pwned`", "'; touch pwned; '", '"; touch pwned; "', "a b", "%j %%", "$HOME ${A} $$",
       "\\n", "-n", "--", "END", "*", "é✓"]  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(WORDS)
def test_slurms_script_runs_the_very_words(words: list[str]) -> None:
    check_script([*words, *ODD])


def check_script(words: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="it's $(odd) ") as name:
        folder = Path(name)
        tools = folder / "bin"
        tools.mkdir()
        # srun runs what stands behind its own flags; the command is Python, which writes down what it was given.
        (tools / "srun").write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nSLURM_PROCID=0 "$@"\n')
        (tools / "srun").chmod(0o755)
        given_job = job(command=tuple(words), environment={"ODD": " ".join(words)})
        text = slurm.batch_script(given_job, slurm.Options(), folder)
        (folder / "writes.py").write_text(
            "import json, os, sys\njson.dump([sys.argv[1:], os.environ['ODD']], open('said', 'w'))\n"
        )
        text = text.replace(f"{sys.executable} -m jaxformer", f"{sys.executable} writes.py")
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(["bash", "-c", text], cwd=folder, env={**os.environ, "PATH": path}, check=True)
        assert json.loads((folder / "said").read_text()) == [words, " ".join(words)]
        assert not (folder / "pwned").exists() and (folder / "ended").read_text() == "0\n"


def test_kubernetes_puts_no_variables_into_words() -> None:
    container = manifest(job(accelerator="v4-8", command=("a", "$(HOME)", "$$(HOME)", "$")), image="i")["spec"]
    args = container["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
    # What Kubernetes makes of it: $$ is $, and a $( behind it is nothing special.
    assert [arg.replace("$$", "$") for arg in args] == ["a", "$(HOME)", "$$(HOME)", "$"]
    assert all("$(" not in arg.replace("$$", "") for arg in args)


def test_a_here_document_ends_where_it_should() -> None:
    text = "a\nEND\nEND_\n$(touch pwned)"
    done = subprocess.run(
        ["bash", "-c", commands.here_document(Path("/dev/stdout"), text)], capture_output=True, text=True
    )
    assert done.stdout == text + "\n"


# Tools.


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ERROR: (gcloud.compute.tpus.tpu-vm.create) RESOURCE_EXHAUSTED: Quota limit 'T' has been exceeded.", "quota"),
        ("ERROR: There is no more capacity in the zone \"us-west4-a\"", "capacity"),
        ("There was a problem refreshing your current auth tokens: expired; error", "login"),
        ("ERROR: (gcloud.x) NOT_FOUND: projects/quota-lab/nodes/x was not found", "missing"),
        ("ERROR: (gcloud.x) You do not currently have an active account selected.", "login"),
        ("ERROR: (gcloud.x) PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", "permission"),
        ("ERROR: (gcloud.x) [/usr/bin/ssh] exited with return code [255].", "ssh"),
        ('Error from server (NotFound): jobsets.jobset.x-k8s.io "x" not found', "missing"),
        ("Something else", ""),
    ],
)  # fmt: skip
def test_what_tools_say_is_understood(text: str, kind: str) -> None:
    error = commands.ToolError("tool", 1, f"Some chatter\n{text}\nMore chatter")
    assert error.kind == kind
    people = str(error.for_people())
    assert text in people and "\n" not in people if kind else text


def test_a_tool_that_is_not_here_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="gcloud is not on the PATH; .*--dry-run"):
        commands.run(["gcloud", "version"])


def test_pods_are_numbered_over_slices_and_old_attempts_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def pod(slice_: int, index: int, attempt: int) -> dict[str, object]:
        labels = {gke.RESTARTS: str(attempt), gke.INDEX: str(index), "jobset.sigs.k8s.io/job-index": str(slice_)}
        return {"metadata": {"name": f"{slice_}-{index}-{attempt}", "labels": labels}}

    pods = [pod(0, 0, 0), pod(1, 1, 1), pod(0, 1, 1), pod(1, 0, 0)]
    monkeypatch.setattr(gke, "run", lambda words: json.dumps({"items": pods}))
    found = gke._pods("job", gke.Options(image="i"), hosts=4)
    assert {worker: pod["metadata"]["name"] for worker, pod in found.items()} == {"1": "0-1-1", "5": "1-1-1"}
    assert list(found) == ["1", "5"]


def test_a_stream_of_a_pod_that_breaks_is_taken_up_where_it_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = [f"2026-01-01T00:00:0{number // 2}.{number}Z line {number}" for number in range(6)]
    asked: list[list[str]] = []

    def lines_of(words: list[str]) -> Iterator[str]:
        asked.append(words)
        since = next((word.partition("=")[2] for word in words if word.startswith("--since-time=")), "")
        shown = [line for line in log if line[:19] >= since[:19]]  # whole seconds, as servers do
        yield from shown[: 4 if len(asked) == 1 else None]

    labels = {gke.INDEX: "0", "jobset.sigs.k8s.io/job-index": "0"}
    pod = {"metadata": {"name": "pod", "labels": labels}, "status": {"phase": "Running"}}
    states = iter(["running", "running", "done"])
    monkeypatch.setattr(gke, "lines_of", lines_of)
    monkeypatch.setattr(gke, "run", lambda words: json.dumps({"items": [pod]}))
    monkeypatch.setattr(gke, "status", lambda record, lines: records.Status(next(states), 1))
    options = {"image": "i", "poll": 0.2}
    record = records.open_record("pods", {"place": "gke", "job": job(accelerator="v4-8").record(), "options": options})
    gke.follow(record)
    record.forget()
    assert capsys.readouterr().err == "".join(f"[0] line {number}\n" for number in range(6))
    assert len(asked) >= 2


def test_every_place_offers_the_same_functions() -> None:
    for module in PLACES.values():
        for name in ("Options", "TAKES", "check", "dry_run", "launch", "status", "follow", "stop", "delete"):
            assert hasattr(module, name), (module.__name__, name)


def test_no_secret_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    made, options = parsed(CASES["tpu_vm"])
    assert SECRET not in json.dumps(made.record()) and made.secret_values() == {"HF_TOKEN": SECRET}
    from jaxformer.launch.output import printer

    record = records.open_record("secret", {"place": "tpu_vm", "job": made.record(), "options": {}})
    record.note(message=f"no entry for {SECRET}")
    assert record.state()["message"] == "no entry for ***"
    printer(record)("0", f"the token is {SECRET}!")
    assert capsys.readouterr().err == "[0] the token is ***!\n" and SECRET not in record.log(0).read_text()
    record.forget()
