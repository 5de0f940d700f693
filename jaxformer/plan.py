"""What a run will need, before it touches an accelerator: parameters, FLOPs, bytes per device, hours, energy, CO2eq.

Parameters, optimizer state and gradients are exact: the shapes of the run's own state, each divided by the mesh axes
that its rule splits it over (`jaxformer.sharding`). Activations are the step's, traced as one device runs it and walked
as `jaxformer.activations` says: `batch_size / accumulation_steps / (data x fsdp)` rows of the objective's lengths, and
with `tensor` only a share of the heads, of d_ff and of the vocabulary. Added to them are

- with accumulation, the sum of the gradients of the micro-batches done;
- with fsdp, what is gathered: the token table and its gradient, and the parameters of the largest layer; of all layers
  when they are unrolled without rematerialisation, for then XLA keeps what it gathered until the backward pass.

They are what the step holds at its fullest beyond the three others, so that the sum is what it holds in all; where few
examples make little of them, that moment is the optimizer's update (with clip_norm, the clipped gradients). Of several
phases the largest counts. Of unrolled layers four are traced: each further one adds as much as those.

Checked against XLA's CPU backend in float32 (tests/test_plan.py). Known to differ there: rematerialisation of unrolled
layers is undone; unrolled layers without clip_norm pad every layer's gradient to the whole stack; what collectives of
gradients copy is not counted.

    hours   = FLOPs of the run / (devices x peak x utilisation) / 3600
    kWh     = hours x devices x (watts of the chip x 1.1) x PUE / 1000
    kgCO2eq = kWh x carbon intensity
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxformer.activations import GRADIENT, Held, held
from jaxformer.build import build_model, label_names
from jaxformer.config import Config
from jaxformer.errors import UserError
from jaxformer.flops import CHIPS, Chip, chip_named
from jaxformer.footprint import carbon_intensity
from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.model import Model, count_parameters
from jaxformer.monitor import step_flops
from jaxformer.optimizers import freeze, make_optimizer
from jaxformer.parameters import flatten
from jaxformer.phases import Phase
from jaxformer.run import open_run
from jaxformer.sharding import Placement, axis_sizes, check_batches, placements, specs_like
from jaxformer.step import Losses, Teaching, TrainState, init_state, losses_of, make_train_step

Plan = dict[str, Any]

# What must stay free: XLA's own, fragments between buffers, collectives. JAX itself takes only 75 % of a GPU's memory
# unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
ROOM = 0.9
# CPU, memory, network and fans of the host, as a share of the chip's own power: GPT-3's V100s of 300 W drew 330 W each
# in all (Patterson et al. 2021, arXiv:2104.10350, table 4).
HOST_SHARE = 0.1
_TRACED = 4  # unrolled layers that are traced; the others are as the last two of them


def make_plan(
    config: Config, *, num_devices: int | None = None, chip: str = "", utilisation: float = 0.4,
    watts: float | None = None,
) -> Plan:  # fmt: skip
    """Return everything that `jaxformer plan` prints, as plain values: bytes, hours, kWh, kg.

    `num_devices` None is as many as the mesh asks for; `watts` replaces the chip's. Raises UserError for an unknown chip,
    too few devices, batches that they cannot share and a utilisation outside (0, 1].
    """
    if not 0.0 < utilisation <= 1.0:
        raise UserError(f"--utilisation={utilisation:g}: must be above 0 and at most 1 (0.4 is 40 % of the peak)")
    if num_devices is not None and num_devices < 1:
        raise UserError(f"--devices={num_devices}: must be at least 1")
    if watts is not None and not watts > 0:
        raise UserError(f"--watts={watts:g}: must be above 0")
    device = chip_named(chip) if chip else None
    sharding = config.sharding
    sizes = axis_sizes(sharding, num_devices or max(sharding.data, 1) * sharding.fsdp * sharding.tensor)
    check_batches(sizes, _batches(config))
    notes: list[str] = []
    supervision = _labelled(config, notes)
    teacher = _teacher(config, notes)
    model = build_model(config, supervision)
    dtype = config.training.compute_dtype
    if dtype == "auto":
        dtype = "bfloat16"
        notes.append("training.compute_dtype auto is bfloat16, as on accelerators")
    model = dataclasses.replace(model, execution=dataclasses.replace(model.execution, dtype=dtype))

    # Layers in a scan are traced once, however many there are; the parameters are the same.
    shapes = dataclasses.replace(model, execution=Execution(unroll=1)).shapes
    placed = placements(shapes, sizes, model.config.head_dim)
    parameters = _parameters(shapes, placed, sizes)
    bytes_ = {
        "parameters": sum(entry["bytes_per_device"] for entry in parameters),
        "optimizer": _optimizer_bytes(config, model, shapes, placed, sizes),
    }
    bytes_["gradients"] = bytes_["parameters"]
    if teacher is not None:
        theirs = dataclasses.replace(teacher, execution=Execution(unroll=1)).shapes
        their_placed = placements(theirs, sizes, teacher.config.head_dim)
        bytes_["teacher"] = sum(entry["bytes_per_device"] for entry in _parameters(theirs, their_placed, sizes))
    bytes_["activations"] = max(
        activation_bytes(config, model, phase.of(supervision), phase, sizes, teacher) for phase in config.phases
    )
    bytes_["total"] = sum(bytes_.values())

    flops, tokens = _work(config, model, supervision, teacher)
    last = config.phases[-1].of(supervision)
    row_flops = (
        step_flops(config, model, supervision, teacher)(config.phases[-1].first + 1) / config.training.batch_size
    )
    plan: Plan = {
        "config": config.name,
        "model": config.selected["model"],
        "num_parameters": count_parameters(dataclasses.replace(model, execution=Execution(unroll=1))),
        "flops_per_token": row_flops / _tokens(last),
        "tokens": tokens,
        "flops": flops,
        "steps": config.training.num_steps,
        "devices": math.prod(sizes.values()),
        "strategy": sharding.strategy,
        "mesh": sizes,
        "dtype": dtype,
        "bytes_per_device": bytes_,
        "parameters": parameters,
        "notes": notes,
        "utilisation": utilisation,
    }
    if device is not None:
        plan |= {"chip": chip.lower(), **_judged(plan, device, watts, config)}
    return plan


def _judged(plan: Plan, chip: Chip, watts: float | None, config: Config) -> Plan:
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


def _batches(config: Config) -> dict[str, int]:
    """Return the sizes of all batches that devices share, each under the name that errors call it by."""
    batches = {"evaluation.batch_size": config.evaluation.batch_size or config.training.batch_size}
    for number, phase in enumerate(config.phases):
        where = "training" if phase.last is None else f"training.phases[{number}]"
        batches[f"{where}.batch_size / accumulation_steps"] = phase.batch_size // phase.accumulation_steps
    return batches


def _labelled(config: Config, notes: list[str]) -> Any:
    """Return the objective, or the task with the labels of its data; where those cannot be read, with two."""
    if config.task is None:
        return config.objective
    try:
        labels = label_names(config)
    except (UserError, OSError) as error:
        notes.append(f"the labels of the data cannot be read, two are counted ({error})")
        labels = ("0", "1")
    return dataclasses.replace(config.task, labels=labels)


def _teacher(config: Config, notes: list[str]) -> Model | None:
    """Return the model of a distillation's teacher, or None, with a note, where its run cannot be read."""
    if config.distillation is None:
        return None
    try:
        run = open_run(Path(config.distillation.teacher))
    except (UserError, OSError) as error:
        notes.append(f"the teacher, its parameters and its FLOPs are left out: {error}")
        return None
    return Model(run.config.model, Execution())


def _share(spec: PartitionSpec, sizes: Mapping[str, int]) -> int:
    """Return over how many devices a spec splits an array."""
    axes = [axis for entry in spec for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis]
    return math.prod(sizes[axis] for axis in axes)


def _parameters(shapes: Any, placed: Mapping[str, Placement], sizes: Mapping[str, int]) -> list[Plan]:
    """Return every parameter's path, shape, partition spec, bytes per device, and notes."""
    return [
        {
            "path": path,
            "shape": list(leaf.shape),
            "spec": list(placed[path].spec),
            "bytes_per_device": leaf.size * leaf.dtype.itemsize // _share(placed[path].spec, sizes),
            "notes": list(placed[path].notes),
        }
        for path, leaf in flatten(shapes).items()
    ]


def _optimizer_bytes(
    config: Config, model: Model, shapes: Any, placed: Mapping[str, Placement], sizes: Mapping[str, int]
) -> int:
    """Return the bytes per device of the optimizer's state and of the step's number."""
    update = freeze(make_optimizer(config.optimizer, shapes), config.training.trainable, shapes)
    traced = dataclasses.replace(model, execution=Execution(unroll=1))
    state = jax.eval_shape(lambda rng: init_state(traced, update, rng), jax.random.key(0))
    rest = (state.step, state.opt_state)
    specs = jax.tree.leaves(specs_like(rest, placed, shapes), is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    leaves = jax.tree.leaves(rest)
    return sum(leaf.size * leaf.dtype.itemsize // _share(spec, sizes) for leaf, spec in zip(leaves, specs, strict=True))


def activation_bytes(
    config: Config, model: Model, supervision: Any, phase: Phase, sizes: Mapping[str, int], teacher: Model | None = None
) -> int:
    """Return the bytes that a step of this phase holds on one device beyond parameters, optimizer and gradients."""
    fsdp, tensor = sizes["fsdp"], sizes["tensor"]
    rows = phase.batch_size // phase.accumulation_steps // (sizes["data"] * fsdp)
    local = _local(model, tensor)
    taught = None if teacher is None or config.distillation is None else _local(teacher, tensor)
    teaching = None if taught is None or config.distillation is None else Teaching(config.distillation, taught)

    def traced(num_layers: int) -> Held:
        fewer = dataclasses.replace(local, config=dataclasses.replace(local.config, num_layers=num_layers))
        return _held(config, fewer, losses_of(supervision), supervision.shapes, rows, teaching, fsdp)

    layers = local.config.num_layers
    if local.execution.unroll in (0, layers) and layers > _TRACED:
        fewest = _TRACED // 2  # dense and banded layers alternate
        found = traced(fewest).at(traced(_TRACED), (layers - fewest) / (_TRACED - fewest))
    else:
        found = traced(layers)
    shapes = flatten(dataclasses.replace(local, execution=Execution(unroll=1)).shapes)
    gradients = sum(leaf.size * 4 for leaf in shapes.values()) / fsdp
    total = found.beyond(gradients)
    if phase.accumulation_steps > 1:
        total += gradients
    if fsdp > 1:
        keeps = local.execution.unroll == 0 and local.execution.remat == "none"
        total += _gathered(shapes, layers, keeps)
    return round(total)


def _local(model: Model, tensor: int) -> Model:
    """Return the model as one device of a tensor axis runs it; what does not divide is whole on every device."""
    config = model.config

    def share(size: int) -> int:
        return size if size % tensor else size // tensor

    execution = model.execution
    if execution.unroll == config.num_layers:
        execution = dataclasses.replace(execution, unroll=0)
    sizes = {"num_heads": share(config.num_heads), "d_ff": share(config.d_ff)}
    vocabulary = {"vocab_size": share(config.stored_vocab_size), "vocab_multiple": 1}
    local: TransformerConfig = dataclasses.replace(config, **sizes, **(vocabulary if tensor > 1 else {}))
    return dataclasses.replace(model, config=local, execution=execution)


def _gathered(shapes: Mapping[str, Any], num_layers: int, keeps: bool) -> float:
    """Return the bytes of what fsdp gathers: the largest layer's parameters (of all, where they are kept for the
    backward pass) and the token table, with its gradient before it is shared out."""
    sizes = {path: leaf.size * 4.0 for path, leaf in shapes.items()}
    table = sizes["embedding/tokens"]
    if keeps:
        return sum(sizes.values()) + table
    stacks: dict[str, float] = {}
    for path, size in sizes.items():
        stack, layer, _ = path.partition("/layers/")
        if layer:
            stacks[stack] = stacks.get(stack, 0.0) + size / num_layers
    return max(stacks.values()) + 2 * table


def _held(
    config: Config, model: Model, losses: Losses, arrays: Mapping[str, Any], rows: int, teaching: Teaching | None,
    shards: int,
) -> Held:  # fmt: skip
    """Return what a step on one micro-batch of `rows` examples needs."""
    # The attention of a fused kernel cannot be traced without its GPU: it is einsum's without the scores.
    fused = set()
    if model.execution.attention == "cudnn":
        lengths = {shape[0] for name, (shape, _) in arrays.items() if name.endswith("inputs")}
        fused = {(rows, model.config.num_heads, queries, keys) for queries in lengths for keys in lengths}
        model = dataclasses.replace(model, execution=dataclasses.replace(model.execution, attention="einsum"))

    def named(gradients: Any) -> Any:
        return jax.tree.map(lambda leaf: checkpoint_name(leaf, GRADIENT), gradients)

    shapes = dataclasses.replace(model, execution=Execution(unroll=1)).shapes
    update = freeze(make_optimizer(config.optimizer, shapes), config.training.trainable, shapes)
    skips = config.training.skip_non_finite > 0
    step = make_train_step(model, losses, update, teaching=teaching, keep=named, skips=skips)
    state = jax.eval_shape(lambda: TrainState(jnp.zeros((), jnp.int32), _zeros(shapes), update.init(_zeros(shapes))))
    batch = {name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (shape, dtype) in arrays.items()}
    theirs = None if teaching is None else dataclasses.replace(teaching.model, execution=Execution(unroll=1)).shapes
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    jaxpr = jax.make_jaxpr(step)(state, batch, jax.eval_shape(lambda: jax.random.key(0)), rate, theirs)
    count = len(jax.tree.leaves(shapes))  # behind the step's number
    return held(jaxpr, range(1, 1 + count), range(len(jax.tree.leaves(state))), shards, fused)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _tokens(supervision: Any) -> int:
    """Return how many tokens one example has, those of both stacks."""
    return sum(shape[0] for name, (shape, _) in supervision.shapes.items() if name.endswith("inputs"))


def _work(config: Config, model: Model, supervision: Any, teacher: Model | None) -> tuple[float, int]:
    """Return the FLOPs and the tokens of the whole run, phase by phase."""
    flops_of, steps = step_flops(config, model, supervision, teacher), config.training.num_steps
    flops, tokens = 0.0, 0
    for phase in config.phases:
        last = steps if phase.last is None else min(phase.last, steps)
        count = max(last - phase.first, 0)
        flops += count * flops_of(phase.first + 1)
        tokens += count * phase.batch_size * _tokens(phase.of(supervision))
    return flops, tokens


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print the summary, bytes per device, the estimate with its formulas, and the table of placement."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)  # lines of a file are for programs to cut
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    on = f"{plan['devices']:,} x {plan['chip']}" if "chip" in plan else f"{plan['devices']:,} devices"
    console.print(Text.assemble((plan["config"], "bold"), f" ({plan['model']}) on {on}: {plan['strategy']}, {mesh}, "
                                f"{plan['dtype']}"))  # fmt: skip
    console.print(f"parameters        {plan['num_parameters']:,}", highlight=False)
    console.print(f"FLOPs per token   {plan['flops_per_token']:.4g}  (forward and backward)", highlight=False)
    console.print(
        f"run               {plan['steps']:,} steps, {plan['tokens']:.4g} tokens, {plan['flops']:.4g} FLOPs\n",
        highlight=False,
    )
    _print_bytes(plan, console)
    _print_estimate(plan, console)
    _print_placement(plan, console)
    for note in plan["notes"]:
        console.print(Text(f"note: {note}", "dim"))


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for heading in headings:
        is_number = heading.startswith(("GB", "Bytes", "of "))
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    return table


def _print_bytes(plan: Plan, console: Console) -> None:
    memory = plan.get("memory")
    table = _table("Per device", "Bytes", "GB", *([f"of {memory / 1e9:.4g} GB"] if memory else []))
    for name, size in plan["bytes_per_device"].items():
        share = [f"{100 * size / memory:.1f} %"] if memory else []
        table.add_row(name, f"{size:,}", f"{size / 1e9:,.3f}", *share, style="bold" if name == "total" else "")
    console.print(table)
    if memory:
        word = "fits" if plan["fits"] else "does not fit"
        total = plan["bytes_per_device"]["total"]
        why = f"{total / 1e9:,.4g} GB against {ROOM:.0%} of {memory / 1e9:.4g} GB (the rest is XLA's own)"
        console.print(Text.assemble((word, "bold green" if plan["fits"] else "bold red"), f": {why}\n"))
    else:
        console.print(f"--chip=NAME says whether it fits, and how long it takes: {', '.join(CHIPS)}\n", highlight=False)


def formulas(plan: Plan) -> dict[str, str]:
    """Return the estimate's formulas with their numbers: {"hours": …, "kWh": …, "kgCO2eq": …}."""
    hours = (
        f"{plan['flops']:.4g} FLOPs / ({plan['devices']:,} devices x {plan['peak']:.4g} FLOP/s x "
        f"{plan['utilisation']:g}) / 3600 = {plan['hours']:,.4g}"
    )
    if plan["kwh"] is None:
        missing = f"the vendor does not publish the power of {plan['chip']}; give --watts=W"
        return {"hours": hours, "kWh": missing, "kgCO2eq": missing}
    kwh = (
        f"{plan['hours']:,.4g} h x {plan['devices']:,} devices x ({plan['watts']:g} W x {1 + plan['host_share']:g} for "
        f"the host) x PUE {plan['pue']:g} / 1000 = {plan['kwh']:,.4g}"
    )
    kg = f"{plan['kwh']:,.4g} kWh x {plan['grams_per_kwh']:g} g/kWh / 1000 = {plan['kg_co2eq']:,.4g}"
    return {"hours": hours, "kWh": kwh, "kgCO2eq": f"{kg}; {plan['electricity']}"}


def _print_estimate(plan: Plan, console: Console) -> None:
    if "chip" not in plan:
        return
    for name, formula in formulas(plan).items():
        console.print(Text.assemble((f"{name:8}", "bold"), formula), soft_wrap=not console.is_terminal)
    console.print(Text(f"{plan['chip']}: {plan['source']}\n", "dim"))


def _print_placement(plan: Plan, console: Console) -> None:
    """Print every parameter's path, shape, partition spec and bytes per device, and why a dimension is not split."""
    table = _table("Parameter", "Shape", "Split by", "Bytes per device", "Not split")
    for entry in plan["parameters"]:
        axes = [axis or "-" for axis in entry["spec"]]
        table.add_row(
            entry["path"], " x ".join(map(str, entry["shape"])), ", ".join(axes) or "-",
            f"{entry['bytes_per_device']:,}", "; ".join(entry["notes"]),
        )  # fmt: skip
    console.print(table)
