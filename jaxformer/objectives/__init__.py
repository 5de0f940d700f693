"""What a model is pretrained on: pure numpy functions from a row of tokens to the arrays of one example.

What lives here: the objectives of the papers by their names, and the protocol that tasks meet, too (`supervision`).
What may come in: another objective, and a line in OBJECTIVES.
What must not: JAX, text, files."""

from jaxformer.objectives.arrays import FLOAT, INT, Shapes, padded, row_arrays
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.corruption import (
    BertStyle,
    Deshuffling,
    DropTokens,
    MassStyle,
    PlainLM,
    PrefixLM,
    ReplaceSpans,
    SpanCorruption,
)
from jaxformer.objectives.denoising import (
    Denoising,
    DocumentRotation,
    SentencePermutation,
    TextInfilling,
    TokenDeletion,
    TokenMasking,
)
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.objectives.mixture import ObjectiveMixture, Padded
from jaxformer.objectives.objective import TOKENS, Objective, Row, insert
from jaxformer.objectives.parallel_text import ParallelText
from jaxformer.objectives.supervision import (
    CLASS_KINDS,
    LABEL_KINDS,
    Answering,
    Decode,
    Encode,
    Example,
    Head,
    Part,
    Supervision,
)
from jaxformer.objectives.text_to_text import TextToText

__all__ = [
    "CLASS_KINDS",
    "Answering",
    "Decode",
    "Encode",
    "Example",
    "FLOAT",
    "Head",
    "INT",
    "LABEL_KINDS",
    "NOT_PROVIDED",
    "OBJECTIVES",
    "Objective",
    "ObjectiveMixture",
    "Padded",
    "Part",
    "Row",
    "Shapes",
    "Supervision",
    "TOKENS",
    "TextToText",
    "insert",
    "padded",
    "row_arrays",
]

OBJECTIVES: dict[str, type[Supervision]] = {
    CausalLM.name: CausalLM,
    PrefixLM.name: PrefixLM,
    MaskedLM.name: MaskedLM,
    SpanCorruption.name: SpanCorruption,
    ReplaceSpans.name: ReplaceSpans,
    DropTokens.name: DropTokens,
    BertStyle.name: BertStyle,
    MassStyle.name: MassStyle,
    Deshuffling.name: Deshuffling,
    PlainLM.name: PlainLM,
    TokenMasking.name: TokenMasking,
    TokenDeletion.name: TokenDeletion,
    TextInfilling.name: TextInfilling,
    SentencePermutation.name: SentencePermutation,
    DocumentRotation.name: DocumentRotation,
    Denoising.name: Denoising,
    ParallelText.name: ParallelText,
    ObjectiveMixture.name: ObjectiveMixture,
}

# Of the eight papers, what is not here, and why.
NOT_PROVIDED: dict[str, tuple[str, str]] = {
    "permuted language model": ("BART 4.1 (XLNet)", "needs two-stream attention"),
    "multitask masked language model": ("BART 4.1 (UniLM)", "needs two-stream attention"),
}
