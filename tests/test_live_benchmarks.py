"""The rivals of `make bench-gpu`, at tiny size on CPU: they start from our weights and have our losses."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`benchmarks/accelerators.py`, whose sides run in this process and on one of its devices."""
    before = set(sys.modules)
    for name, value in (("BENCHMARK_DEVICE", "cpu"), ("BENCHMARK_TINY", "1"), ("BENCHMARK_STARTED", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(FOLDER))
    import accelerators
    import harness
    import trainers

    def here(comparison: str, case: str, side: str, folder: Path, number: int, *python: str) -> dict[str, Any]:
        one = next(one for one in accelerators.CASES if one.name == case)
        return one.make(folder) or {} if side == "make" else dict(one.sides[side](folder, number), peak_mb=1.0)

    def one_device(config: tuple[str, tuple[str, ...]]) -> Any:
        return learner_of((config[0], (*config[1], "sharding.data=1")))

    learner_of = trainers.learner_of
    monkeypatch.setattr(harness, "in_process", here)
    monkeypatch.setattr(trainers, "learner_of", one_device)
    yield accelerators
    for name in set(sys.modules) - before:
        if FOLDER in Path(str(getattr(sys.modules[name], "__file__", None))).parents:
            del sys.modules[name]


@pytest.mark.parametrize("name", ["g1", "g4", "g7"])
def test_both_sides_train_alike(accelerators: Any, tmp_path: Path, name: str) -> None:
    import harness

    one = accelerators.case(name)
    one.make(tmp_path)
    assert set(one.sides) == {"ours", "torch.compile"}
    runs = [dict(sides(tmp_path, 0), side=side, round=0, peak_mb=1.0) for side, sides in one.sides.items()]
    harness.check(one, runs)  # the losses of 20 steps
    rows = harness.rows(one, runs, {})
    assert [row["unit"] for row in rows] == ["ms", accelerators.RUNS[name].unit] and all(row["theirs"] for row in rows)
