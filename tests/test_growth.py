"""How cost grows: the benchmark's formulas and flags by hand, and what a deeper stack must not cost."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from tiny import CONFIGS

from jaxformer.models import Model
from jaxformer.models.model import example_batch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """growth.py and growth_page.py, forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import growth
    import growth_page

    yield growth, growth_page
    for name in ("growth", "growth_page"):
        del sys.modules[name]


def test_what_devices_send_is_read_from_the_program(benchmark: tuple[Any, Any]) -> None:
    text = """
  %sum = (f32[10,100]{1,0}, bf16[100]{0}) all-reduce(%a, %b), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %all = f32[8,256]{1,0} all-gather-start(%c), replica_groups=[2,4]<=[8], dimensions={0}
  %part = f32[256]{0} reduce-scatter(%d), replica_groups={{0,1},{2,3}}, dimensions={0}
  %axes = f32[16]{0} reduce-scatter(%g), replica_groups=mesh['data'=2,'fsdp'=4] {'data','fsdp'}, dimensions={0}
  %next = pred[] collective-permute(%e), source_target_pairs={{0,1}}
  %done = f32[8,256]{1,0} all-gather-done(%all)
  %name = f32[4]{0} add(%all-reduce.1, %f)
"""
    sums, gathered, scattered = 2 * 3 / 4 * (4000 + 200), 3 / 4 * 8192, 1024 + 7 * 64
    expected = {"all-reduce": sums, "all-gather": gathered, "reduce-scatter": scattered, "collective-permute": 1}
    assert benchmark[0].collective_bytes(text) == expected


def test_formulas_of_what_devices_send(benchmark: tuple[Any, Any]) -> None:
    formulas = benchmark[0].FORMULAS
    # 1000 bytes of parameters, 800 of them divided; activations of 64 bytes, 3 layers.
    assert formulas["data"](4, 1000, 800, 64, 3) == 1500
    assert formulas["fsdp"](4, 1000, 800, 64, 3) == 3 / 4 * (1600 + 400)
    assert formulas["tensor"](4, 1000, 800, 64, 3) == 1.5 * 14 * 64


def test_what_grows_faster_than_its_formula_is_marked(benchmark: tuple[Any, Any]) -> None:
    growth, page = benchmark

    def point(depth: int, step: float) -> dict[str, Any]:
        return {
            "step": step, "flops": 1e9 * depth, "bytes": 100 * depth, "planned_bytes": 100 * depth,
            "compile": 1 + depth, "trace": 0.1, "lower": 0.1, "peak_rss": 1e9, "faults": [0], "foreign": 0.0,
        }  # fmt: skip

    # The reference is 4 layers: from there the formula grows 4 times, the step 5.6 times.
    points = {"rate": {"gemm": 1e9}, "depth/1": point(1, 1.0), "base": point(4, 4.0), "depth/8": {"error": "killed"}}
    points["depth/16"] = point(16, 22.4)
    results = {"base": growth.BASE, "points": points, "date": "", "commit": "", "cpu": "", "cores": 1, "jax": ""}
    found = {series.quantity: series for series in page.all_series(results, growth.AXES, growth.REFERENCE)}
    assert found["step time"].values == [1, 4, 16] and found["step time"].formula == [1.0, 4.0, 16.0]
    assert found["compile"].formula == found["compile"].measured == [2, 5, 17]  # linear
    grown = page.growth(found["step time"], 4)
    assert (grown.measured, grown.formula) == (pytest.approx(5.6), 4.0)
    assert grown.ratio == pytest.approx(1.4) and grown.is_faster
    assert not page.growth(found["memory"], 4).is_faster
    series = list(found.values())
    text = page.page(results | {"python": ""}, growth.AXES, growth.REFERENCE, series, "page.png")
    assert "| depth | step time | 4, 16 | 5.60 | 4.00 | 1.40 | **faster** |" in text
    assert "| 8 | killed |" in text and text.count("**faster**") == 1


def test_the_work_of_gradients_grows_with_depth_not_with_its_square() -> None:
    model = Model(CONFIGS["gpt"])

    def total(params: Any) -> jax.Array:
        return jnp.sum(model.apply(params, example_batch(model))["hidden"])

    gradient = str(jax.make_jaxpr(jax.grad(total))(model.shapes))
    kernel = "f32[3,16,32]"  # of all layers: put together, never a layer within zeros
    assert f":{kernel} = concatenate[" in gradient and f":{kernel} = pad[" not in gradient
