"""Model FLOPs of one training example and of a step: what MFU sets against the peak of the chips.

A multiplication and an addition count as two; backward is twice forward. Embedding look-ups, norms, biases and
recomputation are not counted; causal attention counts half of the square (the convention of llm.c and MaxText).
"""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence

from jaxformer.models import Model
from jaxformer.objectives import Supervision
from jaxformer.training.phases import Phase


def flops_per_example(
    *,
    family: str,
    d_model: int,
    d_ff: int,
    num_heads: int,
    head_dim: int,
    num_layers: int,
    vocab_size: int,
    gated: bool,
    transform: bool,
    lengths: Mapping[str, int],
    source_layers: int = 0,
) -> float:
    """Return the FLOPs of forward and backward for one row.

    `lengths`: "inputs" and, where present, "encoder_inputs" and "targets" (positions that meet the vocabulary).
    `vocab_size` is the stored one: padding rows are multiplied too.
    """
    inner = num_heads * head_dim
    feed_forward = (3 if gated else 2) * d_model * d_ff
    layer = 4 * d_model * inner + feed_forward
    row, targets = lengths["inputs"], lengths.get("targets", 0)
    head = 6 * targets * (d_model * vocab_size + (d_model**2 if transform else 0))
    if family == "decoder_only":
        return 6 * row * num_layers * layer + 6 * num_layers * inner * row**2 + head
    if family == "encoder_only":
        return 6 * row * num_layers * layer + 12 * num_layers * inner * row**2 + head
    source = lengths["encoder_inputs"]
    encoder = (num_layers + source_layers) * (6 * source * layer + 12 * inner * source**2)
    # The decoder's own projections and the cross-attention's query and output; its keys and values read the source.
    decoder = (
        6 * row * num_layers * (6 * d_model * inner + feed_forward) + 6 * source * num_layers * 2 * d_model * inner
    )
    attention = 6 * num_layers * inner * row**2 + 12 * num_layers * inner * row * source
    return encoder + decoder + attention + head


def flops_per_row(model: Model, supervision: Supervision) -> float:
    """Return the FLOPs of forward and backward for one example of an objective or task, all of its texts."""
    config = model.config
    shapes = supervision.shapes
    return math.prod(shapes["inputs"][0][:-1]) * flops_per_example(
        family=config.family,
        d_model=config.d_model,
        d_ff=config.d_ff,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        num_layers=config.num_layers,
        vocab_size=config.stored_vocab_size,
        gated=config.gated,
        transform=config.output_head == "transform",
        lengths={name: shape[-1] for name, (shape, _) in shapes.items() if shape},
        source_layers=config.source_layers,
    )


def step_flops(
    phases: Sequence[Phase], model: Model, supervision: Supervision, teacher: Model | None
) -> Callable[[int], float]:
    """Return the FLOPs of a step as a function of its number; a teacher only runs forward."""
    ends = [phase.last or math.inf for phase in phases]
    costs = []
    for phase in phases:
        read = phase.of(supervision)
        per_row = flops_per_row(model, read) + (flops_per_row(teacher, read) / 3 if teacher is not None else 0.0)
        costs.append(phase.batch_size * per_row)
    return lambda step: costs[bisect.bisect_left(ends, step)]
