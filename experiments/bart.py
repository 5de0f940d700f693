"""BART (Lewis et al. 2019): rebuilding text from which spans are masked and whose sentences are shuffled.

jaxformer train --config=bart:smoke
"""

from ml_collections import ConfigDict

from . import common

SIZES = ("base", "large")


def get_config(arg: str = "") -> ConfigDict:
    """`jaxformer train --config=bart[:base|large][,smoke|small]`; without ARG the paper's large model."""
    size, scale = common.parse_arg(arg, SIZES, "large")
    config = common.base()
    config.model = {"preset": f"bart_{size}", "vocab_multiple": common.VOCAB_MULTIPLE}
    config.objective = {
        "name": "denoising",
        "sequence_length": 512,  # not published: RoBERTa's
        "masking_rate": 0.3,
        "mean_span_length": 3.0,
        "permute_share": 1.0,
    }
    config.tokenizer = {"name": "byte_bpe", "vocab_size": 50_265, "special": "bart"}
    if size == "large":
        # RoBERTa's 160 GB (books and Wikipedia are published as 16 together). Only Wikipedia is in TFDS; the others are
        # folders that you prepare.
        config.data = common.mixture(
            {"bookscorpus": 4, "wikipedia/20230601.en": 12, "cc_news": 76, "openwebtext": 38, "stories": 31}
        )
        config.training.update({"num_steps": 500_000, "batch_size": 8000})
    else:
        # The base model is that of the comparison of objectives (section 4), on BERT's text.
        config.data = common.mixture({"bookscorpus": 800, "wikipedia/20230601.en": 2500})
        config.training.update({"num_steps": 1_000_000, "batch_size": 256})  # batch not published: BERT's
    config.optimizer = {
        "name": "adamw",
        # Not published: of large models RoBERTa's, whose batch and steps BART has; of base ones BERT's.
        "learning_rate": {"base": 1e-4, "large": 4e-4}[size],
        "schedule": "linear_from_peak",
        "warmup_steps": {"base": 10_000, "large": 30_000}[size],  # not published: as the rate
        "beta2": {"base": 0.999, "large": 0.98}[size],  # not published: as the rate
        "epsilon": 1e-6,  # not published: RoBERTa's, and that of BERT's code
        "weight_decay": 0.01,  # not published: RoBERTa's and BERT's
        "clip_norm": {"base": 1.0, "large": 0.0}[size],  # not published: as the rate
    }
    # The paper trains the large model's last 10 % of the steps without dropout: continue with --config.init_from,
    # --config.model.dropout=0 and --config.model.attention_dropout=0.
    if scale:
        common.shrink(config, scale)
        config.model.max_length = config.objective.sequence_length = 128
        config.training.batch_size = 10
        rate = {"smoke": 1e-3, "small": 5e-4}[scale]
        config.optimizer.update({"learning_rate": rate, "warmup_steps": 60, "clip_norm": 1.0})
    return config
