"""What a run will need, before it touches an accelerator: parameters, FLOPs, bytes per device, hours, energy, CO2eq.

Parameters, optimizer state and gradients are exact, activations an estimate: memory.py says how. Of several phases the
largest activations count, and FLOPs and tokens are those of each phase's steps. FLOPs are those of training/flops.py
(no recomputation); `utilisation` is the share of the chip's peak that they reach (MFU).

    hours   = FLOPs of the run / (devices x peak x utilisation) / 3600
    kWh     = hours x devices x (watts of the chip x 1.1) x PUE / 1000
    kgCO2eq = kWh x carbon intensity
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxformer.checks import check_range
from jaxformer.config import Config
from jaxformer.devices import axis_sizes, check_batches, flags_for, placements
from jaxformer.errors import UserError
from jaxformer.footprint import CHIPS, Chip, carbon_intensity, chip_named
from jaxformer.models import Execution, Model, attentions_in_words, chosen_attentions, count_parameters, device_for
from jaxformer.objectives import Supervision
from jaxformer.planning.memory import activation_bytes, optimizer_bytes, parameter_bytes
from jaxformer.runs import build_model, check_teacher, label_names, stored_run, teacher_model
from jaxformer.tables import estimate, gigabytes, percent, print_paragraph, roomy, table
from jaxformer.training import Phase, layers_on, step_flops

Plan = dict[str, Any]

# What must stay free: XLA's own, fragments between buffers, collectives. JAX itself takes only 75 % of a GPU's memory
# unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
ROOM = 0.9
# CPU, memory, network and fans of the host, as a share of the chip's own power: GPT-3's V100s of 300 W drew 330 W each
# in all (Patterson et al. 2021, arXiv:2104.10350, table 4).
HOST_SHARE = 0.1


def make_plan(
    config: Config, *, num_devices: int | None = None, chip: str = "", utilisation: float = 0.4,
    watts: float | None = None,
) -> Plan:  # fmt: skip
    """Return everything that `jaxformer plan` prints, as plain values: bytes, hours, kWh, kg.

    `num_devices` None is as many as the mesh asks for; `watts` replaces the chip's. Raises UserError for an unknown
    chip, too few devices, batches that they cannot share and a utilisation outside (0, 1].
    """
    check_range("--utilisation", utilisation, above=0, at_most=1)
    if num_devices is not None:
        check_range("--devices", num_devices, at_least=1)
    if watts is not None:
        check_range("--watts", watts, above=0)
    device = chip_named(chip) if chip else None
    sharding = config.sharding
    sizes = axis_sizes(sharding, num_devices or max(sharding.data, 1) * sharding.fsdp * sharding.tensor)
    check_batches(sizes, config.batch_sizes)
    notes: list[str] = []
    supervision = _labelled(config, notes)
    teacher = _teacher(config, notes)
    model = build_model(config, supervision)
    dtype = config.training.compute_dtype
    kind = device_for(config.training.attention) if device is None else device.attends_as
    if dtype == "auto":
        dtype, kind = "bfloat16", kind or "gpu"
        notes.append("training.compute_dtype auto is bfloat16, as on accelerators")
    layers = layers_on(kind or "cpu", config.training, config.model)
    execution = dataclasses.replace(model.execution, dtype=dtype, device=kind, **layers._asdict())
    model = dataclasses.replace(model, execution=execution)

    # Layers in a scan are traced once, however many there are; the parameters are the same.
    shapes = dataclasses.replace(model, execution=Execution(unroll=1)).shapes
    placed = placements(shapes, sizes, model.config.head_dim)
    parameters = parameter_bytes(shapes, placed, sizes)
    bytes_ = {
        "parameters": sum(entry["bytes_per_device"] for entry in parameters),
        "optimizer": optimizer_bytes(config, model, shapes, placed, sizes),
    }
    if config.training.ema_decay:
        bytes_["ema"] = bytes_["parameters"]
    bytes_["gradients"] = bytes_["parameters"]
    if teacher is not None:
        teacher = dataclasses.replace(teacher, execution=model.execution)
        theirs = dataclasses.replace(teacher, execution=Execution(unroll=1)).shapes
        their_placed = placements(theirs, sizes, teacher.config.head_dim)
        bytes_["teacher"] = sum(entry["bytes_per_device"] for entry in parameter_bytes(theirs, their_placed, sizes))
    # Of phases that differ in their batch alone, the one of the largest micro-batch.
    largest: dict[str, Phase] = {}
    for phase in config.phases:
        key = f"{sorted(phase.changes.items())} {phase.accumulation_steps > 1}"
        largest[key] = max(largest.get(key, phase), phase, key=lambda one: one.batch_size / one.accumulation_steps)
    bytes_["activations"] = max(
        activation_bytes(config, model, phase.of(supervision), phase, sizes, teacher) for phase in largest.values()
    )
    bytes_["total"] = sum(bytes_.values())

    flops, tokens = _work(config, model, supervision, teacher)
    last = config.phases[-1].of(supervision)
    row_flops = (
        step_flops(config.phases, model, supervision, teacher)(config.phases[-1].first + 1) / config.training.batch_size
    )
    plan: Plan = {
        "config": config.name,
        "model": config.selected["model"],
        "num_parameters": count_parameters(dataclasses.replace(model, execution=Execution(unroll=1))),
        "flops_per_token": row_flops / tokens_of(last),
        "tokens": tokens,
        "flops": flops,
        "steps": config.training.num_steps,
        "devices": math.prod(sizes.values()),
        "strategy": sharding.strategy,
        "mesh": sizes,
        "dtype": dtype,
        "attention": _attentions(config, execution, device),
        "platform": kind or "cpu",
        "execution": {"unroll_layers": layers.unroll, "remat": layers.remat},
        "bytes_per_device": bytes_,
        "parameters": parameters,
        "notes": notes,
        "utilisation": utilisation,
    }
    if device is not None:
        plan |= {"chip": chip.lower(), **_estimated(plan, device, watts, config)}
        plan["flags"] = [flag._asdict() for flag in flags_for(device.platform, os.environ)]
    return plan


class Work(NamedTuple):
    """How much a run is: the tokens and the FLOPs of the whole training."""

    tokens: int
    flops: float


def work_of(config: Config) -> Work:
    """Return how much a run is, by formulas alone: neither its data nor a teacher is read."""
    supervision = _as_if_labelled(config)
    flops, tokens = _work(config, build_model(config, supervision), supervision, None)
    return Work(tokens, flops)


def num_parameters(config: Config) -> int:
    """Return the parameters of a run's model, without reading its data; a task's has two labels."""
    model = build_model(config, _as_if_labelled(config))
    return count_parameters(dataclasses.replace(model, execution=Execution(unroll=1)))


def _as_if_labelled(config: Config) -> Supervision:
    """Return the objective, or the task with two labels: how many there are hardly counts."""
    if config.task is None or config.task.decodes:
        return config.supervision
    return dataclasses.replace(config.task, labels=("0", "1"))


def _estimated(plan: Plan, chip: Chip, watts: float | None, config: Config) -> Plan:
    """Return what depends on the chip: whether the run fits, and the estimate."""
    devices, total = plan["devices"], plan["bytes_per_device"]["total"]
    hours = plan["flops"] / (devices * chip.peak * plan["utilisation"]) / 3600
    grams, where = carbon_intensity(config.footprint.country_iso_code)
    power = watts or chip.watts
    kwh = None if power is None else hours * devices * power * (1 + HOST_SHARE) * config.footprint.pue / 1000
    return {
        "peak": chip.peak,
        "memory": chip.memory,
        "source": chip.source,
        "fits": total <= ROOM * chip.memory,
        "hours": hours,
        "watts": power,
        "host_share": HOST_SHARE,
        "pue": config.footprint.pue,
        "kwh": kwh,
        "grams_per_kwh": grams,
        "electricity": where,
        "kg_co2eq": None if kwh is None else kwh * grams / 1000,
    }


def _attentions(config: Config, execution: Execution, device: Chip | None) -> list[str]:
    """Return which attention would run on the chip, or on each kind of device where none is named, and why none that is
    preferred."""
    needed = device_for(config.training.attention)
    kinds = (needed,) if needed else ("cpu", "gpu", "tpu")
    lines: dict[str, None] = {}
    for kind in kinds if device is None else (device.attends_as,):
        dtype = config.training.compute_dtype
        if dtype == "auto":
            dtype = "float32" if kind == "cpu" else "bfloat16"
        there = dataclasses.replace(execution, device=kind, dtype=dtype)
        for shapes in config.shapes:
            lines |= dict.fromkeys(attentions_in_words(chosen_attentions(config.model, there, shapes)))
    return list(lines)


def _labelled(config: Config, notes: list[str]) -> Supervision:
    """Return the objective, or the task with the labels of its data; where those cannot be read, with two."""
    if config.task is None:
        return config.objective
    if config.task.decodes:  # how many labels there are changes nothing
        return config.task
    try:
        labels = label_names(config)
    except (UserError, OSError) as error:
        notes.append(f"the labels of the data cannot be read, two are counted ({error})")
        labels = ("0", "1")
    return dataclasses.replace(config.task, labels=labels)


def _teacher(config: Config, notes: list[str]) -> Model | None:
    """Return the model of a distillation's teacher, or None, with a note, where its run cannot be read.

    Raises UserError for one whose arrays are not those that the student is compared with.
    """
    if config.distillation is None:
        return None
    try:
        run = stored_run(config.distillation.teacher)
    except (UserError, OSError) as error:
        notes.append(f"the teacher, its parameters and its FLOPs are left out: {error}")
        return None
    check_teacher(config, run)
    return teacher_model(config, run)


def tokens_of(supervision: Supervision) -> int:
    """Return how many tokens one example has, those of both stacks."""
    return sum(math.prod(shape) for name, (shape, _) in supervision.shapes.items() if name.endswith("inputs"))


def _work(config: Config, model: Model, supervision: Supervision, teacher: Model | None) -> tuple[float, int]:
    """Return the FLOPs and the tokens of the whole run, phase by phase."""
    flops_of, steps = step_flops(config.phases, model, supervision, teacher), config.training.num_steps
    flops, tokens = 0.0, 0
    for phase in config.phases:
        last = steps if phase.last is None else min(phase.last, steps)
        count = max(last - phase.first, 0)
        flops += count * flops_of(phase.first + 1)
        tokens += count * phase.batch_size * tokens_of(phase.of(supervision))
    return flops, tokens


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print the summary, bytes per device, the estimate with its formulas, and the table of placement."""
    console = roomy(console or Console())
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    on = f"{plan['devices']:,} x {plan['chip']}" if "chip" in plan else _devices(plan)
    about = f" ({plan['model']}) on {on}: {plan['strategy']}, {mesh}, {plan['dtype']}"
    print_paragraph(console, Text.assemble((plan["config"], "bold"), about))
    flops, work = (
        estimate(plan["flops_per_token"]),
        f"{estimate(plan['tokens'])} tokens, {estimate(plan['flops'])} FLOPs",
    )
    print_paragraph(console, f"parameters        {plan['num_parameters']:,}")
    print_paragraph(console, f"FLOPs per token   {flops}  (forward and backward)")
    print_paragraph(console, f"run               {plan['steps']:,} steps, {work}")
    for number, line in enumerate(plan["attention"]):
        print_paragraph(console, f"{'' if number else 'attention':18}{line.removeprefix('attention ')}")
    print_paragraph(console, f"layers            {_layers(plan['execution'])}\n")
    _print_bytes(plan, console)
    _print_estimate(plan, console)
    _print_flags(plan, console)
    _print_placement(plan, console)
    for note in plan["notes"]:
        print_paragraph(console, f"note: {note}", "dim")


def _layers(execution: Mapping[str, Any]) -> str:
    scans = {0: "unrolled", 1: "scanned one by one"}.get(execution["unroll_layers"])
    scans = scans or f"scanned {execution['unroll_layers']} at a time"
    return f"{scans}, rematerialisation {execution['remat']}"


def _devices(plan: Plan) -> str:
    return f"{plan['devices']:,} device{'' if plan['devices'] == 1 else 's'}"


def _table(*headings: str) -> Table:
    shown = table()
    for heading in headings:
        is_number = heading.startswith(("GB", "Bytes", "of "))
        shown.add_column(heading, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    return shown


def _print_bytes(plan: Plan, console: Console) -> None:
    memory = plan.get("memory")
    shown = _table("Per device", "Bytes", "GB", *([f"of {gigabytes(memory)}"] if memory else []))
    for name, size in plan["bytes_per_device"].items():
        share = [percent(size / memory)] if memory else []
        shown.add_row(name, f"{size:,}", f"{size / 1e9:,.3f}", *share, style="bold" if name == "total" else "")
    console.print(shown)
    if memory:
        word = "fits" if plan["fits"] else "does not fit"
        total = plan["bytes_per_device"]["total"]
        why = f"{gigabytes(total)} against {ROOM:.0%} of {gigabytes(memory)} (the rest is XLA's own)"
        print_paragraph(console, Text.assemble((word, "bold green" if plan["fits"] else "bold red"), f": {why}"))
        if not plan["fits"]:
            print_paragraph(
                console,
                "less: training.accumulation_steps, training.remat=full with unroll_layers=1, training.logits_chunk; "
                "more devices: sharding.fsdp, sharding.tensor; --fit finds what fits",
            )
        console.print()
    else:
        print_paragraph(console, f"--chip=NAME says whether it fits, and how long it takes: {', '.join(CHIPS)}\n")


def formulas(plan: Plan) -> dict[str, str]:
    """Return the estimate's formulas with their numbers: {"hours": …, "kWh": …, "kgCO2eq": …}."""
    hours = (
        f"{estimate(plan['flops'])} FLOPs / ({_devices(plan)} x {estimate(plan['peak'])} FLOP/s x "
        f"{plan['utilisation']:g}) / 3600 = {estimate(plan['hours'])}"
    )
    if plan["kwh"] is None:
        missing = f"the vendor does not publish the power of {plan['chip']}; give --watts=W"
        return {"hours": hours, "kWh": missing, "kgCO2eq": missing}
    kwh = (
        f"{estimate(plan['hours'])} h x {_devices(plan)} x ({plan['watts']:g} W x {1 + plan['host_share']:g} for "
        f"the host) x PUE {plan['pue']:g} / 1000 = {estimate(plan['kwh'])}"
    )
    kg = f"{estimate(plan['kwh'])} kWh x {plan['grams_per_kwh']:g} g/kWh / 1000 = {estimate(plan['kg_co2eq'])}"
    return {"hours": hours, "kWh": kwh, "kgCO2eq": f"{kg}; {plan['electricity']}"}


def _print_estimate(plan: Plan, console: Console) -> None:
    if "chip" not in plan:
        return
    for name, formula in formulas(plan).items():
        print_paragraph(console, Text.assemble((f"{name:8}", "bold"), formula))
    print_paragraph(console, f"{plan['chip']}: {plan['source']}\n", "dim")


def _print_flags(plan: Plan, console: Console) -> None:
    """Print what a run sets for XLA on this chip's platform, with the reason of each."""
    for number, flag in enumerate(plan.get("flags", ())):
        heading = "every run sets, unless you do:\n" if number == 0 else ""
        text = f"{flag['name'] or flag['variable']}={flag['value']}"
        print_paragraph(console, Text.assemble(heading, text, (f"  {flag['why']}", "dim")))
    console.print()


def _print_placement(plan: Plan, console: Console) -> None:
    """Print every parameter's path, shape, partition spec and bytes per device, and why a dimension is not split."""
    shown = _table("Parameter", "Shape", "Split by", "Bytes per device")
    for entry in plan["parameters"]:
        axes = ", ".join(axis or "-" for axis in entry["spec"]) or "-"
        shown.add_row(entry["path"], " x ".join(map(str, entry["shape"])), axes, f"{entry['bytes_per_device']:,}")
    console.print(shown)
    for entry in plan["parameters"]:
        for note in entry["notes"]:
            print_paragraph(console, f"{entry['path']} is not split: {note}")
