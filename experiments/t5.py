"""T5 (Raffel et al. 2019) and T5 v1.1 (Shazeer 2020): span corruption, text to text.

jaxformer train --config=t5:smoke
"""

from ml_collections import ConfigDict

from . import common

SIZES = ("60m", "base", "large", "3b", "11b", "1_1_small", "1_1_base", "1_1_large", "1_1_xl", "1_1_xxl")


def get_config(arg: str = "") -> ConfigDict:
    """`jaxformer train --config=t5[:SIZE][,smoke|small]`, SIZE 60m, base, large, 3b, 11b or 1_1_small to 1_1_xxl;
    without ARG the paper's baseline (base).

    60m is the paper's "small", a word that here means a small run. Every size gets the baseline's steps and batch; the
    released models had more.
    """
    size, scale = common.parse_arg(arg, SIZES, "base")
    config = common.base()
    config.model = {"preset": "t5_" + {"60m": "small"}.get(size, size), "vocab_multiple": common.VOCAB_MULTIPLE}
    # The baseline pretrains with dropout 0.1 (section 3.1.3), v1.1 without.
    config.objective = {"name": "span_corruption", "sequence_length": 512}
    config.tokenizer = {"name": "unigram", "vocab_size": 32_100}
    config.data = {"name": "tfds", "dataset": "c4/en", "validation_split": "validation"}
    config.optimizer = {
        "name": "adafactor",
        "learning_rate": 0.01,  # 1 / sqrt(10,000)
        "schedule": "inverse_sqrt_flat",
        "warmup_steps": 10_000,
    }
    config.training.update({"num_steps": 2**19, "batch_size": 128})
    if scale:
        common.shrink(config, scale)
        config.model.update({"max_length": 128, "hidden_dropout": 0.0, "final_dropout": 0.0})
        config.objective.sequence_length = 128
        config.training.batch_size = 16
        config.optimizer.update({"schedule": "inverse_sqrt_flat", "learning_rate": 0.03, "warmup_steps": 100})
    return config
