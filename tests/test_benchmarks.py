"""The benchmarks: no figure without parity, floors that are missed are marked, one failure loses no other."""

import ast
import importlib
import json
import operator
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxformer.devices.runtime import ARENAS

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The harness, importable as its own processes import it, and forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    import harness
    import run
    import table

    yield harness, table, run
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and FOLDER in Path(str(sys.modules[name].__file__)).parents:
            del sys.modules[name]


def a_run(side: str, seconds: float, checked: list[float], number: int = 0, mb: float = 100.0) -> dict[str, Any]:
    figures = {"step": [seconds, seconds, 10.0 * seconds]}
    return {
        "side": side,
        "round": number,
        "figures": figures,
        "checked": checked,
        "peak_mb": mb,
        "flops": 1e9,
        "foreign_share": 0.01,
    }


def a_case(harness: Any, **changes: Any) -> Any:
    sides = dict.fromkeys(("ours", "plain", "compiled"), lambda folder, number: {})
    settings = {"name": "c0", "what": "a step", "sides": sides, "tolerance": 1e-4} | changes
    return harness.Case(measures=(harness.Measure(ratio=1.1),), **settings)


def test_there_is_no_figure_without_parity(benchmarks: Any) -> None:
    harness = benchmarks[0]
    case = a_case(harness)
    same = [a_run("ours", 1.0, [4.0, 3.0]), a_run("plain", 2.0, [4.00001, 3.0]), a_run("compiled", 3.0, [4.0, 3.0])]
    assert harness.rows(case, same, {})[0]["ratio"] == 2.0
    assert harness.parity(case, same)["apart"] < 1e-5
    for other in ([4.0, 3.01], []):
        with pytest.raises(harness.Refused):
            harness.rows(case, [same[0], a_run("plain", 2.0, other), same[2]], {})
    with pytest.raises(harness.Refused, match="nothing says"):
        harness.rows(case, same[:1], {})
    with pytest.raises(harness.Refused, match="other tokens"):
        harness.rows(a_case(harness, tolerance=0.0), same, {})


def test_the_best_setting_of_the_rival_counts_and_what_is_missed_is_marked(benchmarks: Any) -> None:
    harness, table, _ = benchmarks
    case = a_case(harness)
    runs = [a_run("ours", 1.0, [4.0], mb=126.0), a_run("plain", 1.2, [4.0]), a_run("compiled", 1.05, [4.0])]
    (row,) = harness.rows(case, runs, {"flops_per_second": 4e9})
    assert (row["rival"], row["ratio"], row["met"], row["memory_met"]) == ("compiled", 1.05, False, False)
    assert row["of_physical"] == 0.25
    record = {"name": "c0", "what": "a step", "idle": True, "rows": [row]}
    shown = table.table([record]).splitlines()[-1]
    assert shown.count("**missed**") == 2 and "(compiled)" in shown and "25%" in shown
    runs[0] = a_run("ours", 0.9, [4.0], mb=124.0)
    record["rows"] = harness.rows(case, runs, {})
    assert "missed" not in table.table([record])
    assert "not idle" in table.table([record | {"idle": False}])
    assert "because" in table.table([record | {"refused": "because", "rows": []}])


def test_one_comparison_that_fails_loses_no_other(
    benchmarks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, table, run = benchmarks
    cases = tuple(a_case(harness, name=name) for name in ("broken", "sound"))
    runs = [a_run("ours", 1.0, [4.0]), a_run("plain", 1.2, [4.0])]

    def compare(comparison: str, case: Any, *rest: Any) -> list[dict[str, Any]]:
        if case.name == "broken":
            raise RuntimeError("no compiler")
        return runs

    monkeypatch.setattr(harness, "cases", lambda comparison: cases)
    monkeypatch.setattr(harness, "compare", compare)
    monkeypatch.setattr(run, "peaks_of_the_machine", lambda folder: {})
    records = run.measured(["c0"], 1, True, tmp_path)
    assert records[0]["refused"] == "no compiler" and records[1]["rows"][0]["met"] and records[1]["idle"]
    assert {path.name for path in tmp_path.iterdir()} == {"broken.json", "sound.json"}
    readme = tmp_path / "README.md"
    readme.write_text("before\n{}\nold\n{}\nafter\n".format(*table.MARKERS))
    table.put(readme, records)
    text = readme.read_text()
    assert "SOUND" in text and "old" not in text and text.startswith("before") and text.endswith("after\n")
    assert "no compiler" in table.page(records)


def test_every_comparison_says_what_it_compares(benchmarks: Any) -> None:
    harness = benchmarks[0]
    names = []
    for comparison in harness.COMPARISONS:
        said = ast.get_docstring(ast.parse((FOLDER / f"{comparison}.py").read_text(encoding="utf-8")))
        assert said and said.startswith(f"{comparison.upper()}: ")
        for case in harness.cases(comparison):
            names.append(case.name)
            assert "ours" in case.sides and case.what and case.measures
            assert all(harness._floor(measure) or measure.key == "restored" for measure in case.measures)
    assert len(names) == len(set(names)) == 14


def test_the_side_that_is_measured_is_ours_as_users_have_it(benchmarks: Any, tmp_path: Path) -> None:
    harness = benchmarks[0]
    ours, theirs = (harness.environment(side, tmp_path) for side in ("ours", "plain"))
    assert not any(name.startswith("MALLOC_") for name in ours) and harness.MALLOC.items() <= theirs.items()
    assert harness.MALLOC["MALLOC_ARENA_MAX"] == str(ARENAS), "theirs has our settings"
    assert ours["JAXFORMER_CACHE"].startswith(str(tmp_path))


def test_a_run_that_others_disturb_is_discarded(
    benchmarks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = benchmarks[0]
    shares: list[float] = []
    monkeypatch.setattr(harness, "in_process", lambda *arguments: a_run("ours", 1.0, [4.0]))
    monkeypatch.setattr(harness, "wait_until_idle", lambda: 0.01)
    monkeypatch.setattr(harness.Watch, "foreign", lambda self: shares.pop(0))
    run = ("c0", "c0", "ours", tmp_path, 0)
    shares[:] = [0.2, 0.01]
    assert harness.undisturbed(*run, False)["discarded"] == 1
    shares[:] = [0.2] * 3
    with pytest.raises(harness.Refused, match="others took more"):
        harness.undisturbed(*run, False)
    shares[:] = [0.2]
    assert harness.undisturbed(*run, True)["foreign_share"] == 0.2
    monkeypatch.setattr(harness, "wait_until_idle", lambda: 0.5)
    with pytest.raises(harness.Refused, match="busy"):
        harness.undisturbed(*run, False)


def test_a_setting_of_the_rival_that_does_not_run_is_told_and_loses_nothing(
    benchmarks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = benchmarks[0]

    def undisturbed(comparison: str, case: str, side: str, folder: Path, number: int, anyway: bool) -> dict[str, Any]:
        if side in broken:
            raise harness.Failed("no compiler")
        return a_run(side, 1.0, [4.0], number)

    monkeypatch.setattr(harness, "undisturbed", undisturbed)
    case, broken = a_case(harness), ["compiled"]
    runs = harness.compare("c0", case, tmp_path)
    assert [run["side"] for run in runs] == ["ours", "plain", "compiled", "ours", "plain"]
    assert runs[2]["failed"] == "no compiler" and harness.rows(case, runs, {})[0]["rival"] == "plain"
    broken[:] = ["plain", "compiled"]
    with pytest.raises(harness.Refused):
        harness.compare("c0", case, tmp_path)
    broken[:] = ["ours"]
    with pytest.raises(harness.Failed):
        harness.compare("c0", case, tmp_path)


@pytest.fixture
def accelerators(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`benchmarks/accelerators.py` as its processes have it, at tiny size on CPU, without a rival."""
    for name, value in (("DEVICE", "cpu"), ("TINY", "1"), ("ALONE", "1")):
        monkeypatch.setenv(f"BENCHMARK_{name}", value)
    import accelerators

    return accelerators


@pytest.mark.slow
def test_a_run_on_an_accelerator_works_where_there_is_none(
    accelerators: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that `make bench-tpu` does but for the device, packed rows included, in this process."""
    import harness
    import trainers

    from jaxformer.objectives.masked_lm import MaskedLM

    def here(comparison: str, case: str, side: str, folder: Path, number: int, *python: str) -> dict[str, Any]:
        one = next(one for one in accelerators.CASES if one.name == case)
        return one.make(folder) or {} if side == "make" else dict(one.sides[side](folder, number), peak_mb=1.0)

    monkeypatch.setattr(harness, "in_process", here)
    monkeypatch.setattr(trainers, "learner_of", one_device(trainers.learner_of))
    monkeypatch.setenv("BENCHMARK_STARTED", "0")
    monkeypatch.setattr(MaskedLM, "packed", False)  # as it is, and is again afterwards
    record = accelerators.measured("g6", tmp_path, harness.about())
    assert "refused" not in record, record
    assert 0 < record["against_cpu"]["apart"] < accelerators.TOLERANCE
    assert [row["unit"] for row in record["rows"]] == ["ms", "rows/s"]
    assert len(record["against_cpu"]["losses"]["ours"]) == trainers.CHECKED
    page = accelerators.page("cpu", [record])
    assert page.count("not run") == 7 and "G6" in page and record["accelerator"] in page


def one_device(learner_of: Any) -> Any:
    """Return `learner_of` for a process that has eight fake devices."""
    return lambda config: learner_of((config[0], (*config[1], "sharding.data=1")))


def test_packed_rows_hold_two_texts(accelerators: Any) -> None:
    batch = accelerators.packed({"inputs": np.zeros((2, 20), np.int32), "weights": np.ones((2, 3))})
    assert batch["segment_ids"].tolist() == [[1] * 9 + [2] * 11] * 2
    assert batch["positions"].tolist() == [[*range(9), *range(11)]] * 2
    assert batch["weights"].shape == (2, 3)


def test_nothing_is_timed_before_losses_and_kernels_are_right(
    accelerators: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness

    sides = {"ours": {"checked": [4.0, 3.0], "kernels": [], "kind": "H"}, "cpu": {"checked": [4.0, 3.1], "kernels": []}}
    monkeypatch.setenv("BENCHMARK_DEVICE", "gpu")
    monkeypatch.setattr(harness, "in_process", lambda comparison, case, side, folder, number: dict(sides[side]))
    assert "differ at 1" in accelerators.measured("g1", tmp_path, {})["refused"]
    sides["cpu"]["checked"] = [4.0, 3.01]
    refused = accelerators.measured("g1", tmp_path, {})["refused"]
    assert "no __cudnn$fmha in the compiled step" in refused
    sides["ours"]["kernels"] = ["__cudnn$fmha"]
    assert accelerators.against_cpu("g1", tmp_path)["accelerator"] == "H"
    assert all(one.what in accelerators.page("gpu", []) for one in accelerators.RUNS.values())
    for device in ("gpu", "tpu"):
        stored = (FOLDER / "results" / f"{device}.md").read_text(encoding="utf-8")
        assert stored.startswith(accelerators.page(device, []).splitlines()[0])


def test_a_sweep_is_divided_by_its_steps_and_its_parts_add_up(benchmarks: Any) -> None:
    import sweep

    parts = dict.fromkeys((part for part, *_ in sweep.PARTS), 1.0)
    run = {"wall": 100.0, "pure": [40.0, 40.0], "logged": [41.0, 42.0], "parts": parts, "foreign_share": 0.01}
    found = sweep.summary(run)
    assert found["ratio"] == 1.25 and found["with_own_work"] == pytest.approx(100 / (80 + len(sweep.TRAINING)))
    assert sum(found["rows"].values()) == pytest.approx(100)
    about = benchmarks[0].about() | {"cache": "warm", "run": run, "summary": found}
    assert "**The command takes 1.250 times its pure training time** (at most 1.15: missed)" in sweep.page(about)
    for _, module, path in sweep.PARTS:  # what it times is called so
        assert callable(operator.attrgetter(path)(importlib.import_module(module))), path
    assert set(sweep.TRAINING) <= set(parts)


def test_the_page_of_a_sweep_is_what_its_record_says(benchmarks: Any) -> None:
    import sweep_page

    for path in sweep_page.RESULTS.glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "table" in record:
            assert path.with_suffix(".md").read_text(encoding="utf-8") == sweep_page.page(path.stem, record)
            assert len(record["rows"]) == len(record["table"]) - 1 and path.with_suffix(".png").exists()
