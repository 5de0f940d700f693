"""Transformer (Vaswani et al. 2017): translation from English to German.

jaxformer train --config=transformer:smoke
"""

from ml_collections import ConfigDict

from . import common

SIZES = ("base", "big")


def get_config(arg: str = "") -> ConfigDict:
    """`jaxformer train --config=transformer[:base|big][,smoke|small]`; without ARG the paper's base model."""
    size, scale = common.parse_arg(arg, SIZES, "base")
    config = common.base()
    config.model = {"preset": f"transformer_{size}", "vocab_multiple": common.VOCAB_MULTIPLE}
    config.objective = {
        "name": "parallel_text",
        "source_field": "en",
        "target_field": "de",
        "source_length": 256,
        "target_length": 256,
        "label_smoothing": 0.1,
    }
    # One vocabulary for both languages, as the paper's BPE.
    config.tokenizer = {"name": "unigram", "vocab_size": 37_000, "num_sentinels": 0}
    config.data = {
        "name": "tfds",
        "dataset": "wmt14_translate/de-en",
        "validation_split": "validation",
        "test_split": "test",
    }
    config.optimizer = {
        "name": "adamw",
        # Here the rate is the peak, d_model^-0.5 x warmup_steps^-0.5.
        "learning_rate": ({"base": 512, "big": 1024}[size] * 4000) ** -0.5,
        "schedule": "inverse_sqrt",
        "warmup_steps": 4000,
        "beta2": 0.98,
        "epsilon": 1e-9,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    }
    # 104 rows of 256 tokens a side, a little of it padding: about 25,000 source and 25,000 target tokens.
    config.training.update({"num_steps": {"base": 100_000, "big": 300_000}[size], "batch_size": 104})
    if scale:
        common.shrink(config, scale)
        # From a docstring's body its summary line, for want of two languages.
        config.objective.update({"source_field": "body", "target_field": "summary"})
        config.objective.update({"source_length": 128, "target_length": 32})
        config.model.update({"max_length": 128, "dropout": 0.1})  # there are but 1,600 such pairs
        config.training.batch_size = 16
        rate = {"smoke": 2e-3, "small": 5e-4}[scale]  # post-norm: at 1e-3 the larger one learns little
        config.optimizer.update({"learning_rate": rate, "warmup_steps": 60})
    return config
