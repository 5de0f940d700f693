"""How a model runs on a kind of device: what `training` leaves open is decided here, by platform and size."""

import math
from typing import Any, NamedTuple

import jax

from jaxformer.models import Execution, TransformerConfig
from jaxformer.training.step import TrainingConfig


class Layers(NamedTuple):
    """How a stack's layers run: `unroll` as of `training.unroll_layers`, `remat` as of `training.remat`."""

    unroll: int
    remat: str


# Platform -> (parameters of all layers at most, how they run there), smallest first. CPU's are measured
# (benchmarks/results/memory-cpu.md), the others are those of public records:
# - GPU: scanning costs 15 % of a step (jax#13356). Up to 1.5 billion parameters the fastest runs on 80 GB keep all
#   activations (llm-foundry's tables); MaxText's of 7 billion on H100 keep matrix products alone, and do not scan.
# - TPU: T5X and MaxText always scan, which compiles five times as fast. Chips have 16 to 32 GB: smaller models keep
#   products alone, too (T5X's `minimal`), and the largest nothing (`full`, MaxText's default).
LAYERS: dict[str, tuple[tuple[float, Layers], ...]] = {
    "cpu": ((6e9, Layers(0, "none")), (math.inf, Layers(1, "full"))),
    "gpu": ((2e9, Layers(0, "none")), (1e10, Layers(0, "dots")), (math.inf, Layers(1, "full"))),
    "tpu": ((5e8, Layers(1, "none")), (1e10, Layers(1, "dots")), (math.inf, Layers(1, "full"))),
}


def layer_parameters(model: TransformerConfig) -> int:
    """Return how many parameters the matrices of all layers have."""
    attention = 4 * model.d_model * model.num_heads * model.head_dim
    layer = attention + (3 if model.gated else 2) * model.d_model * model.d_ff
    if model.family != "encoder_decoder":
        return model.num_layers * layer
    return model.num_layers * (2 * layer + attention) + model.source_layers * layer


def layers_on(platform: str, training: TrainingConfig, model: TransformerConfig) -> Layers:
    """Return how a model's layers run on "cpu", "gpu" or "tpu" (another platform is taken for a GPU): as `training`
    says, and where it leaves that open, as LAYERS has it."""
    size = layer_parameters(model)
    chosen = next(layers for most, layers in LAYERS.get(platform, LAYERS["gpu"]) if size <= most)
    unroll = chosen.unroll if training.unroll_layers is None else training.unroll_layers
    return Layers(unroll, chosen.remat if training.remat == "auto" else training.remat)


def execution(
    training: TrainingConfig, model: TransformerConfig, mesh: Any = None, *, packed: bool = True
) -> Execution:
    """Return how a model runs on the devices at hand, split over a mesh where one is given, on rows that are `packed`
    or one segment each."""
    platform, dtype = jax.default_backend(), training.compute_dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    layers = layers_on(platform, training, model)
    return Execution(
        dtype=dtype, unroll=layers.unroll, remat=layers.remat, attention=training.attention,
        logits_chunk=training.logits_chunk, mesh=mesh, packed=packed,
    )  # fmt: skip
