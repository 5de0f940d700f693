"""Compare a model with a reference: a folder that tests/make_reference.py wrote."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from compiling import AS_USERS
from tiny import Supervision, head_shapes

from jaxformer.interop.configs import layout_of, read_json
from jaxformer.interop.importing import describe, named, read_params
from jaxformer.interop.layouts import Layout
from jaxformer.interop.weights import StoredTensor, stored_tensors
from jaxformer.models.config import Execution
from jaxformer.models.model import Model
from jaxformer.objectives import Head
from jaxformer.training.optimizers import OPTIMIZERS, make_optimizer
from jaxformer.training.step import TrainState, group_sums, make_train_step
from jaxformer.trees import flatten

STEPS = 10
# Compiled as users compile, of each family one: some jax releases compile wrong gradients.
OPTIMISED = ("gpt2", "bert", "t5")


@dataclasses.dataclass(frozen=True)
class Reference:
    """A reference's folder, read: our model with its parameters, and what it computes."""

    folder: Path
    layout: Layout
    model: Model
    classes: tuple[str, ...]
    params: dict[str, Any]
    expected: dict[str, np.ndarray]

    def batch(self, step: int = 0) -> dict[str, jax.Array]:
        prefix = f"batch/{step}/"
        return {k.removeprefix(prefix): jnp.asarray(v) for k, v in self.expected.items() if k.startswith(prefix)}


def heads_of(model: Model) -> dict[str, Head]:
    return {name: Head(size, reads) for name, size, reads in model.heads}


def read(folder: Path, **slots: Any) -> Reference:
    """Read a reference; `slots` changes the model that is compared with it, to see that the comparison notices."""
    theirs = read_json(folder / "config.json")
    layout = layout_of(theirs, folder / "config.json")
    tensors = named(layout, stored_tensors(folder))
    config, classes = describe(layout, theirs, folder / "config.json", tensors)
    heads = {head: Head(2) for head in classes if head != "tokens"}
    config = dataclasses.replace(config, **json.loads((folder / "slots.json").read_text()))
    model = Model(config, Execution(unroll=1), heads=head_shapes(heads))
    params = read_params(layout, model, classes, tensors, folder)
    with np.load(folder / "expected.npz") as arrays:
        expected = dict(arrays)
    model = dataclasses.replace(model, config=dataclasses.replace(config, **slots))
    return Reference(folder, layout, model, classes, params, expected)


@functools.cache
def _compiled(model: Model, differentiates: bool = True, as_users: bool = False) -> Any:
    """Return run(params, batch) -> (what apply returns for every place, logits, gradient), compiled as one."""
    supervision = Supervision(heads_of(model))

    @functools.partial(jax.jit, compiler_options=AS_USERS if as_users else None)
    def run(params: Any, batch: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            losses, _, _ = group_sums(model, supervision, params, batch, None)
            counts = {name: batch["weights" if name == "tokens" else f"{name}_weights"].sum() for name in losses}
            return sum((losses[name] / counts[name] for name in losses), jnp.zeros(()))

        everywhere = {name: array for name, array in batch.items() if name != "predict_positions"}
        outputs = model.apply(params, everywhere, collect=("encoder", "decoder"))
        return outputs, model.project(params, outputs["hidden"]), jax.grad(loss)(params) if differentiates else None

    return run


def error(ours: Any, theirs: np.ndarray) -> float:
    """max |a - b| / max |b|."""
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs)))


def output_errors(reference: Reference, differentiates: bool = True) -> dict[str, float]:
    """Return the error of the logits, of every layer's hidden states and of the heads, at real places."""
    batch, expected = reference.batch(), reference.expected
    as_users = differentiates and reference.folder.name in OPTIMISED
    outputs, logits, _ = _compiled(reference.model, differentiates, as_users)(reference.params, batch)
    real = np.asarray(batch["segment_ids"]) > 0
    errors = {"logits": error(logits[real], expected["logits"][real])}
    for name, theirs in expected.items():
        if not name.startswith("hidden/"):
            continue
        stack = name.removeprefix("hidden/")
        ours = outputs[stack] if stack in outputs else outputs.get("decoder", outputs.get("encoder"))
        mask = (
            np.asarray(batch["encoder_segment_ids"]) > 0 if stack == "encoder" and "encoder_inputs" in batch else real
        )
        # Their last entry comes after the final norm, where there is one; of ours that is the output of the stack.
        for layer in range(len(theirs) - 1):
            errors[f"{name}/{layer}"] = error(ours[layer][mask], theirs[layer][mask])
        if stack != "encoder":
            errors[f"{name}/last"] = error(outputs["hidden"][mask], theirs[-1][mask])
    if "next_sentence" in expected:
        errors["next_sentence"] = error(outputs["next_sentence"], expected["next_sentence"])
    return errors


def gradient_errors(reference: Reference) -> dict[str, tuple[float, float, float]]:
    """Return, per parameter, (norm of the error, norm of the reference's gradient, norm of its whole gradient)."""
    stored = {
        name.removeprefix("grad/"): StoredTensor(reference.folder, array.shape, "F32", lambda array=array: array)
        for name, array in reference.expected.items()
        if name.startswith("grad/")
    }
    tensors = named(reference.layout, stored)
    theirs = flatten(read_params(reference.layout, reference.model, reference.classes, tensors, reference.folder))
    run = _compiled(reference.model, True, reference.folder.name in OPTIMISED)
    ours = flatten(run(reference.params, reference.batch())[2])
    assert ours.keys() == theirs.keys()
    total = float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in theirs.values())))
    return {
        path: (float(np.linalg.norm(ours[path] - leaf)), float(np.linalg.norm(leaf)), total)
        for path, leaf in theirs.items()
    }


def losses(reference: Reference) -> np.ndarray:
    """Return the losses of ten steps of AdamW on the reference's batches."""
    adamw = OPTIMIZERS["adamw"](
        learning_rate=1e-3, weight_decay=0.1, decay_exclude=(), epsilon=1e-6, beta1=0.9, beta2=0.999, clip_norm=0.0
    )
    optimizer = make_optimizer(adamw, reference.model.shapes)
    step = jax.jit(make_train_step(reference.model, Supervision(heads_of(reference.model)), optimizer))
    params = jax.tree.map(jnp.asarray, reference.params)
    state, found = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params)), []
    for number in range(STEPS):
        state, metrics = step(state, reference.batch(number), jax.random.key(0), 1e-3)
        found.append(float(metrics["loss"]))
    return np.array(found)
