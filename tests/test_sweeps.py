"""Studies: which trials they have, who trains them, what is kept, and how they end."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import postgresql
import pytest
from sweeps import RATE, make_believe, opened, overrides
from training import assert_same_run, make_corpus

import jaxformer
from jaxformer import config as configs
from jaxformer.checkpoint import finished_steps
from jaxformer.cli.main import main
from jaxformer.data import preparing, rows, store
from jaxformer.errors import Interrupted, UserError
from jaxformer.report import read_sweep
from jaxformer.report.sweep import headings_and_rows, number
from jaxformer.report.sweep_plots import importance, sweep_plots
from jaxformer.runs import Display, train
from jaxformer.studies import Settings, Study, read_study, run_study, sweep, sweeping, workers, working
from jaxformer.studies.searching import Search
from jaxformer.studies.study import Experiment, open_study, without_password
from jaxformer.training.compiled import compiled_steps

GRID = {RATE: [1e-3, 1e-2, 3e-2], "seed": [0, 1]}
RANGE = {RATE: {"low": 1e-5, "high": 1.0, "log": True}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Study:
    """A finished study, trained for real: two rates, two seeds."""
    made = opened(tmp_path_factory.mktemp("studies") / "lr", corpus, {RATE: [1e-3, 1e-2], "seed": [0, 1]})
    run_study(made, quiet=True)
    return made


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the trials that a make-believe training was called for."""
    ids: list[str] = []
    monkeypatch.setattr(working, "train", make_believe(ids))
    monkeypatch.setattr(working, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(sweeping.report, "write_sweep_report", lambda *_: Path())  # a make-believe run is no run
    return ids


def quiet(_: str) -> None:
    pass


def losses(folder: Path) -> dict[str, Any]:
    return {trial.path.name: (trial.state, trial.metrics.get("eval/loss")) for trial in read_sweep(folder).trials}


def test_trials_are_runs_like_any_other(study: Study, corpus: Path, tmp_path: Path) -> None:
    found = read_sweep(study.folder)
    assert len(found.trials) == 4 and {trial.state for trial in found.trials} == {"done"}
    best = found.best
    assert best is not None and best.values == {RATE: 1e-2}
    values = [trial.metrics["eval/loss"] for trial in best.trials]
    assert best.mean("eval/loss") == pytest.approx(sum(values) / 2) and best.spread("eval/loss")
    assert all(row["energy_kwh"] > 0 and row["hours"] > 0 for row in jaxformer.load_study(study.folder))
    alone = tmp_path / "alone"
    keys = overrides(corpus, **{RATE: 1e-2, "seed": 1})
    train(configs.load("gpt:smoke", keys), alone, display=Display(quiet=True))
    assert_same_run(study.trial({RATE: 1e-2}, 1).folder, alone)


def test_of_trials_the_best_points_keep_their_checkpoints(study: Study) -> None:
    found = read_sweep(study.folder)
    assert found.best is not None
    kept = {trial.path for trial in found.trials if finished_steps(trial.path / "checkpoints")}
    assert kept == {trial.path for trial in found.best.trials}


def test_the_best_point_is_an_experiment_file(study: Study) -> None:
    again = configs.load(str(study.folder / "best.py"))
    assert again.to_dict() == study.trial({RATE: 1e-2}, 0).config.to_dict()


def test_a_finished_study_trains_nothing_again(study: Study, trained: list[str]) -> None:
    run_study(read_study(study.folder), quiet=True)
    assert trained == []


def test_trials_of_one_shape_share_compiled_programs_and_tokenised_data(
    study: Study, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of a sweep is that of its trainings (benchmarks/sweep.py): here is what would spoil it."""
    before, compiled, written = compiled_steps.cache_info().misses, [], []

    def listen(event: str, seconds: float, **about: Any) -> None:
        compiled.extend([about.get("fun_name")] * event.endswith("backend_compile_duration"))

    for module, name in ((store, "_write"), (rows, "seal"), (preparing, "train_tokenizer")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: written.append(name))
    jax.monitoring.register_event_duration_secs_listener(listen)
    made = opened(tmp_path / "more", corpus, {RATE: [2e-3, 3e-3]})
    run_study(made, quiet=True)
    during = list(compiled)
    jax.jit(lambda x: x + 1)(tmp_path.stat().st_ino)
    assert len(compiled) > len(during), "the listener hears"
    assert compiled_steps.cache_info().misses == before and during == [] and written == []
    assert {trial.state for trial in read_sweep(made.folder).trials} == {"done"}


def test_what_is_kept_and_placed_makes_no_other_trial_and_what_is_searched_does(corpus: Path, tmp_path: Path) -> None:
    def folder(space: dict[str, Any], **changes: object) -> str:
        made = Experiment("gpt:smoke", overrides(corpus, **changes))
        study = open_study(tmp_path / str(len(list(tmp_path.iterdir()))), made, space, Settings())
        return study.trial({}, 0).folder.name

    first = folder({"seed": [0]})
    assert first == folder({"seed": [0]}, **{"checkpoint.every": 5, "footprint.enabled": False, "sharding.data": 2})
    assert first != folder({"seed": [0]}, **{"training.num_steps": 31})
    assert first != folder({"seed": [0], "sharding.data": [1, 2]})
    other = tmp_path / "other.txt"
    other.write_text((corpus / "documents.txt").read_text() + "\n\nMore.")
    assert first != folder({"seed": [0]}, **{"data.path": other})
    other.write_text((corpus / "documents.txt").read_text())
    assert first == folder({"seed": [0]}, **{"data.path": other}), "the same text elsewhere"


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe", "cma_es"])
def test_a_study_that_is_broken_off_after_every_trial_ends_as_an_unbroken_one(
    sampler: str, corpus: Path, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    space = GRID if sampler == "grid" else RANGE | {"seed": [0, 1]}
    if sampler == "cma_es":  # of one dimension it makes nothing
        space |= {"optimizer.weight_decay": {"low": 0.0, "high": 0.2}}
    settings = {"sampler": sampler, "trials": 0 if sampler == "grid" else 14}
    unbroken = opened(tmp_path / "unbroken", corpus, space, **settings)
    working.work(unbroken, quiet)
    expected, runs = losses(unbroken.folder), len(trained)
    assert runs == len(expected) == (6 if sampler == "grid" else 28)

    simple = working.train

    def breaks(config: Any, workdir: Path, **rest: Any) -> Any:
        if not (workdir / "tried").exists():
            (workdir / "tried").touch()
            raise Interrupted("stopped", code=75)
        return simple(config, workdir, **rest)

    monkeypatch.setattr(working, "train", breaks)
    trained.clear()
    stops = 0
    while True:
        try:
            working.work(opened(tmp_path / "broken", corpus, space, **settings), quiet)
            break
        except Interrupted:
            stops += 1
    assert losses(tmp_path / "broken") == expected and len(trained) == runs == stops


def test_a_trial_that_fails_is_tried_again_and_then_reported_in_its_own_words(
    corpus: Path, tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    simple = working.train

    def fails(config: Any, workdir: Path, **rest: Any) -> Any:
        if config.optimizer.learning_rate == 1e-2:
            trained.append(workdir.name)
            raise RuntimeError("no luck\nat all")
        return simple(config, workdir, **rest)

    monkeypatch.setattr(working, "train", fails)
    made = opened(tmp_path / "fails", corpus, GRID, attempts=3)
    working.work(made, quiet)
    failed = made.trial({RATE: 1e-2}, 0).folder.name
    assert trained.count(failed) == 3 and made.trial({RATE: 1e-2}, 1).folder.name not in trained
    states = [point.state for point in read_sweep(made.folder).points]
    assert states == ["done", "done", "failed"]
    (trial,) = [trial for trial in read_sweep(made.folder).trials if trial.state == "failed"]
    assert trial.record["error"] == "RuntimeError: no luck"


def test_a_trial_whose_process_always_dies_is_given_up(corpus: Path, tmp_path: Path, trained: list[str]) -> None:
    made = opened(tmp_path / "dies", corpus, {"seed": [0]})
    trial = made.trial({}, 0)
    record = {"study": made.name, "state": "running", "starts": working.MOST_STARTS, "failures": 0, "from_step": 0}
    trial.folder.mkdir(parents=True)
    (trial.folder / "trial.json").write_text(json.dumps(record | {"values": {}, "seed": 0, "metrics": {}}))
    working.work(made, quiet)
    (found,) = read_sweep(made.folder).trials
    assert found.state == "failed" and "died 20 times" in found.record["error"] and not trained


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
def test_a_pruner_ends_what_is_not_worth_going_on_with(
    pruner: str, corpus: Path, tmp_path: Path, trained: list[str]
) -> None:
    # Median judges from the sixth point on, and Hyperband each of its brackets by itself.
    rates = [1e-2 * 10 ** (-number / 4) for number in range(4 if pruner == "halving" else 12)]
    made = opened(tmp_path / "pruned", corpus, {RATE: rates, "seed": [0, 1]}, pruner=pruner)
    working.work(made, quiet)
    found = {point.values[RATE]: point for point in read_sweep(made.folder).points}
    assert found[rates[0]].state == "done"
    pruned = [point for point in found.values() if point.state == "pruned"]
    assert pruned and (pruner == "hyperband" or found[rates[-1]] in pruned)
    assert all(len(point.trials) == 1 and point.trials[0].step < 30 for point in pruned), "other seeds are not trained"
    assert all(point.mean("eval/loss") is None and len(point.reached("eval/loss")) == 1 for point in pruned)
    shown = {row[0]: row[1] for row in headings_and_rows(read_sweep(made.folder))[1]}
    assert all((text[0] == "(") == (found[rate].state == "pruned") for rate in rates for text in [shown[number(rate)]])


def test_a_pruned_run_trains_no_further(corpus: Path, tmp_path: Path) -> None:
    seen = []

    def judge(step: int, metrics: Any) -> bool:
        seen.append((step, "eval/loss" in metrics))
        return step == 20

    results = train(configs.load("gpt:smoke", overrides(corpus)), tmp_path / "run", judge=judge)
    assert seen == [(10, True), (20, True)] and "eval/loss" in results
    assert finished_steps(tmp_path / "run" / "checkpoints") == [10]


def test_a_run_that_another_process_holds_is_left_to_it(corpus: Path, tmp_path: Path, trained: list[str]) -> None:
    made = opened(tmp_path / "held", corpus, {RATE: [1e-3, 1e-2]})
    held = made.trial({RATE: 1e-3}, 0).folder
    code = (
        "import sys, pathlib; from jaxformer.runs import claimed\n"
        f"with claimed(pathlib.Path({str(held)!r})) as lock: print(lock is not None, flush=True); sys.stdin.read()"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", code], **pipes)
    assert other.stdout is not None and other.stdin is not None and other.stdout.readline() == "True\n"

    def say(line: str) -> None:
        if ": done" in line and other.poll() is None:  # the free one is finished: the other worker dies
            assert trained == [made.trial({RATE: 1e-2}, 0).folder.name]
            other.kill()
            other.wait()

    working.work(made, say)
    assert len(trained) == 2 and {state for state, _ in losses(made.folder).values()} == {"done"}


def test_several_metrics_give_a_pareto_front(corpus: Path, tmp_path: Path, trained: list[str]) -> None:
    made = opened(tmp_path / "two", corpus, {RATE: [1e-2, 1e-3, 1e-4]}, metrics=("eval/loss", "eval/accuracy:min"))
    working.work(made, quiet)
    assert [point.values[RATE] for point in read_sweep(made.folder).pareto] == [1e-2, 1e-3, 1e-4]
    same = opened(tmp_path / "same", corpus, {RATE: [1e-2, 1e-3, 1e-4]}, metrics=("eval/loss", "eval/accuracy"))
    working.work(same, quiet)
    assert [point.values[RATE] for point in read_sweep(same.folder).pareto] == [1e-2]


def test_two_workers_that_begin_a_point_at_once_have_one_of_it(corpus: Path, tmp_path: Path) -> None:
    made = opened(tmp_path / "race", corpus, GRID)
    one, other = Search(made), Search(made)
    one._search.add_trial(one._trial_of(0))
    other._search.add_trial(other._trial_of(0))
    assert (
        [(entry.number, entry.point) for entry in one.asked()]
        == [(0, {RATE: 1e-3})]
        == [(entry.number, entry.point) for entry in other.asked()]
    )
    assert other.ask() and len(one.asked()) == 2


def test_a_database_takes_the_place_of_the_journal(corpus: Path, tmp_path: Path, trained: list[str]) -> None:
    made = opened(tmp_path / "sql", corpus, RANGE, f"sqlite:///{tmp_path}/studies.db", trials=3, sampler="tpe")
    working.work(made, quiet)
    assert len(trained) == 3 and not (made.folder / "journal.log").exists()


@pytest.fixture
def refused(corpus: Path, tmp_path: Path) -> Iterator[Any]:
    def refuse(space: dict[str, Any], storage: str = "", **settings: Any) -> str:
        with pytest.raises(UserError) as found:
            run_study(opened(tmp_path / "bad", corpus, space, storage, **settings), quiet=True)
        assert "\n" not in str(found.value)
        return str(found.value)

    yield refuse
    assert not (tmp_path / "bad" / "trials").exists(), "refused before the first trial"


@pytest.mark.parametrize(
    ("space", "settings", "said"),
    [
        (
            {"optimizer.learning_rat": [1e-3]},
            {},
            "optimizer.learning_rat=0.001 seed=0: optimizer.learning_rat: no such",
        ),
        ({"training.batch_size": [8, 0]}, {}, "trial training.batch_size=0 seed=0: training.batch_size: 0 must be"),
        ({"model.dropout": {"low": 0.1, "high": 2.0}}, {"trials": 2}, "trial model.dropout=2.0"),
        ({}, {}, "the space is empty"),
        (RANGE, {}, "--trials: how many points"),
        (RANGE, {"sampler": "grid"}, "a grid needs a list"),
        (GRID, {"metrics": ("loss",)}, "'loss' is nothing that a run logs"),
        (GRID, {"metrics": ("eval/loss:up",)}, "--metric=eval/loss:"),
        (GRID, {"sampler": "grit"}, "--sampler: 'grit'"),
        (GRID, {"pruner": "median", "metrics": ("eval/loss", "hours")}, "of several metrics none decides"),
        (GRID, {"pruner": "median", "metrics": ("energy_kwh",)}, "goes by evaluations"),
        (GRID | {"training.eval_every": [0, 10]}, {"pruner": "median"}, "training.eval_every=0"),
        (GRID, {"storage": "foo"}, "--storage: foo is no URL"),
        (GRID, {"storage": "postgresql+psycopg://me:secret@127.0.0.1:1/x"}, "cannot be reached"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_trial(
    space: dict[str, Any], settings: dict[str, Any], said: str, refused: Any
) -> None:
    line = refused(space, **settings)
    assert said in line and "secret" not in line


def test_a_metric_that_the_runs_do_not_log_ends_the_study_at_the_first_evaluation(
    corpus: Path, tmp_path: Path, trained: list[str]
) -> None:
    made = opened(tmp_path / "metric", corpus, GRID, metrics=("eval/lss",))
    with pytest.raises(UserError, match="log no eval/lss; they log eval/loss, eval/accuracy"):
        working.work(made, quiet)
    assert len(trained) == 1
    opened(tmp_path / "metric", corpus, GRID)  # nothing is found yet: the command may be mended


def test_a_folder_of_another_study_and_a_changed_one_are_refused(
    corpus: Path, tmp_path: Path, trained: list[str]
) -> None:
    folder = tmp_path / "one"
    working.work(opened(folder, corpus, GRID), quiet)
    with pytest.raises(UserError, match=r"another study \(space optimizer.learning_rate: \[0.001, 0.01, 0.03\] -> "):
        opened(folder, corpus, {RATE: [1e-3], "seed": [0, 1]})
    with pytest.raises(UserError, match="config training.num_steps: 30 -> 40"):
        open_study(folder, Experiment("gpt:smoke", overrides(corpus, **{"training.num_steps": 40})), GRID, Settings())
    more = GRID | {RATE: [1e-3, 1e-2, 3e-2, 1e-1]}
    grown = open_study(
        folder, Experiment("gpt:smoke", overrides(corpus)), more, Settings(), allow_change=True
    )  # fmt: skip
    trained.clear()
    working.work(grown, quiet)
    assert len(trained) == 2, "equal trials are kept"
    assert [point.state for point in read_sweep(folder).points] == ["done"] * 4, "and seen"
    (tmp_path / "full" / "things").mkdir(parents=True)
    with pytest.raises(UserError, match="has no study.json but holds things"):
        opened(tmp_path / "full", corpus, GRID)
    with pytest.raises(UserError, match="is no study"):
        read_study(tmp_path / "nowhere")


def test_python_searches_a_dict_and_gives_rows(corpus: Path, tmp_path: Path, trained: list[str]) -> None:
    sections = configs.load("gpt:smoke", overrides(corpus)).to_dict()
    found = sweep(sections, {RATE: [1e-3, 1e-2]}, tmp_path / "python", metrics="eval/loss", quiet=True)
    assert found.best is not None and found.best.values == {RATE: 1e-2}
    rows = jaxformer.load_study(tmp_path / "python")
    assert [row[RATE] for row in rows] == [1e-2, 1e-3] and rows[0]["eval/loss"] < rows[1]["eval/loss"]
    with pytest.raises(UserError, match="no setting 'metric'; did you mean 'metrics'"):
        sweep(sections, {RATE: [1e-3]}, tmp_path / "other", metric="eval/loss")


def test_a_files_own_get_sweep_is_searched(corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxformer.experiments import gpt\n"
        "def get_config(arg=''):\n    return gpt.get_config('smoke')\n"
        "def get_sweep(arg=''):\n    return {'optimizer.learning_rate': [float(word) for word in arg.split('+')]}\n"
    )
    assert configs.load_described(f"{file}:1e-3+1e-2", "get_sweep") == {RATE: [1e-3, 1e-2]}
    with pytest.raises(UserError, match="gpt has no function get_sweep"):
        configs.load_described("gpt:smoke", "get_sweep")


def test_a_password_is_neither_kept_nor_shown(corpus: Path, tmp_path: Path) -> None:
    assert without_password("postgresql://me:word@host:1/name") == "postgresql://me@host:1/name"
    assert without_password("sqlite:///a.db") == "sqlite:///a.db"
    made = opened(tmp_path / "kept", corpus, GRID, "postgresql://me:word@host/name")
    assert "word" not in (made.folder / "study.json").read_text()


def test_the_page_has_all_there_is_to_see(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(study.folder)]) == 0
    shown, page = capsys.readouterr().out, (study.folder / "report" / "report.html").read_text()
    for heading in ("Learning curves", "What each key does", "Points, the best first"):
        assert heading in page
    found = read_sweep(study.folder)
    assert "The sweep cost" in page and "Best: optimizer.learning_rate 0.01" in page and "best.py" in page
    assert "http://www.w3.org" in page and "src=" not in page, "nothing is fetched"
    each = [trial.emissions.energy_kwh for trial in found.trials]
    assert found.costs()["energy_kwh"] == pytest.approx(sum(each)) and min(each) > 0
    assert found.costs(found.trials[:1])["hours"] == found.trials[0].emissions.seconds / 3600
    assert "4 of 4 runs are over" in shown and all(trial.path.name in page for trial in found.trials)


def test_importance_and_all_keys_at_once_are_drawn(corpus: Path, tmp_path: Path, trained: list[str]) -> None:
    space = {RATE: [1e-4, 1e-3, 1e-2], "model.dropout": [0.0, 0.1], "optimizer.epsilon": {"low": 1e-9, "high": 1e-7}}
    made = opened(tmp_path / "many", corpus, space, sampler="random", trials=12, search_seed=1)
    working.work(made, quiet)
    found = read_sweep(made.folder)
    shares = importance(found)
    assert max(shares, key=lambda name: shares[name]) == RATE and sum(shares.values()) == pytest.approx(1)
    (tmp_path / "plots").mkdir()
    titles = [plot.title for plot in sweep_plots(found, tmp_path / "plots")]
    assert {"Learning curves", "What each key does", "All keys at once", "Importance"} <= set(titles)


def test_the_command_line_searches_shows_and_goes_on(
    corpus: Path,
    tmp_path: Path,
    trained: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = [f"--config.{key}" for key in overrides(corpus)]
    folder = f"--study={tmp_path / 'cli'}"
    words = ["sweep", "--config=gpt:smoke", *keys, f"--sweep.{RATE}=1e-3,1e-2", "--sweep.seed=0:2", folder]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "best: jaxformer train --config=gpt:smoke" in shown.out and "4 of 4 runs are over" in shown.out
    assert "2 points by grid, 2 seeds each: 4 runs of 30 steps, judged by eval/loss" in shown.err
    assert (
        "disk: about" in shown.err
        and len([line for line in shown.err.splitlines() if ": done, eval/loss " in line]) == 4
    )
    assert main(["sweep", folder]) == 0 and len(trained) == 4
    capsys.readouterr()
    assert main(["sweep", "status", folder, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 4
    for wrong, said in (
        (["sweep"], "give --config"),
        (["sweep", folder, "--sweep.seed=0:3"], "--config: what is searched"),
        (["sweep", "--config=gpt:smoke", "--sweep.seed=0:3", "--parallel=0"], "--parallel: 0"),
        (["sweep", "--config=gpt:smoke", f"--study={tmp_path / 'x'}"], "no function get_sweep"),
        (["sweep", "status", f"--study={tmp_path / 'x'}"], "is no study"),
        (["models", "--sweep.seed=0:3"], "--sweep.seed=0:3: this verb searches nothing"),
        (["sweep", "--config=gpt:smoke", "--sweep.seed=0:3", "--processes=0"], "--processes: 0"),
        (["launch", "slurm", "--hosts=2", "--", *words, "--parallel=2"], "--hosts: the processes of a job are one"),
        (["launch", "local", "--", *words[:-1], "--study=gs://b/x"], "cannot hold the journal"),
        (["launch", "slurm", "--dry-run", "--", *words[:2], "--sweep.model.d_modl=1"], "model.d_modl: no such key"),
    ):
        assert main(wrong) == 2 and said in capsys.readouterr().err, wrong


@pytest.mark.parametrize(
    ("searched", "said"),
    [
        ([300, 1200, 600], "3 runs of 300 to 1,200 steps"),
        ([400], "1 runs of 400 steps"),
        ({"low": 100, "high": 2000}, "3 runs of 100 to 2,000 steps"),
    ],
)
def test_what_a_sweep_takes_says_how_many_steps_its_runs_have(
    searched: Any, said: str, corpus: Path, tmp_path: Path
) -> None:
    trials = {"trials": 3} if isinstance(searched, dict) else {}
    made = opened(tmp_path / "steps", corpus, {"training.num_steps": searched}, **trials)
    assert said in sweeping.what_it_takes(made, 1)[0]


def test_train_with_several_seeds_reports_mean_and_spread(
    corpus: Path,
    tmp_path: Path,
    trained: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = [f"--config.{key}" for key in overrides(corpus, seed=5)]
    assert main(["train", "--config=gpt:smoke", *keys, "--seeds=3", f"--workdir={tmp_path / 'seeds'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "seed 5" in lines[0] and "seed 7" in lines[0] and len(trained) == 3
    (line,) = [line.split() for line in lines if line.startswith("eval/loss")]
    mean, spread, *each = map(float, line[1:])
    assert mean == pytest.approx(sum(each) / 3, abs=1e-3) and spread == pytest.approx(0.01)


def test_each_worker_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4}, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    both = [workers.shares(number, 2) for number in range(2)]
    assert [share["JAXFORMER_CORES"] for share in both] == ["0,1,2", "3,4"]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in both] == ["0,2", "1"]
    assert all("XLA_PYTHON_CLIENT_MEM_FRACTION" not in share for share in both)
    many = [workers.shares(number, 6) for number in range(6)]
    assert [share["JAXFORMER_CORES"] for share in many] == ["0", "1", "2", "3", "4", "0"]
    assert {share["XLA_PYTHON_CLIENT_MEM_FRACTION"] for share in many} == {"0.450"}


@pytest.mark.slow
def test_postgresql_holds_the_search(corpus: Path, tmp_path: Path, trained: list[str]) -> None:
    # A real server: SQLite, of the faster test, has another dialect and no network.
    with postgresql.server() as url:
        made = opened(tmp_path / "postgres", corpus, RANGE, url, trials=3, sampler="tpe")
        working.work(made, quiet)
        assert len(trained) == 3 and len(Search(made).asked()) == 3
    with pytest.raises(UserError, match=r"the database postgresql\+psycopg://[^ ]+ cannot be reached"):
        Search(made)


def test_settings_and_record_say_the_same(study: Study) -> None:
    assert read_study(study.folder).settings == study.settings
    assert dataclasses.asdict(study.settings)["metrics"] == ("eval/loss",)
