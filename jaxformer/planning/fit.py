"""Placements of a config that fit a number of chips: the fastest three, as flags to paste.

A placement is a mesh (data x fsdp x tensor), micro-batches, rematerialisation, and attention: what `auto` chooses on
the chip, and what the config names instead. All that divide are ranked by network.py. From the fastest on, each gets
the fewest micro-batches with which `plan` says that it fits, until three are found: no program is compiled, and most
placements are never traced.
"""

import bisect
import dataclasses
import functools
import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from jaxformer import config as configs
from jaxformer.checks import check_range
from jaxformer.config import Config
from jaxformer.devices import check_batches
from jaxformer.errors import UserError
from jaxformer.footprint import chip_named
from jaxformer.planning.network import AGAIN, NETWORKS, Load, Work, load_of
from jaxformer.planning.plan import ROOM, Plan, make_plan, tokens_of
from jaxformer.tables import estimate, gigabytes, percent, print_paragraph, roomy
from jaxformer.training import Phase

MOST = 3  # placements that are shown
MOST_TENSOR = 8  # devices that a layer is split over: one machine's
LEAST_MEMORY = "full"  # of rematerialisations


class Choice(NamedTuple):
    """A placement. Of several that take as long the first in this order is preferred."""

    remat: str
    tensor: int
    fsdp: int
    data: int
    accumulation: int
    attention: str

    @property
    def mesh(self) -> dict[str, int]:
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}

    @property
    def overrides(self) -> list[str]:
        """The keys of the config that make this placement."""
        keys: dict[str, int | str] = {f"sharding.{axis}": size for axis, size in self.mesh.items()}
        keys |= {"training.accumulation_steps": self.accumulation}
        keys |= {"training.remat": self.remat, "training.attention": self.attention}
        return [f"{key}={value}" for key, value in keys.items()]


@dataclasses.dataclass(frozen=True)
class Search:
    """What placements are asked about."""

    devices: int
    pieces: Callable[[int], list[int]]  # into how many micro-batches batches may be cut, so many devices sharing each
    plan: Callable[[Choice], Plan | None]  # None: the config refuses it
    load: Callable[[Choice], Load]


def find_placements(
    config: Config,
    *,
    num_devices: int | None,
    chip: str,
    utilisation: float = 0.4,
    watts: float | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Return {"config", "chip", "devices", "memory", "source", "placements"}, the fastest placement first: each with
    its mesh, its bytes per device as `plan` has them, hours, what limits it, the hours that computing and each axis
    take by themselves, and the keys of the config that make it. `note` is told when the search begins.

    Raises UserError where the chip or the number of devices is not said, where no mesh can share the batches, and
    where nothing fits, with what comes nearest.
    """
    if num_devices is None or not chip:
        raise UserError("--fit: say on how many of which chips with --devices=N and --chip=NAME")
    check_range("--devices", num_devices, at_least=1)
    check_range("--utilisation", utilisation, above=0, at_most=1)
    device, network = chip_named(chip), NETWORKS[chip.lower().replace("_", "-")]

    @functools.cache
    def plan(choice: Choice) -> Plan | None:
        try:
            placed = configs.resolve(
                config.to_dict(), choice.overrides, name=config.name, stored=True, defined=config.defined
            )
            return make_plan(placed, num_devices=num_devices, chip=chip, utilisation=utilisation, watts=watts)
        except UserError:
            return None

    choices = list(_choices(config, num_devices))
    if not choices:
        check_batches({"data": num_devices, "fsdp": 1}, config.batch_sizes)
        raise UserError(f"--fit: no mesh of {num_devices} devices can share the batches of {config.name}")
    note(f"looking for placements that fit among {len(choices)}: about a minute")
    first = next((made for choice in choices if (made := plan(choice)) is not None), None)
    if first is None:
        make_plan(config, num_devices=num_devices, chip=chip)  # says why
        raise UserError(f"--fit: {config.name} allows none of the placements of {num_devices} devices")
    work = _work(config, first)
    load = functools.cache(
        lambda choice: load_of(work, network, choice.mesh, choice.accumulation, choice.remat, device.peak * utilisation)
    )
    search = Search(num_devices, functools.partial(_pieces, config), plan, load)
    found = list(itertools.islice(_fitting(search, choices), MOST))
    if not found:
        raise UserError(_refusal(config, search, choices, chip, device.memory))
    return {
        "config": config.name,
        "model": config.selected["model"],
        "chip": chip.lower(),
        "devices": num_devices,
        "memory": device.memory,
        "utilisation": utilisation,
        "source": network.source,
        "placements": [_shown(search, choice) for choice in found],
    }


def _choices(config: Config, num_devices: int) -> Iterator[Choice]:
    """Yield every mesh with every rematerialisation and attention, with as few micro-batches as batches divide into."""
    attentions = dict.fromkeys(("auto", config.training.attention))
    for tensor in _divisors(num_devices):
        if tensor > MOST_TENSOR or config.model.num_heads % tensor:
            continue
        for fsdp in _divisors(num_devices // tensor):
            data = num_devices // tensor // fsdp
            if pieces := _pieces(config, data * fsdp):
                for remat, attention in itertools.product(AGAIN, attentions):
                    yield Choice(remat, tensor, fsdp, data, pieces[0], attention)


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _pieces(config: Config, shares: int) -> list[int]:
    """Return into how many micro-batches, rising, the batches of all phases may be cut so that `shares` devices share
    each; a phase that says so itself keeps its own number."""
    free = [phase.batch_size for phase, own in _phases(config) if not own]
    fixed = [phase.batch_size // own for phase, own in _phases(config) if own]
    if config.evaluation.batch_size:
        fixed.append(config.evaluation.batch_size)
    if any(size % shares for size in (*free, *fixed)):
        return []
    return _divisors(math.gcd(*(size // shares for size in free)))


def _phases(config: Config) -> list[tuple[Phase, int]]:
    """Return the run's phases, each with the number of micro-batches that it names itself (0: it takes the run's)."""
    named = [phase.get("accumulation_steps", 0) for phase in config.training.phases]
    return list(zip(config.phases, [*named, 0], strict=True))


def _work(config: Config, plan: Plan) -> Work:
    """Return what the run has to do, wherever; `plan` is that of any placement."""
    model, steps, phases = config.model, config.training.num_steps, []
    for phase, own in _phases(config):
        count = max((steps if phase.last is None else min(phase.last, steps)) - phase.first, 0)
        phases.append((count, phase.batch_size * tokens_of(phase.of(config.supervision)), own))
    sums = 4 * (model.num_layers + model.source_layers)
    if model.family == "encoder_decoder":  # half of the tokens pass four sums a layer, the others six
        sums += model.num_layers
    parameters = 4.0 * sum(math.prod(entry["shape"]) for entry in plan["parameters"])
    width = sums * model.d_model * (4 if plan["dtype"] == "float32" else 2)
    return Work(plan["flops"], parameters, float(width), tuple(phases))


def _fitting(search: Search, choices: list[Choice]) -> Iterator[Choice]:
    """Yield placements that fit, the fastest first; of each mesh, rematerialisation and attention that with the fewest
    micro-batches."""
    heap = [(search.load(choice).seconds, choice, False) for choice in choices]
    heapq.heapify(heap)
    while heap:
        _, choice, known = heapq.heappop(heap)
        if known:
            yield choice
        elif (least := _least(search, choice)) is not None:
            heapq.heappush(heap, (search.load(least).seconds, least, True))


def _least(search: Search, choice: Choice) -> Choice | None:
    """Return a placement with the fewest micro-batches with which it fits, or None."""
    pieces = search.pieces(choice.data * choice.fsdp)

    def fits(count: int, remat: str = choice.remat) -> bool:
        plan = search.plan(choice._replace(accumulation=count, remat=remat))
        return plan is not None and bool(plan["fits"])

    # What does not fit with all that saves memory need not be asked about further.
    if not fits(pieces[-1], remat=LEAST_MEMORY) or not fits(pieces[-1]):
        return None
    return choice._replace(accumulation=pieces[bisect.bisect_left(pieces, True, key=fits)])


def _refusal(config: Config, search: Search, choices: list[Choice], chip: str, memory: float) -> str:
    """Return why nothing fits: what comes nearest."""
    thrifty = {
        choice._replace(remat=LEAST_MEMORY, accumulation=search.pieces(choice.data * choice.fsdp)[-1])
        for choice in choices
    }
    plans = {choice: plan for choice in sorted(thrifty) if (plan := search.plan(choice)) is not None}
    nearest = min(plans, key=lambda choice: plans[choice]["bytes_per_device"]["total"])
    total = plans[nearest]["bytes_per_device"]["total"]
    mesh = ", ".join(f"{axis}={size}" for axis, size in nearest.mesh.items())
    return (
        f"--fit: no placement of {config.name} on {search.devices} x {chip.lower()} fits; the least is "
        f"{gigabytes(total)} per device against {ROOM:.0%} of {gigabytes(memory)} ({mesh}, {nearest.accumulation} "
        f"micro-batches, rematerialisation {nearest.remat}); take more chips, or ones with more memory"
    )


def _shown(search: Search, choice: Choice) -> Plan:
    """Return a placement as plain values."""
    plan, load = search.plan(choice), search.load(choice)
    assert plan is not None  # it fits
    return {
        "mesh": choice.mesh,
        "accumulation_steps": choice.accumulation,
        "attention": plan["attention"],
        **plan["execution"],
        "bytes_per_device": plan["bytes_per_device"],
        "hours": load.seconds / 3600,
        "limited_by": load.limit,
        "hours_of": {name: seconds / 3600 for name, seconds in load._asdict().items()},
        "overrides": choice.overrides,
    }


def print_placements(found: Plan, console: Console | None = None) -> None:
    """Print each placement with its bytes per device, hours, what limits it, and the flags to paste."""
    console = roomy(console or Console())
    memory = found["memory"]
    about = f" ({found['model']}) on {found['devices']:,} x {found['chip']}, {gigabytes(memory)} each"
    print_paragraph(console, Text.assemble((found["config"], "bold"), about))
    for number, placed in enumerate(found["placements"], 1):
        mesh = " x ".join(f"{axis} {size}" for axis, size in placed["mesh"].items())
        how = f"{placed['accumulation_steps']} micro-batches, rematerialisation {placed['remat']}"
        print_paragraph(console, Text.assemble("\n", (f"{number}. {mesh}", "bold"), f", {how}"))
        sizes = placed["bytes_per_device"]
        parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in sizes.items() if name != "total")
        total = f"{gigabytes(sizes['total'])}, {percent(sizes['total'] / memory)} of it: {parts}"
        print_paragraph(console, f"per device  {total}")
        hours = placed["hours_of"]
        alone = ", ".join(f"{name} {estimate(time)}" for name, time in hours.items() if time)
        print_paragraph(console, f"hours       {estimate(placed['hours'])} ({alone}); limit: {placed['limited_by']}")
        for line, attention in enumerate(placed["attention"]):
            print_paragraph(console, f"{'' if line else 'attention':12}{attention.removeprefix('attention ')}")
        flags = " ".join(f"--config.{override}" for override in placed["overrides"])
        print_paragraph(console, f"flags       {flags}")
    used = f"{found['utilisation']:.0%} of the peak while computing; {found['source']}"
    print_paragraph(console, f"\nhours: max(computation, fsdp + data) + tensor, at {used}", "dim")
