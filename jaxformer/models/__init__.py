"""The three Transformer families over one body of layers. The rest of the house sees `Model` only.

What lives here: wirings (`families`), layers, attention, positions, heads; sizes and house styles as data (`config`,
`presets`).
What may come in: a value of a slot, a preset, a wiring that the papers draw.
What must not: anything that knows a batch's origin, a loss, or a device beyond named constraints."""

from jaxformer.models.config import FAMILIES, Execution, TransformerConfig
from jaxformer.models.dropout import hashed, places
from jaxformer.models.implementations import (
    ATTENTIONS,
    FUSED_ATTENTION,
    attentions_in_words,
    check_attentions,
    chosen_attentions,
    device_for,
)
from jaxformer.models.model import Model, Params, cache_bytes, count_parameters
from jaxformer.models.presets import PRESETS, SYSTEMS
from jaxformer.models.stack import REMAT_POLICIES, Beams

__all__ = [
    "ATTENTIONS",
    "Beams",
    "Execution",
    "FAMILIES",
    "FUSED_ATTENTION",
    "Model",
    "PRESETS",
    "Params",
    "REMAT_POLICIES",
    "SYSTEMS",
    "TransformerConfig",
    "attentions_in_words",
    "cache_bytes",
    "check_attentions",
    "chosen_attentions",
    "count_parameters",
    "device_for",
    "hashed",
    "places",
]
