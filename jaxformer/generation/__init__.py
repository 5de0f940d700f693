"""Text from a model: decoding over an explicit cache.

What lives here: how answers are written (`config`); from prompts to answers (`generating`) by greedy decoding and
sampling (`decoding`) or beam search (`beams`), which share `writing`; what changes logits (`logits`); texts that end an
answer, or that it is one of (`automata`); and which tokens fill masks (`filling`).
What may come in: further logit functions.
What must not: run directories and tokenizers: prompts and answers are ids."""

from typing import TYPE_CHECKING, Any

from jaxformer.generation.config import GenerationConfig, with_open_length

if TYPE_CHECKING:
    from jaxformer.generation.automata import choice_table, stop_table
    from jaxformer.generation.filling import Candidates, Masked, fill
    from jaxformer.generation.generating import check_prompts, decoding_weights, generate, require_generator, stream
    from jaxformer.generation.writing import DEFAULT_NEW_TOKENS, Answer, TokenRules, new_tokens, room_for_answers

__all__ = [
    "DEFAULT_NEW_TOKENS",
    "Answer",
    "Candidates",
    "GenerationConfig",
    "Masked",
    "TokenRules",
    "check_prompts",
    "choice_table",
    "decoding_weights",
    "fill",
    "generate",
    "new_tokens",
    "require_generator",
    "room_for_answers",
    "stop_table",
    "stream",
    "with_open_length",
]


def __getattr__(name: str) -> Any:
    """Import what computes when it is first asked for: the config's fields are the flags of `jaxformer generate`, whose
    `--help` need not wait for JAX."""
    if name in __all__:
        from jaxformer.generation import automata, filling, generating, writing

        return next(vars(module)[name] for module in (automata, filling, generating, writing) if name in vars(module))
    raise AttributeError(f"module 'jaxformer.generation' has no attribute '{name}'")
