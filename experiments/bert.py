"""BERT (Devlin et al. 2018): masked language modelling with next-sentence prediction.

jaxformer train --config=bert:smoke
"""

from ml_collections import ConfigDict

from . import common

SIZES = ("tiny", "mini", "medium", "base", "large")


def get_config(arg: str = "") -> ConfigDict:
    """`jaxformer train --config=bert[:tiny|mini|medium|base|large][,smoke|small]`; without ARG the paper's base."""
    size, scale = common.parse_arg(arg, SIZES, "base")
    config = common.base()
    config.model = {"preset": f"bert_{size}", "vocab_multiple": common.VOCAB_MULTIPLE}
    config.objective = {"name": "masked_lm", "sequence_length": 512, "max_predictions": 77, "next_sentence": True}
    config.tokenizer = {"name": "wordpiece", "vocab_size": 30_522, "strip_accents": True}
    # By size: millions of words. bookscorpus is not in TFDS: a folder that you prepare.
    config.data = common.mixture({"bookscorpus": 800, "wikipedia/20230601.en": 2500})
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 1e-4,
        "schedule": "linear",
        "warmup_steps": 10_000,
        "epsilon": 1e-6,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "bias_correction": False,  # as the released code
    }
    # Appendix A.2: nine tenths of the steps at length 128; 20 predictions there are the released code's.
    short = {"steps": 900_000, "sequence_length": 128, "max_predictions": 20}
    config.training.update({"num_steps": 1_000_000, "batch_size": 256, "phases": (short,)})
    if scale:
        common.shrink(config, scale)
        config.model.max_length = config.objective.sequence_length = 128
        config.objective.max_predictions = 20
        config.optimizer.bias_correction = True
    if scale == "smoke":
        config.training.batch_size = 24
        config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 50})
    if scale == "small":  # the best of a sweep in which all runs saw as many tokens: docs/results/bert-small.md
        config.training.update({"batch_size": 4, "num_steps": 2400, "eval_every": 800})
        config.checkpoint.every = 800
        config.optimizer.update({"learning_rate": 5e-4, "warmup_steps": 200})
    return config
