"""Presets: each of the eight systems as its paper has it, as values of `TransformerConfig`.

Where papers, released code and later ports differ, one is chosen, and the comment beside it says which and why.
"""

import dataclasses
from typing import Any

# Vaswani et al. 2017. The paper does not say which projections have biases, nor the epsilon; these are Marian's (biases
# everywhere, 1e-5; sines and cosines concatenated), which has a public reference and the paper's exponents. The form of
# tensor2tensor is the same preset with biases="feed_forward", norm_epsilon=1e-6, position="sinusoidal_tensor2tensor".
# Dropout acts on sublayer outputs and on the embedding sums (section 5.4), not on attention probabilities.
_TRANSFORMER: dict[str, Any] = {
    "family": "encoder_decoder",
    "vocab_size": 37_000,
    "max_length": 512,  # not published: the sinusoids know no longest sentence; 512 is Marian's table
    "norm_placement": "post",
    "norm_epsilon": 1e-5,
    "position": "sinusoidal",
    "activation": "relu",
    "embedding_scale": "sqrt_d_model",
    "initialization": "transformer",
    "attention_dropout": 0.0,
}

# Radford et al. 2018, and OpenAI's released code. That code drops whole entries of the embedding table, which also
# touches the softmax; here, as everywhere since, what was looked up is dropped. The classifier has no bias, as in the
# paper's section 3.2 and unlike the code.
_GPT: dict[str, Any] = {
    "family": "decoder_only",
    "vocab_size": 40_478,
    "max_length": 512,
    "norm_placement": "post",
    "norm_epsilon": 1e-5,
    "activation": "gelu_tanh",
    "head_bias": False,
    "initialization": "gpt",
}

# Devlin et al. 2018. The exact GELU of the first release (and of Hugging Face's port), not the later tanh form.
# Initialised by a normal cut at two deviations as in the released code; the port does not cut.
_BERT: dict[str, Any] = {
    "family": "encoder_only",
    "vocab_size": 30_522,
    "max_length": 512,
    "norm_placement": "post",
    "norm_epsilon": 1e-12,
    "embedding_norm": True,
    "token_types": 2,
    "activation": "gelu",
    "visibility": "full",
    "output_head": "transform",
    "pooler": "tanh",
    "initialization": "bert",
}
_CASED = {"vocab_size": 28_996}

# Radford et al. 2019. Positions start as N(0, 0.01), as in OpenAI's code (Hugging Face: 0.02). The paper scales output
# projections by 1/sqrt(N), N being the residual sublayers, two a layer. The paper's own counts of parameters (117M to
# 1542M) were wrong, as its repository says; the presets bear the right ones. Dropout is not stated: GPT's 0.1.
_GPT2: dict[str, Any] = _GPT | {
    "vocab_size": 50_257,
    "max_length": 1024,
    "norm_placement": "pre",
    "initialization": "gpt2",
}

# Sanh et al. 2019: BERT without token types and pooler, half the layers. The released code has no dropout after the
# attention's output projection; its classifier has a ReLU layer of its own.
_DISTILBERT: dict[str, Any] = _BERT | {"token_types": 0, "pooler": "relu", "attention_output_dropout": 0.0}

# Lewis et al. 2019, and fairseq. Its position tables have two rows in front that no token uses: they are stored and
# counted. The decoder starts from </s>. Dropout 0.1 is the paper's; 0.1 on attention is that of fairseq's commands.
_BART: dict[str, Any] = {
    "family": "encoder_decoder",
    "vocab_size": 50_265,
    "max_length": 1024,
    "norm_placement": "post",
    "norm_epsilon": 1e-5,
    "embedding_norm": True,
    "position_offset": 2,
    "activation": "gelu",
    "pooler": "dropout_tanh",
    "decoder_start": "end",
    "initialization": "gpt",
}

# Raffel et al. 2019 (v1.0). 32,100 ids are used; the released table has 32,128 rows and every count includes them.
# Attention is not scaled: the initialisation of the queries is. The classifier is Hugging Face's (the paper has none).
_T5: dict[str, Any] = {
    "family": "encoder_decoder",
    "vocab_size": 32_128,
    "max_length": 512,  # trained on; relative positions know no longest sequence
    "norm": "rms_norm",
    "norm_placement": "pre",
    "norm_epsilon": 1e-6,
    "position": "relative",
    "activation": "relu",
    "biases": "none",
    "attention_scale": "none",
    "logit_scale": "inverse_sqrt_d_model",
    "pooler": "dropout_tanh",
    "initialization": "t5",
    "hidden_dropout": 0.1,
    "final_dropout": 0.1,
}

# T5 v1.1: gated GELU, a softmax of its own, no scaling of the logits. Pretrained without dropout; fine-tune with 0.1.
# The softmax starts with deviation d_model^-0.5 as in Mesh TensorFlow: Hugging Face's 1 gives useless first logits.
_T5_1_1: dict[str, Any] = _T5 | {
    "activation": "gelu_tanh",
    "gated": True,
    "tied_embeddings": False,
    "logit_scale": "none",
    **dict.fromkeys(("dropout", "attention_dropout", "hidden_dropout", "final_dropout"), 0.0),
}

# Brown et al. 2020: GPT-2's layers, dense and locally banded attention in turn. Table 2.1's 24 heads of XL and width
# 5140 of 13B are misprints (16 x 128, 5120). Epsilon and dropout are not published: GPT-2's.
_GPT3: dict[str, Any] = _GPT2 | {
    "max_length": 2048,
    "attention_pattern": "dense_first",  # not published which comes first
    "attention_window": 256,  # not published: GPT-Neo's
}


def _sized(num_layers: int, d_model: int, num_heads: int, d_ff: int = 0, head_dim: int = 0) -> dict[str, int]:
    """d_ff 0: four times d_model; head_dim 0: d_model shared out among the heads."""
    return {
        "num_layers": num_layers,
        "d_model": d_model,
        "num_heads": num_heads,
        "d_ff": d_ff or 4 * d_model,
        "head_dim": head_dim or d_model // num_heads,
    }


@dataclasses.dataclass(frozen=True)
class System:
    """One of the eight: the paper, the day of its first publication, and its presets."""

    title: str
    paper: str
    published: str  # ISO date
    presets: dict[str, dict[str, Any]]


SYSTEMS: tuple[System, ...] = (
    System("Transformer", "Vaswani et al. 2017, arXiv:1706.03762", "2017-06-12", {
        "transformer_base": _TRANSFORMER | _sized(6, 512, 8),
        "transformer_big": _TRANSFORMER | _sized(6, 1024, 16) | {"dropout": 0.3},
    }),
    System("GPT", "Radford et al. 2018, Improving Language Understanding by Generative Pre-Training", "2018-06-11", {
        "gpt": _GPT | _sized(12, 768, 12),
    }),
    System("BERT", "Devlin et al. 2018, arXiv:1810.04805", "2018-10-11", {
        "bert_tiny": _BERT | _sized(2, 128, 2),
        "bert_mini": _BERT | _sized(4, 256, 4),
        "bert_small": _BERT | _sized(4, 512, 8),
        "bert_medium": _BERT | _sized(8, 512, 8),
        "bert_base": _BERT | _sized(12, 768, 12),
        "bert_large": _BERT | _sized(24, 1024, 16),
        "bert_base_cased": _BERT | _CASED | _sized(12, 768, 12),
        "bert_large_cased": _BERT | _CASED | _sized(24, 1024, 16),
    }),
    System("GPT-2", "Radford et al. 2019, Language Models are Unsupervised Multitask Learners", "2019-02-14", {
        "gpt2_124m": _GPT2 | _sized(12, 768, 12),
        "gpt2_355m": _GPT2 | _sized(24, 1024, 16),
        "gpt2_774m": _GPT2 | _sized(36, 1280, 20),
        "gpt2_1558m": _GPT2 | _sized(48, 1600, 25),
    }),
    System("DistilBERT", "Sanh et al. 2019, arXiv:1910.01108", "2019-10-02", {
        "distilbert_base": _DISTILBERT | _sized(6, 768, 12),
        "distilbert_base_cased": _DISTILBERT | _CASED | _sized(6, 768, 12),
    }),
    System("T5", "Raffel et al. 2019, arXiv:1910.10683 (v1.1: Shazeer 2020, arXiv:2002.05202)", "2019-10-23", {
        "t5_small": _T5 | _sized(6, 512, 8),
        "t5_base": _T5 | _sized(12, 768, 12),
        "t5_large": _T5 | _sized(24, 1024, 16),
        "t5_3b": _T5 | _sized(24, 1024, 32, 16_384, head_dim=128),
        "t5_11b": _T5 | _sized(24, 1024, 128, 65_536, head_dim=128),
        "t5_2x": _T5 | _sized(16, 1024, 16),  # the scaling experiments of section 3.6
        "t5_4x": _T5 | _sized(32, 1024, 16),
        "t5_1_1_small": _T5_1_1 | _sized(8, 512, 6, 1024, head_dim=64),
        "t5_1_1_base": _T5_1_1 | _sized(12, 768, 12, 2048),
        "t5_1_1_large": _T5_1_1 | _sized(24, 1024, 16, 2816),
        "t5_1_1_xl": _T5_1_1 | _sized(24, 2048, 32, 5120),
        "t5_1_1_xxl": _T5_1_1 | _sized(24, 4096, 64, 10_240),
    }),
    System("BART", "Lewis et al. 2019, arXiv:1910.13461", "2019-10-29", {
        "bart_base": _BART | _sized(6, 768, 12),
        "bart_large": _BART | _sized(12, 1024, 16),
    }),
    System("GPT-3", "Brown et al. 2020, arXiv:2005.14165", "2020-05-28", {
        "gpt3_125m": _GPT3 | _sized(12, 768, 12),
        "gpt3_350m": _GPT3 | _sized(24, 1024, 16),
        "gpt3_760m": _GPT3 | _sized(24, 1536, 16),
        "gpt3_1.3b": _GPT3 | _sized(24, 2048, 16),
        "gpt3_2.7b": _GPT3 | _sized(32, 2560, 32),
        "gpt3_6.7b": _GPT3 | _sized(32, 4096, 32),
        "gpt3_13b": _GPT3 | _sized(40, 5120, 40),
        "gpt3_175b": _GPT3 | _sized(96, 12_288, 96),
    }),
)  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {name: sizes for system in SYSTEMS for name, sizes in system.presets.items()}
