"""Text from a model: decoding over an explicit cache.

What lives here: the loop from prompts to tokens (`decoding`).
What may come in: logit functions, choosers, stop conditions, filling of masks.
What must not: run directories and texts: prompts and answers are ids."""

from jaxformer.generation.decoding import GenerationConfig, generate, require_generator

__all__ = ["GenerationConfig", "generate", "require_generator"]
