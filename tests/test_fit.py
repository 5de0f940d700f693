"""Placements that fit: those that divide, the fewest micro-batches, the fastest first, and what is said of none."""

import json
import shlex
from typing import Any

import pytest

from jaxformer.cli.main import main
from jaxformer.config import Config, load
from jaxformer.devices.sharding import check_batches
from jaxformer.errors import UserError
from jaxformer.footprint.chips import CHIPS
from jaxformer.planning import fit, network
from jaxformer.planning.plan import make_plan

TINY = ["model.num_layers=1", "model.vocab_size=300", "training.unroll_layers=1"]


def of_memory(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setitem(CHIPS, "l4", CHIPS["l4"]._replace(memory=size))


@pytest.mark.slow  # 20 s: the search ends where `plan` draws the line; its order and refusals have tests of their own
def test_what_fits_is_what_plan_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A chip that holds the state and a quarter of the batch: fewer micro-batches do not fit, and so says `plan`."""

    def total(*overrides: str) -> float:
        plan = make_plan(load("gpt:smoke", [*TINY, *overrides]), num_devices=2, chip="l4")
        return float(plan["bytes_per_device"]["total"])

    size = total("training.accumulation_steps=4", "training.remat=none") / fit.ROOM
    of_memory(monkeypatch, 1.01 * size)
    command = ["plan", "--fit", "--config=gpt:smoke", "--devices=2", "--chip=l4", "--json"]
    assert main([*command, *(f"--config.{override}" for override in TINY)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["placements"]) == fit.MOST
    hours = [placed["hours"] for placed in found["placements"]]
    assert hours == sorted(hours) and hours[0] > 0
    for placed in found["placements"]:
        mesh, overrides = placed["mesh"], placed["overrides"]
        assert mesh["data"] * mesh["fsdp"] * mesh["tensor"] == 2
        assert total(*overrides) == placed["bytes_per_device"]["total"] <= fit.ROOM * 1.01 * size
        if placed["accumulation_steps"] > 1:
            fewer = f"training.accumulation_steps={placed['accumulation_steps'] // 2}"
            assert total(*overrides, fewer) > fit.ROOM * 1.01 * size
    assert any(placed["accumulation_steps"] > 1 for placed in found["placements"])
    fit.print_placements(found)
    flags = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("flags"))
    pasted = ["plan", "--config=gpt:smoke", "--devices=2", "--json", *shlex.split(flags)[1:]]
    assert main(pasted) == 0


@pytest.mark.parametrize(
    ("size", "arguments", "message"),
    [
        (24e9, ["--devices=2"], "--devices=N and --chip=NAME"),
        (24e9, ["--chip=l4"], "--devices=N and --chip=NAME"),
        (24e9, ["--chip=l4", "--devices=0"], "--devices: 0 must be at least 1"),
        (24e9, ["--chip=l5", "--devices=2"], "did you mean 'l4'"),
        (24e9, ["--chip=l4", "--devices=7"], "16 examples do not divide among 7 devices; set it to 14 or 21"),
        (1e5, ["--chip=l4", "--devices=1"], "no placement of gpt:smoke on 1 x l4 fits; the least is"),
    ],
)
def test_what_cannot_be_is_one_line(
    size: float, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of_memory(monkeypatch, size)
    overrides = [f"--config.{override}" for override in TINY]
    assert main(["plan", "--fit", "--config=gpt:smoke", *overrides, *arguments]) == 2
    *notes, error = capsys.readouterr().err.splitlines()
    assert message in error and all(note.startswith("looking for placements") for note in notes)
    assert len(notes) == (size == 1e5)  # nothing is announced that is not begun


def choices(config: Config, devices: int) -> list[fit.Choice]:
    return list(fit._choices(config, devices))


def test_only_placements_that_divide_are_tried() -> None:
    config = load("gpt:smoke", ["training.batch_size=12"])  # 4 heads
    meshes = {(choice.data, choice.fsdp, choice.tensor) for choice in choices(config, 16)}
    assert meshes == {(4, 1, 4), (2, 2, 4), (1, 4, 4)}  # 12 rows among 4 devices, 4 heads among 4
    phased = load("gpt:smoke", ["training.phases=[{'steps': 9, 'batch_size': 8, 'accumulation_steps': 2}]"])
    assert fit._pieces(phased, 4) == [1, 2, 4] and fit._pieces(phased, 8) == []  # the phase cuts 8 rows into 4 and 4
    assert fit._pieces(load("gpt:smoke", ["evaluation.batch_size=6"]), 4) == []
    assert {choice.attention for choice in choices(config, 1)} == {"auto"}
    named = choices(load("gpt:smoke", ["training.attention=einsum"]), 1)
    assert {choice.attention for choice in named} == {"auto", "einsum"} and len(named) == 2 * len(network.AGAIN)


# Time, by hand: two micro-batches of a step on 2 x 2 x 2, at 1 GB/s within four devices and 0.1 GB/s beyond.

WORK = network.Work(flops=8e12, parameter_bytes=4e9, width_bytes=1e3, steps=((10, 8000, 0),))
SLOW = network.Network(joined=4, link=1e9, beyond=1e8, source="")


def load_of(**changes: Any) -> network.Load:
    mesh = {"data": 2, "fsdp": 2, "tensor": 2} | changes
    return network.load_of(WORK, SLOW, mesh, 2, "none", 1e10)


def test_seconds_by_hand() -> None:
    load = load_of()
    assert load.computation == 8e12 / (8 * 1e10)
    assert load.fsdp == pytest.approx(10 * 2 * 3 * 2e9 * 0.5 / 1e9)  # 4 GB by tensor 2, half of it from the other
    assert load.data == pytest.approx(10 * 2 * 2 * 1e9 * 0.5 / 1e8)  # eight devices: beyond the fast network
    assert load.tensor == pytest.approx(10 * 2 * 2000 * 1e3 * 0.5 / 1e9)
    assert load.seconds == load.fsdp + load.data + load.tensor > load.computation
    assert load.limit == "network: gradients over data"
    assert load_of(data=1).limit == "computation"
    assert load_of(fsdp=1, data=1, tensor=1) == network.Load(8e12 / 1e10, 0.0, 0.0, 0.0)
    full = network.load_of(WORK, SLOW, {"data": 1, "fsdp": 1, "tensor": 1}, 1, "full", 1e10)
    assert full.computation == pytest.approx(8e12 / 1e10 * 4 / 3)


def test_every_chip_has_its_network() -> None:
    assert network.NETWORKS.keys() == CHIPS.keys()
    for name, joined in network.NETWORKS.items():
        assert joined.link > joined.beyond > 1e9 and joined.joined > 1 and joined.source, name


def test_a_batch_that_does_not_divide_is_told_what_does() -> None:
    sizes = {"data": 8, "fsdp": 1, "tensor": 1}
    with pytest.raises(UserError, match="set it to 8 or 16, or sharding.data=6, which"):
        check_batches(sizes, {"training.batch_size": 12})
    with pytest.raises(UserError, match="set it to 8$"):
        check_batches(sizes | {"fsdp": 8, "data": 1}, {"training.batch_size": 5})
