"""Runs in, tables and pictures out: what is read, what the page says, and the arithmetic of a transfer study."""

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import visible_text
from rich.console import Console

from jaxformer.errors import UserError
from jaxformer.report import (
    equal_metric,
    find_runs,
    payback,
    print_summary,
    print_transfer,
    read_run,
    summary_rows,
    write_report,
    write_transfer_report,
)
from jaxformer.report.evaluations import evaluations_of
from jaxformer.report.plots import BEST, COLOURS, MOST_COLOURED
from jaxformer.report.transfer_words import sentences

COLUMNS = "run_id,duration,emissions,cpu_energy,gpu_energy,ram_energy,energy_consumed,country_name"


def make_run(path: Path, *, task: str = "", steps: int = 20, end: float = 3.0, kwh: float | None = 0.002) -> Path:
    """A small run directory: a loss that falls to `end`, logged at every step, evaluated at every tenth."""
    path.mkdir(parents=True)
    section = {"task": {"name": task}} if task else {"objective": {"name": "masked_lm"}}
    model = {"preset": "bert_base", "family": "encoder_only"}
    record = {
        "name": "bert:smoke",
        "config": {"seed": 0, "model": model, **section},
        "num_parameters": 4_200_000,
        "packages": {"jax": "0.10.1"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1},
        "command": "jaxformer train --config=bert:smoke --config.x='<b>&'",
        "created": "2026-01-02T03:04:05+00:00",
    }
    (path / "config.json").write_text(json.dumps(record))
    lines: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        loss = end + 2.0 * (1 - step / steps)
        lines.append(
            {"step": step, "train/loss": loss, "train/tokens": 100 * step, "train/tokens_per_second": 50.0}
            | {"train/seconds": 2.0 * step}
        )
        if step % 10 == 0:
            metrics = {"eval/accuracy": 0.5, "eval/f1": 0.25} if task else {"eval/perplexity": math.exp(loss)}
            lines.append({"step": step, "eval/loss": loss + 0.1, **metrics})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if kwh is not None:
        (path / "emissions").mkdir()
        row = f"a,60,{kwh * 0.4},{kwh / 4},0,{kwh * 0.75},{kwh},Germany"
        (path / "emissions" / "1-0.csv").write_text(f"{COLUMNS}\n{row}\n")
    return path


# Reading


def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="is not a run: it has no config.json"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="is not a run"):
        find_runs([tmp_path / "absent"])
    with pytest.raises(UserError, match="holds no run"):
        find_runs([tmp_path])
    for content, words in (("{", "is damaged"), ('{"architectures": []}', "does not describe a run")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=words) as error:
            read_run(tmp_path)
        assert "\n" not in str(error.value)


def test_a_torn_line_and_values_that_are_no_numbers_are_left_out(tmp_path):
    path = make_run(tmp_path / "run")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "train/loss": NaN}\n{"step": 22, "train/loss": null}\n[1]\n{"step": 23, "train/lo')
    (path / "results").mkdir()
    (path / "results" / "good.json").write_text('{"accuracy": 0.75, "predictions": [1, 2]}')
    (path / "results" / "torn.json").write_text('{"accuracy": 0.')
    run = read_run(path)
    steps, losses = run.series("train/loss")
    assert steps == list(range(1, 21)) and losses[-1] == 3.0
    assert run.last("train/tokens") == 2000 and run.last("train/mfu") is None
    assert run.results == {"good": {"accuracy": 0.75, "predictions": [1, 2]}}
    # Evaluations log no tokens: they are read off the training lines.
    assert run.against("eval/loss", "train/tokens") == ([1000.0, 2000.0], [pytest.approx(4.1), pytest.approx(3.1)])
    # Before the first of them and after the last, too.
    (path / "metrics.jsonl").write_text(
        '{"step": 2, "eval/loss": 4}\n{"step": 4, "train/tokens": 400}\n{"step": 8, "train/tokens": 600}\n'
        '{"step": 9, "eval/loss": 3}\n'
    )
    assert read_run(path).against("eval/loss", "train/tokens") == ([200.0, 600.0], [4, 3])
    assert read_run(path).against("eval/loss", "train/seconds") == ([], [])


def test_runs_below_a_folder_are_found_once_and_named_apart(tmp_path):
    for name in ("labels-128/seed-0", "labels-64/seed-0", "labels-64/seed-10", "labels-64/seed-2"):
        make_run(tmp_path / "runs" / name)
    # A model's config.json inside a run is not a run.
    (tmp_path / "runs/labels-64/seed-0/checkpoints").mkdir()
    (tmp_path / "runs/labels-64/seed-0/checkpoints/config.json").write_text("{}")
    runs = find_runs([tmp_path / "runs", tmp_path / "runs" / "labels-64" / "seed-0"])
    assert [run.name for run in runs] == [
        "labels-64/seed-0",
        "labels-64/seed-2",
        "labels-64/seed-10",
        "labels-128/seed-0",
    ]
    assert [run.name for run in find_runs([tmp_path / "runs/labels-64/seed-0"])] == ["seed-0"]


# Tables


def test_a_row_holds_what_the_run_did_and_cost(tmp_path):
    make_run(tmp_path / "a", task="classification")
    make_run(tmp_path / "b", kwh=None)
    (tmp_path / "b" / "metrics.jsonl").unlink()
    row, empty = summary_rows(find_runs([tmp_path]))
    losses = [3.2 - 0.1 * number for number in (1, 2)]  # the last tenth of twenty
    assert row["train_loss"] == pytest.approx(sum(losses) / 2)
    assert row["eval_loss"] == pytest.approx(3.1) and row["accuracy"] == 0.5 and row["f1"] == 0.25
    assert (row["steps"], row["tokens"], row["seconds"]) == (20, 2000, 40.0)
    assert (row["parameters"], row["family"], row["preset"]) == (4_200_000, "encoder_only", "bert_base")
    assert row["energy_kwh"] == 0.002 and row["co2eq_kg"] == pytest.approx(0.0008)
    assert row["supervision"] == "classification" and empty["supervision"] == "masked_lm"
    measured = ("tokens", "steps", "seconds", "train_loss", "eval_loss", "accuracy", "energy_kwh", "co2eq_kg")
    assert [empty[key] for key in measured] == [None] * len(measured)
    assert json.loads(json.dumps([row, empty])) == [row, empty]


def test_the_terminal_table_fits_and_says_what_it_leaves_out(tmp_path):
    runs = [read_run(make_run(tmp_path / f"run-{number}", task="classification")) for number in range(3)]

    def lines(**settings: Any) -> list[str]:
        console = Console(file=io.StringIO(), color_system=None, **settings)
        print_summary(runs, console)
        return console.file.getvalue().splitlines()  # type: ignore[attr-defined]

    narrow = lines(force_terminal=True, width=80)
    assert max(map(len, narrow)) <= 80 and "…" not in "".join(narrow)
    assert "Energy (Wh)" in narrow[0] and "Best eval loss" in narrow[0] and "Parameters" not in narrow[0]
    assert "Not shown, because the terminal is too narrow: Experiment, Model" in " ".join(narrow)
    piped = lines()
    assert "Parameters" in piped[0] and "Experiment" in piped[0] and "Not shown" not in "".join(piped)
    assert [line.split()[0] for line in piped if line.strip().startswith("run-")] == ["run-0", "run-1", "run-2"]
    assert "2.00" in narrow[2] and "0.800" in narrow[2]  # Wh and g: one unit per column, fit for its largest value


# Page


def test_evaluations_are_a_table_of_each_run(tmp_path):
    """A row for each file, of a mixture for each member; of several steps and averages the oldest first."""
    path = make_run(tmp_path / "run", task="classification")
    results = {
        "evaluate-validation": {
            "step": 900, "split": "validation", "metrics": {"loss": 0.51, "accuracy": 0.875, "examples": 24},
            "intervals": {"accuracy": [0.75, 0.95834]}, "data": [{"data": "a/rows.jsonl", "whole": False}],
        },
        "evaluate-validation-one-0123": {
            "step": 100, "split": "validation", "metrics": {"loss": None, "examples": 4},
            "data": [{"data": "a/<one>.jsonl", "whole": True, "rows": 4, "fingerprint": "f"}],
        },
        "evaluate-test-average-3-ema": {
            "step": 900, "average": [700, 800, 900], "parameters": "ema", "split": "test",
            "metrics": {"loss": 0.4, "cola/matthews": 0.5, "sst2/accuracy": 0.25, "examples": 8},
            "intervals": {"sst2/accuracy": [0.125, 0.5]},
        },
        "predictions": {"answers": [1]},
    }  # fmt: skip
    (path / "results").mkdir()
    for name, result in results.items():
        (path / "results" / f"{name}.json").write_text(json.dumps(result))
    table = evaluations_of(read_run(path))
    assert table.run == "run" and table.headings == ("Loss", "Examples", "Matthews", "Accuracy")
    shown = [(what, which, [cell.value for cell in cells]) for what, which, cells in table.rows]
    assert shown == [
        ("all of <one>.jsonl", "step 100", ["–", "4", "–", "–"]),
        ("test", "mean of steps 700, 800, 900, moving average", ["0.4", "8", "–", "–"]),
        ("test: cola", "mean of steps 700, 800, 900, moving average", ["–", "–", "0.5", "–"]),
        ("test: sst2", "mean of steps 700, 800, 900, moving average", ["–", "–", "–", "0.25"]),
        ("validation", "step 900", ["0.51", "24", "–", "0.875"]),
    ]
    assert [cells[3].interval for _, _, cells in table.rows] == ["", "", "", "0.125 to 0.5", "0.75 to 0.9583"]
    page = write_report([path], tmp_path / "out").read_text(encoding="utf-8")
    assert "<h2>Evaluations</h2>" in page and "all of &lt;one&gt;.jsonl" in page
    assert "0.875<small>0.75 to 0.9583</small>" in page
    plain = make_run(tmp_path / "plain")
    assert evaluations_of(read_run(plain)) is None
    assert "<h2>Evaluations</h2>" not in write_report([plain], tmp_path / "other").read_text(encoding="utf-8")


def test_one_run_gives_a_page_that_stands_alone_and_its_plots(tmp_path):
    path = make_run(tmp_path / "<i>bert")
    (path / "results").mkdir()
    (path / "results" / "evaluate.json").write_text('{"token_accuracy": 0.51234, "predictions": [1]}')
    page = write_report([path], tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "evaluation-masked_lm.png",
        "loss-masked_lm.png",
        "report.html",
        "throughput-masked_lm.png",
    ]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in page.parent.glob("*.png"))
    source = page.read_text(encoding="utf-8")
    # Nothing is loaded from elsewhere, no id stands twice, and names from a run's files stay text.
    assert not re.search(r"<(script|link|img|iframe)|@import|src=|url\((?!#)", source)
    assert "<i>bert" not in source and "&lt;i&gt;bert" in source and "&lt;b&gt;&amp;" in source
    assert len(re.findall(r"<svg ", source)) == 3 and 'role="img"' in source
    # Colours follow the page, light or dark.
    assert "prefers-color-scheme: dark" in source and f"stroke: {COLOURS['c1']}" not in source
    assert "stroke: var(--c1)" in source
    text = visible_text(page)
    for words in (
        "4.20 M",
        "2.00 k",
        "Best eval loss",
        "Pretraining: masked lm",
        "2.00 Wh",
        "0.800 g",
        "Token accuracy 0.5123",
        "400 g per kWh (Germany)",
        "120 W on average (CPU 25 %, memory 75 %)",
        "jaxformer train --config=bert:smoke",
        "jax 0.10.1",
    ):
        assert words in text, words


def test_many_runs_stay_readable_and_losses_are_compared_like_with_like(tmp_path):
    number = MOST_COLOURED + 4
    for index in range(number):
        make_run(tmp_path / "runs" / f"labels-{index}", task="classification", end=1.0 + index, kwh=0.001 * (index + 1))
    make_run(tmp_path / "runs" / "pretraining", kwh=None)
    page = write_report([tmp_path / "runs"], tmp_path / "out")
    names = {file.name for file in page.parent.glob("*.png")}
    assert {"loss-classification.png", "cost-classification.png", "loss-masked_lm.png"} <= names
    assert "cost-masked_lm.png" not in names  # one run without energy is no comparison
    text = visible_text(page)
    assert "Fine-tuning: classification" in text and "Pretraining: masked lm" in text
    assert f"The {BEST} runs with the lowest loss are coloured, the other {number - BEST} grey." in text
    assert f"1 of {number + 1} runs recorded no energy" in text
    # Pointing at a line names its run.
    source = page.read_text(encoding="utf-8")
    assert all(f"<title>labels-{index}</title>" in source for index in range(number))
    assert "<title>pretraining</title>" in source


def test_a_run_without_metrics_still_has_a_page(tmp_path):
    path = make_run(tmp_path / "run", kwh=None)
    (path / "metrics.jsonl").unlink()
    text = visible_text(write_report([path], tmp_path / "out"))
    assert "No energy was measured" in text and "4.20 M" in text
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    path = make_run(tmp_path / "run")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "out/report.html")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="the disk is full"):
        write_report([path], tmp_path / "out")


def test_the_report_needs_no_jax():
    code = "import sys, jaxformer.report, jaxformer.footprint; sys.exit('jax' in sys.modules or 'flax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


# Transfer


def points(arm: str, accuracies: dict[int, float | list[float]], wh: dict[int, float] | None = None) -> list[dict]:
    """Points of one arm; a single accuracy stands for two equal seeds."""
    return [
        {"labels": labels, "arm": arm, "seeds": seeds, "also": seeds, "learning_rate": 3e-4, "steps": 100, "curves": []}
        | {"energy_wh": [wh[labels]] * len(seeds) if wh else [None] * len(seeds)}
        for labels, value in accuracies.items()
        for seeds in ([value] * 2 if isinstance(value, float) else value,)
    ]


SCRATCH = points("scratch", {100: 0.4, 400: 0.6, 1600: 0.7}, {100: 1.0, 400: 2.0, 1600: 4.0})
PRETRAINED = points("pretrained", {100: 0.6, 400: 0.8, 1600: 0.9}, {100: 1.0, 400: 2.0, 1600: 4.0})


def test_equal_metric_interpolates_over_the_logarithm_of_labels():
    equal = equal_metric([*reversed(PRETRAINED), *SCRATCH])
    assert equal == {
        "value": pytest.approx(0.7),
        "labels_scratch": pytest.approx(1600),
        # Half-way from 0.6 to 0.8, so half-way from 100 to 400 in the logarithm: their geometric mean.
        "labels_pretrained": pytest.approx(200),
        "energy_scratch_wh": pytest.approx(4.0),
        "energy_pretrained_wh": pytest.approx(1.5),
        "at_most": [],
    }
    assert payback(equal, 25.0) == (pytest.approx(10.0), "")


def test_equal_metric_where_scratch_ends_higher_or_labels_are_a_bound():
    # Scratch ends higher: the comparison is at the best that the checkpoint reaches, and it loses.
    worse = equal_metric(points("pretrained", {100: 0.3, 400: 0.5}, {100: 1.0, 400: 2.0}) + SCRATCH)
    assert worse is not None and worse["value"] == 0.5
    assert worse["labels_scratch"] == pytest.approx(200) and worse["labels_pretrained"] == pytest.approx(400)
    runs, reason = payback(worse, 25.0)
    assert runs is None and "more energy from the checkpoint" in reason
    # Already above at the smallest count: an upper bound, and said so.
    above = equal_metric(points("pretrained", {100: 0.8, 400: 0.9}, {100: 1.0, 400: 2.0}) + SCRATCH)
    assert above is not None and above["labels_pretrained"] == 100 and above["at_most"] == ["pretrained"]
    # A dip does not hide that an accuracy was reached before.
    dip = equal_metric(points("pretrained", {100: 0.6, 400: 0.8, 1600: 0.5}) + SCRATCH)
    assert dip is not None and dip["labels_pretrained"] == pytest.approx(200)


def test_no_payback_is_given_with_its_reason():
    assert equal_metric(SCRATCH) is None and equal_metric([]) is None
    assert equal_metric(points("pretrained", {100: []}) + SCRATCH) is None
    assert payback(None, 1.0) == (None, "no fine-tuning of one arm does as well as one of the other")
    unmeasured = equal_metric(points("pretrained", {100: 0.6, 400: 0.8}) + SCRATCH)
    assert unmeasured is not None and unmeasured["energy_pretrained_wh"] is None
    assert payback(unmeasured, 1.0) == (None, "energy was not measured")
    fixed = {100: 2.0, 400: 2.01, 1600: 2.05}
    same = equal_metric(
        points("pretrained", {100: 0.6, 400: 0.8}, fixed) + points("scratch", {100: 0.4, 1600: 0.7}, fixed)
    )
    runs, reason = payback(same, 1.0)
    assert runs is None and "the same energy with and without" in reason
    assert payback(equal_metric(PRETRAINED + SCRATCH), None) == (None, "energy was not measured")


def make_study(rows: list[dict]) -> dict[str, Any]:
    equal = equal_metric(rows)
    pretraining = {"energy_wh": 25.0, "emissions_g": 10.0, "seconds": 120.0, "tokens": 2_000_000}
    return {
        "name": "finetune/area:bert",
        "pretrained": "runs/base",
        "metric": "eval/accuracy",
        "mode": "max",
        "split": "test",
        "also": "eval/f1",
        "points": rows,
        "tried": {},
        "unfinished": [],
        "runs": {},
        "pretraining": pretraining,
        "equal": equal,
        "payback_runs": payback(equal, pretraining["energy_wh"])[0],
    }


def test_the_sentences_say_what_was_found_and_no_more():
    words = sentences(make_study(PRETRAINED + SCRATCH))
    assert words["headline"] == (
        "200 labels from the checkpoint do the work of 1,600 from scratch (8.0 times as many): 70.0 % accuracy."
    )
    assert "1,600 labels and 4.00 Wh of fine-tuning from scratch, and 200 labels and 1.50 Wh" in words["equal"]
    assert words["cost"] == "Pretraining itself took 2 min 00 s on 2.00 M tokens and 25.0 Wh (10.0 g CO₂eq)."
    assert "pays back after 10 fine-tunings" in words["payback"]

    bound = sentences(make_study(points("pretrained", {100: 0.8, 400: 0.9}) + SCRATCH))
    assert bound["headline"].startswith("At most 100 labels") and "at least 16 times" in bound["headline"]
    assert "does not pay back here: energy was not measured" in bound["payback"]

    lost = sentences(make_study(points("pretrained", {100: 0.3, 400: 0.5}, {100: 1.0, 400: 2.0}) + SCRATCH))
    assert lost["headline"].startswith("Pretraining brought no gain here")
    assert "does not pay back here: a fine-tuning that does equally well takes more energy" in lost["payback"]

    apart = sentences(make_study(PRETRAINED))
    assert "cannot be compared" in apart["headline"] and "does as well as one of the other" in apart["equal"]


def test_the_transfer_page_and_terminal_table(tmp_path):
    rows = points("pretrained", {100: [0.58, 0.62], 400: 0.8}, {100: 1.0, 400: 2.0}) + SCRATCH
    study = make_study(rows)
    study["pretraining"] = {"energy_wh": None, "emissions_g": None, "seconds": 120.0, "tokens": 2_000_000}
    study["payback_runs"] = None
    study["runs"] = {name: str(make_run(tmp_path / name, task="classification")) for name in ("a", "b")}
    page = write_transfer_report(study, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("transfer-*")} == {"transfer-labels.png"}
    text = visible_text(page)
    assert "60.0 ± 2.8 %" in text and "40.0 ± 0.0 %" in text and "+20.0" in text
    assert "What pretraining brings: finetune/area:bert" in text and "Fine-tuning: classification" in text
    assert "an unmeasured amount of energy" in text and "energy was not measured" in text
    assert "–" in text  # 1,600 labels were only tried from scratch

    write_transfer_report(make_study(PRETRAINED + SCRATCH) | {"runs": study["runs"]}, tmp_path / "paid")
    assert (tmp_path / "paid" / "transfer-payback.png").exists()
    assert "pays back after 10 fine-tunings" in visible_text(tmp_path / "paid" / "report.html")
    console = Console(file=io.StringIO(), width=80, color_system=None, force_terminal=True)
    print_transfer(study, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "60.0 ± 2.8 %" in shown and "+20.0" in shown and "Pretraining itself took" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_a_page_says_what_energy_is_of_and_what_its_sums_count_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxformer.report.page.plots_of", lambda *_: [])  # which other tests look at
    header = f"machine,ended,tracking_mode,{COLUMNS}"
    runs = [make_run(tmp_path / name, kwh=0.5) for name in ("a", "b", "c")]
    for modes, shared, twice in (
        ("process process process", "3 runs ran at once on one machine, for 1 min 40 s, and shared it", ""),
        ("process machine process", "2 runs ran at once on one machine, for 20 s", "3 runs were measured at once"),
        ("machine machine machine", "", "3 runs were measured at once on one machine, for 1 min 40 s"),
    ):
        for run, mode, end in zip(runs, modes.split(), (1000, 1020, 1040), strict=True):
            row = f"M,{end},{mode},a,60,0.2,0.1,0,0.4,0.5,Germany"
            (run / "emissions" / "1-0.csv").write_text(f"{header}\n{row}\n")
        text = visible_text(write_report(runs, tmp_path / "out"))
        assert shared in text and twice in text
        assert ("counted twice in sums over these runs" in text) == bool(twice)
        assert ("energy, some counted twice" in text) == bool(twice)
        for mode in ("process", "machine"):
            assert (f"footprint.tracking_mode={mode}" in text) == (mode in modes)
        assert [row["tracking_mode"] for row in summary_rows(find_runs(runs))] == modes.split()
