"""Which checkpoint of a run is meant, by step, best and latest, in every place that names one."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import make_run, params_of

import jaxformer
from jaxformer import config as configs
from jaxformer.checkpoint import CheckpointConfig, Checkpoints, named, save_params
from jaxformer.checkpoint.digest import DIGEST, find_damage, write_digest
from jaxformer.checkpoint.naming import check_may_train, checkpoint_of
from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.interop import export_run
from jaxformer.runs import stored_run, train
from jaxformer.trees import flatten, unflatten

LOSSES = {100: 3.0, 200: 1.5, 300: 2.0}  # 200 is the best
BIAS = "decoder/final_norm/bias"


def make_steps(run: Path) -> None:
    """Give a run checkpoints of three steps, whose biases of the last norm are their steps."""
    params = params_of(run)
    shutil.rmtree(run / "checkpoints")
    for step, loss in LOSSES.items():
        save_params(run / "checkpoints", unflatten(params | {BIAS: np.full(16, step, np.float32)}), step)
        folder = run / "checkpoints" / str(step)
        arrays = json.loads((folder / DIGEST).read_text())["arrays"]
        (folder / DIGEST).unlink()
        write_digest(folder, step, arrays, {"eval/loss": loss, "eval/accuracy": loss / 10})


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run("gpt2", tmp_path_factory.mktemp("runs") / "mine")
    make_steps(run)
    return run


def step_read(found: jaxformer.runs.loading.LoadedRun) -> tuple[int, float]:
    return found.step, float(flatten(found.params)[BIAS][0])


@pytest.mark.parametrize(("behind", "step", "wanted"), [
    ("", "", 300), ("", "latest", 300), ("", "best", 200), ("", 100, 100), ("", "100", 100), ("@best", "", 200),
    ("@latest", "", 300), ("@100", "", 100), ("@best", "best", 200), ("/checkpoints/100", "", 100),
    ("/checkpoints", "", 300), ("/checkpoints", "best", 200), ("/", "best", 200),
])  # fmt: skip
def test_a_run_is_loaded_at_any_of_its_steps(stored: Path, behind: str, step: str | int, wanted: int) -> None:
    assert step_read(jaxformer.load(f"{stored}{behind}", step)) == (wanted, wanted)


def test_the_best_goes_by_the_metric_of_the_runs_config(stored: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stored, tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    for settings, best in (({"best_mode": "max"}, 100), ({"best_metric": "eval/accuracy"}, 200)):
        record["config"]["checkpoint"] |= settings
        (run / "config.json").write_text(json.dumps(record))
        assert checkpoint_of(run, "best").name == str(best)
        record["config"]["checkpoint"]["best_mode"] = "min"
    del record["config"]["checkpoint"]  # a record of long ago
    (run / "config.json").write_text(json.dumps(record))
    assert checkpoint_of(run, "best").name == "200"


def test_a_folder_whose_name_holds_an_at_is_that_folder(stored: Path, tmp_path: Path) -> None:
    for name in ("a@best", "b@100", "c@d"):
        run = shutil.copytree(stored, tmp_path / name)
        assert named(run) == (run, "latest") and named(f"{run}@best") == (run, "best")
        assert checkpoint_of(run, 100) == run / "checkpoints" / "100"
    assert named(tmp_path / "nothing@7") == (tmp_path / "nothing@7", "latest")


@pytest.mark.parametrize(("behind", "step", "said"), [
    ("", "700", r"mine has no checkpoint of step 700; there are 100, 200, 300$"),
    ("@7", "", r"mine has no checkpoint of step 7; there are 100, 200, 300$"),
    ("", "newest", "'newest' is no step; give best, latest or the number"),
    ("", "-1", "'-1' is no step"),
    ("@bset", "", "'bset' is no step; write .*mine@best, .*mine@latest or .*mine@STEP"),
    ("@100", "best", "names the checkpoint of step 100, and best was asked for"),
    ("/checkpoints/200", "100", "names the checkpoint of step 200, and 100 was asked for"),
])  # fmt: skip
def test_a_step_that_there_is_not_is_one_line(stored: Path, behind: str, step: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        checkpoint_of(f"{stored}{behind}", step)


def test_a_run_that_was_never_judged_has_no_best(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint was saved with eval/loss, so none is the best; there is 7 "):
        jaxformer.load(make_run("gpt2", tmp_path / "run"), "best")


def test_the_verbs_take_a_step(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import load_file

    for step, words in ((200, ["--step=best"]), (100, ["--step=100"]), (300, [])):
        out = tmp_path / str(step)
        assert main(["export", f"--workdir={stored}", *words, str(out)]) == 0
        tensors = load_file(out / "model.safetensors")
        assert tensors[next(name for name in tensors if name.endswith("ln_f.bias"))][0] == step
    assert export_run(Path(f"{stored}@best"), tmp_path / "at")
    assert load_file(tmp_path / "at" / "model.safetensors").keys() == tensors.keys()
    assert main(["generate", f"--workdir={stored}", "--step=5", "Return"]) == 2
    assert main(["evaluate", f"--workdir={stored}@5"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(line.endswith("mine has no checkpoint of step 5; there are 100, 200, 300")
                                  for line in said)  # fmt: skip


def test_a_checkpoint_that_is_named_and_damaged_is_refused(stored: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stored, tmp_path / "run")
    data = next(path for path in (run / "checkpoints" / "200").rglob("*") if path.name == "0")
    data.write_bytes(b"\0" + data.read_bytes()[1:] + b"\0")
    for text in (f"{run}@best", f"{run}@200"):
        with pytest.raises(UserError, match=r"200 is damaged: .*; .* also has 100, 300 \(as .*run@300\)"):
            jaxformer.load(text)
    assert step_read(jaxformer.load(f"{run}@100")) == (100, 100)


@pytest.mark.parametrize("how", [shutil.copytree, shutil.move])
def test_a_checkpoint_that_was_copied_or_renamed_is_noticed(stored: Path, tmp_path: Path, how: object) -> None:
    run = shutil.copytree(stored, tmp_path / "run")
    how(run / "checkpoints" / "200", run / "checkpoints" / "900")  # type: ignore[operator]
    said = r"900 is damaged: its digest.json names step 200, so it was copied or renamed; .* also has 100,"
    for step in ("latest", "900"):
        with pytest.raises(UserError, match=said):
            jaxformer.load(run, step)
    left = 200 if how is shutil.copytree else 300
    assert step_read(jaxformer.load(run, "best")) == (left, left)


def test_a_run_does_not_go_on_from_a_renamed_checkpoint(stored: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stored, tmp_path / "run")
    shutil.copytree(run / "checkpoints" / "100", run / "checkpoints" / "900")
    target = {"params": stored_run(run).model.shapes}
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), target)
    found = Checkpoints(run / "checkpoints", CheckpointConfig()).restore_latest(target)
    assert found is not None and found[0] == 300
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["100", "200", "300", "900.damaged-1"]


def test_a_digest_that_names_no_step_is_accepted(stored: Path, tmp_path: Path) -> None:
    from jaxformer.checkpoint.digest import _hash_content

    folder = shutil.copytree(stored / "checkpoints" / "100", tmp_path / "checkpoints" / "100")
    content = json.loads((folder / DIGEST).read_text())
    del content["step"], content["sha256"]
    (folder / DIGEST).write_text(json.dumps(content | {"sha256": _hash_content(content)}))
    assert find_damage(folder) is None


@pytest.mark.parametrize(("behind", "said"), [
    ("/checkpoints/200", "is the checkpoint 200 of the run .*; give --workdir=.*mine to go on with it.*=.*mine@200"),
    ("/checkpoints", "are the checkpoints of the run .*; give --workdir=.*mine to go"),
    ("@best", "is the checkpoint best of the run .*mine; .*init_from=.*mine@best"),
])  # fmt: skip
def test_no_run_begins_in_a_checkpoint(stored: Path, behind: str, said: str) -> None:
    before = sorted(path.as_posix() for path in stored.rglob("*"))
    with pytest.raises(UserError, match=said):
        train(configs.load("gpt:smoke"), Path(f"{stored}{behind}"))
    assert sorted(path.as_posix() for path in stored.rglob("*")) == before


@pytest.mark.parametrize("left", ["300", "300.damaged-1"])
def test_checkpoints_without_their_config_are_not_started_over(stored: Path, tmp_path: Path, left: str) -> None:
    run = shutil.copytree(stored, tmp_path / "run")
    (run / "config.json").unlink()
    for step in ("100", "200"):
        shutil.rmtree(run / "checkpoints" / step)
    (run / "checkpoints" / "300").rename(run / "checkpoints" / left)
    with pytest.raises(UserError, match=rf"run has checkpoints \({left}\) but no config.json, .* bring it back"):
        train(configs.load("gpt:smoke"), run)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "tokenizer.json"]
    shutil.rmtree(run / "checkpoints" / left)
    check_may_train(run)
    check_may_train(tmp_path / "fresh@100")


def test_a_start_reads_the_checkpoint_that_is_named(stored: Path, tmp_path: Path) -> None:
    record = json.loads((stored / "config.json").read_text())
    record["config"]["data"] = {"name": "text", "path": str(tmp_path / "text.txt"), "validation_share": 0.2}
    record["config"]["tokenizer"]["path"] = str(stored / "tokenizer.json")
    (tmp_path / "text.txt").write_text("\n\n".join(["Return the number of items in the queue. " * 12] * 12))
    wanted = {"training.batch_size": 8, "optimizer.learning_rate": 0.0, "optimizer.warmup_steps": 0}
    wanted |= {"sharding.data": 1, "training.unroll_layers": 1, "evaluation.max_examples": 8}
    overrides = [f"{key}={value}" for key, value in wanted.items()]
    train(configs.resolve(record["config"], [*overrides, f"init_from={stored}@best"], name="on"), tmp_path / "on")
    assert float(flatten(jaxformer.load(tmp_path / "on").params)[BIAS][0]) == 200
    with pytest.raises(UserError, match="mine has no checkpoint of step 4; there are 100, 200, 300"):
        train(configs.resolve(record["config"], [*overrides, f"init_from={stored}@4"], name="none"), tmp_path / "none")


def test_a_teacher_is_read_at_the_checkpoint_that_is_named(stored: Path) -> None:
    from jaxformer.devices import ShardingConfig, make_mesh
    from jaxformer.runs.teacher import open_teacher

    config = stored_run(stored).config
    taught = configs.resolve(
        config.to_dict() | {"distillation": {"teacher": f"{stored}@best"}}, name="student", stored=True
    )
    teacher = open_teacher(taught, stored_run(f"{stored}@best"), make_mesh(ShardingConfig(), {"rows": 8}))
    assert teacher is not None and float(flatten(teacher.params)[BIAS][0]) == 200
