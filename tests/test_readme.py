"""What the README shows is pasted into a fresh folder and works: every command, every file, every line of Python."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import make_run
from training import make_corpus, shorten_library

import jaxformer
from jaxformer import config as configs
from jaxformer.cli import main as cli
from jaxformer.errors import UserError
from jaxformer.objectives import OBJECTIVES
from jaxformer.runs import evaluate_run, train
from jaxformer.tasks import TASKS

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def blocks() -> list[str]:
    """The indented blocks, without their indent."""
    shown = re.sub(r"<!-- rooms -->.*?<!-- /rooms -->", "", README, flags=re.DOTALL)
    found = re.findall(r"(?m)(?:^    .*\n(?:\n(?=    ))?)+", shown)
    return ["\n".join(line[4:] for line in block.splitlines()) for block in found]


BLOCKS = blocks()
FILES = {block.splitlines()[0].removeprefix("# "): block + "\n" for block in BLOCKS if block.startswith("# ")}
PYTHON = [block for block in BLOCKS if block.startswith("import ")]
COMMANDS = [
    re.sub(r"\s+# .*", "", line)
    for block in BLOCKS if block not in PYTHON and not block.startswith("# ")
    for line in block.replace("\\\n", " ").splitlines() if line.startswith("jaxformer ")
]  # fmt: skip
TINY = {
    "model.d_model": 16, "model.d_ff": 32, "model.num_heads": 2, "model.head_dim": 8, "model.num_layers": 1,
    "model.vocab_size": 420, "tokenizer.vocab_size": 420, "training.num_steps": 4, "training.batch_size": 8,
    "optimizer.warmup_steps": 1, "evaluation.max_examples": 8, "footprint.enabled": False, "checkpoint.every": 2,
    "training.eval_every": 2, "data.name": "text", "sharding.data": 1,
}  # fmt: skip


NARROW = [
    "model.d_model=32", "model.d_ff=128", "model.num_heads=2", "model.head_dim=16", "sharding.data=1",
    "footprint.enabled=False",
]  # fmt: skip


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the README's files, in which the test works."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_block_is_found() -> None:
    assert list(FILES) == ["mine.py", "second.py"] and len(PYTHON) == 1
    assert len(COMMANDS) >= 15 and not any("#" in command for command in COMMANDS)
    assert len(README.split("\n    jaxformer ")) - 1 <= len(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_the_parser_takes(command: str) -> None:
    own, _, other = command.removeprefix("jaxformer ").partition(" -- ")
    for words in filter(None, (own, other)):
        kept = [word for word in shlex.split(words) if not word.startswith("--config.")]
        cli._parser().parse_args(kept)


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if "--config=" in command and "plan" not in command]
)
def test_every_config_that_is_trained_resolves(command: str, fresh: Path) -> None:
    words = shlex.split(command)
    spec = next(word for word in words if word.startswith("--config=")).removeprefix("--config=")
    configs.load(spec, [word.removeprefix("--config.") for word in words if word.startswith("--config.")])


def test_the_files_are_configs(fresh: Path) -> None:
    assert configs.load("mine.py:smoke").model.norm_placement == "pre"
    second = configs.load("second.py:smoke")
    assert second.objective.name == "second_half" and second.objective.sequence_length == 64
    assert "second_half" not in OBJECTIVES  # it joins for that config alone
    with pytest.raises(UserError, match="objective.name: no 'second_half'"):
        configs.load("t5:smoke", "objective.name=second_half")


@pytest.mark.parametrize("case", ["gpt", "bert_label"])
def test_the_python_works_with_every_kind_of_run(case: str, fresh: Path) -> None:
    make_run(case, fresh / "runs" / "gpt-smoke")
    lines = PYTHON[0].splitlines()
    if "_label" in case:  # these predict no tokens
        lines = [line for line in lines if "generate" not in line and "score" not in line]
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    hidden = eval(lines[-1].partition("#")[0], names)
    assert hidden.shape == (1, names["ids"].shape[1], 16)


def overrides(folder: Path) -> list[str]:
    make_corpus(folder)
    return [f"{key}={value}" for key, value in (TINY | {"data.path": folder / "documents.txt"}).items()]


def test_an_objective_beside_a_config_is_found_again_until_its_file_changes(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = overrides(fresh)
    load = lambda: configs.load("second.py:smoke", [*given, "objective.sequence_length=16"])  # noqa: E731
    run = fresh / "run"
    first = train(load(), run)
    limit = "evaluation.max_examples=8"  # the run's own: without it all rows are judged
    assert evaluate_run(run, "validation", [limit]).metrics["loss"] == pytest.approx(first["eval/loss"], rel=1e-5)
    assert jaxformer.load(run).config.objective.name == "second_half"
    (fresh / "second.py").rename(fresh / "elsewhere.py")
    with pytest.raises(UserError, match=r"second.py, which defines what this run learns from, is gone; bring back"):
        jaxformer.load(run)
    shutil.copy(fresh / "elsewhere.py", run / "second.py")
    assert jaxformer.load(run).config.objective.sequence_length == 16
    (run / "second.py").write_text(FILES["second.py"] + "# another\n")
    with pytest.raises(UserError, match="has changed since; bring back the file as it was"):
        evaluate_run(run, "validation")
    (fresh / "second.py").write_text(FILES["second.py"].replace("// 2", "// 3"))
    with pytest.raises(UserError, match="defined.sha256: .* -> .*--allow-config-change"):
        train(load(), run)


BAD_SIDES = {
    "ids in place of places": ('row["tokens"]', r"second_half: encoder_inputs holds \d+, but the row has 20"),
    "a place too many": ('text + 1', r"encoder_inputs holds|targets holds"),
    "an id that there is not": ('insert(text + 100_000)', "inserts the id 10000"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_SIDES)
def test_an_objective_that_points_nowhere_is_told_so(what: str, fresh: Path) -> None:
    written, said = BAD_SIDES[what]
    text = FILES["second.py"].replace("np.concatenate([text[:half], end])", f"({written})[:half]")
    text = text.replace("np.concatenate([text[half:], end])", f"({written})[half:]")
    (fresh / "second.py").write_text(text)
    objective = configs.load("second.py:smoke").objective
    from runs import tokenizer_of

    bound = objective.bind(tokenizer_of("unigram").vocabulary.starting("pad"))
    row = {"tokens": np.arange(60, 80), "segment_ids": np.ones(20), "sentence_starts": np.zeros(20)}
    with pytest.raises(UserError, match=said):
        bound(row, np.random.default_rng(0))


def test_what_is_no_objective_is_one_line(fresh: Path) -> None:
    for ending, said in (
        ('OBJECTIVES = {"causal_lm": SecondHalf}', "the package has one of this name"),
        ('OBJECTIVES = {"third": SecondHalf}', "the name of the class SecondHalf is 'second_half'; both must agree"),
        ("OBJECTIVES = [SecondHalf]", "OBJECTIVES is list, not a dict of names and classes"),
        ('TASKS = {"mine": 3}', "is 3, not a dataclass"),
    ):
        (fresh / "bad.py").write_text(FILES["second.py"] + ending)
        before = set(OBJECTIVES), set(TASKS)
        with pytest.raises(UserError, match=said):
            configs.load("bad.py")
        assert (set(OBJECTIVES), set(TASKS)) == before


def test_one_put_into_the_packages_dict_does_not_stay_there(fresh: Path) -> None:
    text = FILES["second.py"].replace("OBJECTIVES = {", "from jaxformer.objectives import OBJECTIVES\nOBJECTIVES |= {")
    (fresh / "third.py").write_text(text)
    config = configs.load("third.py:smoke")
    assert config.objective.name == "second_half" and "second_half" not in OBJECTIVES
    assert config.defined is not None and list(config.defined.objectives) == ["second_half"]


def test_a_mixture_and_annotations_from_the_future_know_them(fresh: Path) -> None:
    text = "from __future__ import annotations\n" + FILES["second.py"]
    own = '{"name": "second_half", "sequence_length": 32, "z_loss": 1e-4}'
    members = f'[{own}, {{"name": "span_corruption", "sequence_length": 32}}]'
    text = text.replace(
        '{"name": "second_half", "sequence_length": 64}', f'{{"name": "mixture", "members": {members}}}'
    )
    (fresh / "mixed.py").write_text(text)
    config = configs.load("mixed.py:smoke")
    assert [part.objective.name for part in config.objective.parts] == ["second_half", "span_corruption"]
    stored = configs.resolve(config.to_dict(), name="again", defined=config.defined)
    assert stored.objective == config.objective


def test_a_task_beside_a_config_is_known(fresh: Path) -> None:
    (fresh / "task.py").write_text(
        "import dataclasses\nfrom jaxformer.experiments.finetune import area\n"
        "from jaxformer.tasks.classification import Classification\n\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\nclass Mine(Classification):\n"
        "    name = 'mine'\n    extra: int = 3\n\nTASKS = {'mine': Mine}\n\n"
        "def get_config(arg=''):\n    config = area.get_config('bert,smoke')\n    config.task.name = 'mine'\n"
        "    return config\n"
    )
    config = configs.load("task.py")
    assert config.task.extra == 3 and "mine" not in TASKS and config.to_dict()["task"]["extra"] == 3


def test_the_table_of_objectives_takes_one_that_says_little(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    from jaxformer.objectives import Objective

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Little(Objective):
        name = "little"
        families = ("encoder_only",)

    monkeypatch.setitem(OBJECTIVES, "little", Little)
    assert cli.main(["objectives"]) == 0 and "little" in capsys.readouterr().out
    with pytest.raises(UserError, match="little cannot train a model of decoder_only: it is for encoder_only"):
        Little().for_model(configs.load("gpt:smoke").model)


@pytest.mark.parametrize(("name", "value", "said"), [
    ("predict_positions", 24, r"masked_lm: predict_positions holds 24, but there are 0 to 23 \(places of the row\)"),
    ("targets", 100, r"targets holds 100, but there are 0 to 99 \(ids"), ("inputs", -1, "inputs holds -1"),
    ("token_types", 2, r"token_types holds 2, but there are 0 to 1"), ("positions", 64, "positions holds 64"),
    ("next_sentence_targets", 2, r"next_sentence_targets holds 2, but there are 0 to 1 \(its classes\)"),
])  # fmt: skip
def test_a_number_that_points_nowhere_is_named(name: str, value: int, said: str, tmp_path: Path) -> None:
    from runs import tokenizer_of

    from jaxformer.runs import stored_run
    from jaxformer.runs.data import check_batch

    config = stored_run(make_run("bert", tmp_path / "run")).config
    supervision = config.objective.bind(tokenizer_of("wordpiece").vocabulary)
    shapes = {"inputs": (2, 24), "positions": (2, 24), "token_types": (2, 24), "predict_positions": (2, 5)}
    shapes |= {"targets": (2, 5), "next_sentence_targets": (2,)}
    batch = {key: np.zeros(shape, np.int32) for key, shape in shapes.items()}
    batch |= {"weights": np.ones((2, 5), np.float32), "next_sentence_weights": np.ones(2, np.float32)}
    limit = config.model.vocab_size
    check_batch(batch, config.model, supervision)
    value, said = (
        (limit, said.replace("100", str(limit)).replace("99", str(limit - 1))) if value == 100 else (value, said)
    )
    batch[name][1] = value
    with pytest.raises(UserError, match=said):
        check_batch(batch, config.model, supervision)
    if name.endswith("targets"):
        batch[f"{name.removesuffix('targets')}weights"][1] = 0
        check_batch(batch, config.model, supervision)


@pytest.mark.slow
def test_the_commands_work_one_after_the_other(
    fresh: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Guards the README as a walk: each command finds what those before it have left. All in one process, of narrow
    models and a short corpus, which takes a quarter of the time."""
    shorten_library(tmp_path_factory.mktemp("short"), monkeypatch)
    short = ["training.num_steps=4", "training.batch_size=8", "optimizer.warmup_steps=1", "evaluation.max_examples=8"]
    commands = [
        c
        for c in COMMANDS
        if c.split()[1] in ("train", "evaluate", "generate", "fill", "predict", "embed", "report", "export")
    ]
    commands = [c for c in commands if "FILE_OR_FOLDER" not in c and "google" not in c and "runs/bert " not in f"{c} "]
    commands += ["jaxformer train --config=mine.py:smoke", "jaxformer train --config=second.py:smoke",
                 "jaxformer evaluate --workdir=runs/second-smoke --step=best"]  # fmt: skip
    for command in commands:
        words = shlex.split(command.replace("runs/*", "runs/bert-smoke runs/gpt-smoke"))[1:]
        words += [f"--config.{key}" for key in (*short, *NARROW)] if words[0] == "train" else []
        assert cli.main(words) == 0, f"{command}\n{capsys.readouterr().err}"
