"""What each kind puts around a text and between two, as the post-processor of a `tokenizer.json`."""

import tokenizers as hf
from tokenizers import processors


def bert_template(tokenizer: hf.Tokenizer) -> processors.TemplateProcessing:
    """Return `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`, the second text of type 1 (BERT, section 3)."""
    return processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )


def t5_template(tokenizer: hf.Tokenizer) -> processors.TemplateProcessing:
    """Return `A </s>` and `A </s> B </s>`."""
    return processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )


def bart_template(tokenizer: hf.Tokenizer) -> processors.RobertaProcessing:
    """Return `<s> A </s>` and `<s> A </s></s> B </s>`."""
    ids = tokenizer.get_vocab()
    return processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets=True, add_prefix_space=False
    )
