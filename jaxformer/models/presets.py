"""Presets: each system as its paper has it, as values of `TransformerConfig`."""

from typing import Any

_GPT: dict[str, Any] = {
    # Radford et al. 2018, and OpenAI's released code: post-norm, tanh GELU, tied softmax, N(0, 0.02).
    "family": "decoder_only",
    "vocab_size": 40_478,
    "max_length": 512,
    "norm_placement": "post",
    "norm_epsilon": 1e-5,
    "activation": "gelu_tanh",
    "initialization": "gpt",
    "dropout": 0.1,
    "attention_dropout": 0.1,
}

_BERT: dict[str, Any] = {
    # Devlin et al. 2018. The exact GELU of the first release (and of Hugging Face's port), not the later tanh form.
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
    "dropout": 0.1,
    "attention_dropout": 0.1,
}

_T5: dict[str, Any] = {
    # Raffel et al. 2019 (v1.0). 32,100 ids are used; the released table has 32,128 rows and every count includes them.
    "family": "encoder_decoder",
    "vocab_size": 32_128,
    "max_length": 512,
    "norm": "rms_norm",
    "norm_placement": "pre",
    "norm_epsilon": 1e-6,
    "position": "relative",
    "activation": "relu",
    "biases": "none",
    "attention_scale": "none",
    "logit_scale": "inverse_sqrt_d_model",
    "initialization": "t5",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "hidden_dropout": 0.1,
    "final_dropout": 0.1,
}


def _sized(num_layers: int, d_model: int, num_heads: int, d_ff: int, head_dim: int = 64) -> dict[str, int]:
    sizes = {"num_layers": num_layers, "d_model": d_model, "num_heads": num_heads, "d_ff": d_ff, "head_dim": head_dim}
    return sizes


PRESETS: dict[str, dict[str, Any]] = {
    "gpt": _GPT | _sized(12, 768, 12, 3072),
    "bert_tiny": _BERT | _sized(2, 128, 2, 512),
    "bert_mini": _BERT | _sized(4, 256, 4, 1024),
    "bert_small": _BERT | _sized(4, 512, 8, 2048),
    "bert_medium": _BERT | _sized(8, 512, 8, 2048),
    "bert_base": _BERT | _sized(12, 768, 12, 3072),
    "bert_large": _BERT | _sized(24, 1024, 16, 4096),
    "t5_small": _T5 | _sized(6, 512, 8, 2048),
    "t5_base": _T5 | _sized(12, 768, 12, 3072),
    "t5_large": _T5 | _sized(24, 1024, 16, 4096),
    "t5_3b": _T5 | _sized(24, 1024, 32, 16_384, head_dim=128),
    "t5_11b": _T5 | _sized(24, 1024, 128, 65_536, head_dim=128),
}
