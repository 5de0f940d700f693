"""What a model is pretrained on: pure numpy functions from a row of tokens to the arrays of one example."""

from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.denoising import Denoising
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.objectives.span_corruption import SpanCorruption

OBJECTIVES: dict[str, type] = {
    CausalLM.name: CausalLM,
    MaskedLM.name: MaskedLM,
    SpanCorruption.name: SpanCorruption,
    Denoising.name: Denoising,
}
