"""Self-supervision: rows of raw tokens in, arrays of the batch contract out; pure numpy, everything random from the rng.

An objective is a frozen dataclass. Its fields are the config's keys; `bind(vocabulary)` adds a tokenizer's ids. It says
which rows it reads (`rows`, `row_length`, `separator`), what it emits (`shapes`), which heads it needs, and how the
parts of the loss weigh (`coefficients`).
"""

from typing import Any

from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.objectives.span_corruption import SpanCorruption

OBJECTIVES: dict[str, Any] = {
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "span_corruption": SpanCorruption,
}
