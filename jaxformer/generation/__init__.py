"""Text from a model: decoding over an explicit cache.

What lives here: how answers are written (`config`); from prompts to answers (`generating`) by greedy decoding and
sampling (`decoding`) or beam search (`beams`), which share `writing`; what changes logits (`logits`); texts that end an
answer, or that it is one of (`automata`).
What may come in: further logit functions, filling of masks.
What must not: run directories and tokenizers: prompts and answers are ids."""

from jaxformer.generation.automata import choice_table, stop_table
from jaxformer.generation.config import GenerationConfig, with_open_length
from jaxformer.generation.generating import decoding_weights, generate, require_generator, stream
from jaxformer.generation.writing import Answer, TokenRules

__all__ = [
    "Answer",
    "GenerationConfig",
    "TokenRules",
    "choice_table",
    "decoding_weights",
    "generate",
    "require_generator",
    "stop_table",
    "stream",
    "with_open_length",
]
