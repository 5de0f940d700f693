"""Training on both sides: our step as `jaxformer train` takes it, and a plain PyTorch loop.

The same weights and batches, AdamW with clipping on both, float32, no dropout. The losses of the first twenty steps
must agree.
"""

import functools
import importlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from harness import THREADS, Case, Measure, peak_mb, since_start

BETAS, EPSILON, DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0
BATCHES = 4  # in turn, so that the losses fall
CHECKED, WARMUP, LEAST, WINDOW = 20, 3, 5, 5.0  # steps, steps, steps, seconds
SAME = (
    "training.phases=()", "training.compute_dtype=float32", "model.vocab_multiple=1",
    "model.dropout=0", "model.attention_dropout=0",
    "model.hidden_dropout=0", "model.final_dropout=0", "optimizer.name=adamw",
    "optimizer.schedule=constant", "optimizer.warmup_steps=0", "optimizer.bias_correction=True",
    f"optimizer.beta1={BETAS[0]}", f"optimizer.beta2={BETAS[1]}", f"optimizer.epsilon={EPSILON}",
    f"optimizer.weight_decay={DECAY}", f"optimizer.clip_norm={CLIP}",
)  # fmt: skip


def training(
    name: str, what: str, floor: float, *, spec: str, rows: int, reference: Callable[[], Any],
    rivals: Mapping[str, Callable[[Path], Any]], overrides: tuple[str, ...] = (), memory: str = "peak_mb",
    rate: float = 1e-3,
) -> Case:  # fmt: skip
    """Return the case of a training step of a config of ours.

    `reference` makes the model of transformers whose weights both sides take; each of `rivals` makes, from the folder
    of those, a function from a batch to its loss, and the parameters.
    """
    config = (spec, (*SAME, f"training.batch_size={rows}", f"optimizer.learning_rate={rate}", *overrides))
    sides: dict[str, Callable[[Path, int], dict[str, Any]]] = {"ours": functools.partial(ours, config)}
    sides |= {setting: functools.partial(theirs, build, rate) for setting, build in rivals.items()}
    return Case(
        name=name, what=what, sides=sides, measures=(Measure(ratio=floor),), memory=memory,
        tolerance=1e-4, make=functools.partial(make, config, reference),
    )  # fmt: skip


def learner_of(config: tuple[str, tuple[str, ...]]) -> Any:
    """Return what learns in a run of this config, as `jaxformer train` builds it; its data is ours to give."""
    import jax

    from jaxformer import config as configs
    from jaxformer.devices import activations_mesh, make_mesh
    from jaxformer.runs.learner import Learner
    from jaxformer.runs.loading import build_model

    resolved = configs.load(*config)
    mesh = make_mesh(resolved.sharding, resolved.batch_sizes)
    model = build_model(resolved, resolved.supervision, activations_mesh(resolved.sharding, mesh))
    data: Any = SimpleNamespace(supervision=resolved.supervision)
    rngs = jax.random.split(jax.random.key(0))
    return Learner(resolved, data, model, mesh, None, (rngs[0], rngs[1]))


def make(config: tuple[str, tuple[str, ...]], reference: Callable[[], Any], folder: Path) -> None:
    """Write the weights, the batches, and what a step costs by its formula."""
    import torch

    torch.manual_seed(0)
    reference().save_pretrained(folder / "weights")
    write_batches(config, folder)


def write_batches(
    config: tuple[str, tuple[str, ...]], folder: Path, changed: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> None:
    """Write the batches, each `changed`, and what a step costs by its formula."""
    learner = learner_of(config)
    resolved = learner.config
    shapes = shapes_of(resolved)
    batches = [changed(batch_of(resolved, number)) for number in range(BATCHES)]
    np.savez(
        folder / "batches.npz", **{f"{n}/{key}": array for n, one in enumerate(batches) for key, array in one.items()}
    )
    told = {"flops": learner.flops(1), "formula": "jaxformer.training.flops", "shapes": shapes}
    told |= {"parameters": learner.num_parameters, "config": resolved.to_dict() | {"spec": config[0]}}
    (folder / "told.json").write_text(json.dumps(told, default=str))


def shapes_of(config: Any) -> dict[str, tuple[int, ...]]:
    return {name: (config.training.batch_size, *shape) for name, (shape, _) in config.supervision.shapes.items()}


def batch_of(config: Any, number: int) -> dict[str, np.ndarray]:
    """Return a full batch by the names of docs/batch.md; small ids are frequent, as in text."""
    rng, shapes, model = np.random.default_rng(number), shapes_of(config), config.model
    batch: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        if name.endswith("weights"):
            batch[name] = np.ones(shape, np.float32)
        elif name.endswith("segment_ids"):
            batch[name] = np.ones(shape, np.int32)
        elif name == "predict_positions":
            width = shapes["inputs"][-1]
            batch[name] = np.stack([np.sort(rng.permutation(width)[: shape[1]]) for _ in range(shape[0])])
        elif name.endswith("positions"):
            batch[name] = np.broadcast_to(np.arange(shape[-1]), shape)
        elif name == "token_types":
            batch[name] = np.zeros(shape, np.int32)
        else:
            batch[name] = (model.vocab_size ** rng.random(shape)).astype(np.int32) - 1
    if model.family == "decoder_only":
        batch["targets"][:, :-1] = batch["inputs"][:, 1:]
    return {
        name: np.ascontiguousarray(array, np.float32 if "weights" in name else np.int32)
        for name, array in batch.items()
    }


def batches_of(folder: Path) -> Iterator[dict[str, np.ndarray]]:
    with np.load(folder / "batches.npz") as stored:
        found: list[dict[str, np.ndarray]] = [{} for _ in range(BATCHES)]
        for key in stored.files:
            number, name = key.split("/")
            found[int(number)][name] = stored[key]
    return itertools.cycle(found)


def ours(config: tuple[str, tuple[str, ...]], folder: Path, number: int) -> dict[str, Any]:
    import jax
    import jax.monitoring

    compiling: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **more: compiling.append(seconds) if "backend_compile" in event else None
    )
    from jaxformer.devices import prepare_process

    prepare_process()
    importlib.import_module("jaxformer.runs.learner")
    imported = peak_mb()
    learner, state = start(config, folder / "weights")
    phase, batches = learner.config.phases[-1], batches_of(folder)
    holder = [state]
    del state

    def step(number: int) -> Callable[[], float]:
        holder[0], metrics = learner.step(number, phase, holder[0], next(batches))
        return lambda: float(metrics["loss"])

    found = timed(step, number)
    told = json.loads((folder / "told.json").read_text())
    return found | {name: told[name] for name in ("flops", "formula", "shapes")} | {
        "compile_seconds": sum(compiling), "imported_mb": imported,
    }  # fmt: skip


def start(config: tuple[str, tuple[str, ...]], weights: Path) -> tuple[Any, Any]:
    """Return the learner and its state with the weights of a folder of transformers, or, where there is none, fresh."""
    import jax
    import jax.numpy as jnp

    from jaxformer.interop.configs import find_layout
    from jaxformer.interop.importing import named, read_params
    from jaxformer.interop.layouts import standing
    from jaxformer.interop.weights import stored_tensors
    from jaxformer.training import beginning_with

    learner = learner_of(config)
    if not weights.exists():
        return learner, learner.last.make_state(learner.rngs[0])
    classes = standing(learner.model)
    layout = find_layout(learner.model.config, classes)
    tensors = named(layout, stored_tensors(weights))
    state = learner.last.make_state(learner.rngs[0])
    params = read_params(layout, learner.model, classes, tensors, weights)
    copied = jax.tree.map(lambda new, old: jax.device_put(jnp.array(new), old.sharding), params, state.params)
    return learner, beginning_with(state, copied)


def timed(step: Callable[[int], Callable[[], float]], number: int) -> dict[str, Any]:
    """Take steps and time them as the train loop does: a step's loss is read once the next one is under way."""
    losses, seconds = [], []
    pending, first, after_first = step(1), 0.0, 0.0
    least = max(CHECKED if number == 0 else 0, WARMUP + LEAST)
    began = mark = time.perf_counter()
    while len(seconds) < least - 1 or (time.perf_counter() - began < WINDOW and len(seconds) < 500):
        if not losses:  # the first step is waited for: its end is what a user sees first
            losses.append(pending())
            first, after_first = since_start(), peak_mb()
            began = mark = time.perf_counter()
            pending = step(2)
            continue
        following = step(len(losses) + 2)
        losses.append(pending())
        now = time.perf_counter()
        seconds.append(now - mark)
        mark, pending = now, following
    pending()
    return {
        "figures": {"step": seconds[WARMUP:]},
        "checked": losses[:CHECKED],
        "first_seconds": first,
        "growth_mb": peak_mb() - after_first,
        "step_seconds": seconds,
    }


def theirs(
    build: Callable[[Path], Any], rate: float, folder: Path, number: int, device: str = "cpu", dtype: str = "float32"
) -> dict[str, Any]:
    """Train with PyTorch: fused AdamW, gradients set to None; `build` chooses attention and activation. Another dtype
    than float32 is autocast's."""
    import torch

    torch.set_num_threads(THREADS)
    if device != "cpu":  # even of the CPU, it would look at every call
        torch.set_default_device(device)
    imported = peak_mb()
    loss_of, parameters = build(folder / "weights")
    decayed = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=BETAS, eps=EPSILON, fused=True)
    batches = batches_of(folder)

    def step(number: int) -> Callable[[], float]:
        batch = {
            name: torch.from_numpy(array).to(device, torch.long if array.dtype == np.int32 else torch.float32)
            for name, array in next(batches).items()
        }
        with torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
            loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        return loss.item

    return timed(step, number) | {"imported_mb": imported}


def from_transformers(
    kind: str, run: Callable[[Any, Any], Any], compiled: bool = False, **settings: Any
) -> Callable[[Path], Any]:
    """Return a builder of a model of transformers; `run` turns (model, batch) into the loss."""

    def build(weights: Path) -> Any:
        import torch
        import transformers

        with torch.device("cpu"):
            model = getattr(transformers, kind).from_pretrained(weights, **settings).train()
        model = model.to(torch.get_default_device())
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return functools.partial(run, torch.compile(model) if compiled else model), parameters

    return build
