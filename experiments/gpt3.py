"""GPT-3 (Brown et al. 2020): causal language modelling with dense and banded layers in turn.

jaxformer train --config=gpt3:smoke
"""

from ml_collections import ConfigDict

from . import common

# Table 2.1: the peak learning rate, and the batch in tokens (0.5, 1, 2 and 3.2 million) as rows of 2048, rounded to
# numbers that many devices can share.
RECIPES = {
    "125m": (6.0e-4, 256),
    "350m": (3.0e-4, 256),
    "760m": (2.5e-4, 256),
    "1.3b": (2.0e-4, 512),
    "2.7b": (1.6e-4, 512),
    "6.7b": (1.2e-4, 1024),
    "13b": (1.0e-4, 1024),
    "175b": (0.6e-4, 1568),
}
SIZES = tuple(RECIPES)


def get_config(arg: str = "") -> ConfigDict:
    """`jaxformer train --config=gpt3[:125m|350m|760m|1.3b|2.7b|6.7b|13b|175b][,smoke|small]`; without ARG 175b."""
    size, scale = common.parse_arg(arg, SIZES, "175b")
    learning_rate, batch_size = RECIPES[size]
    config = common.base()
    config.model = {"preset": f"gpt3_{size}", "vocab_multiple": common.VOCAB_MULTIPLE}
    config.objective = {"name": "causal_lm", "sequence_length": 2048}
    config.tokenizer = {"name": "byte_bpe", "vocab_size": 50_257}
    # Table 2.2: per cent of the examples. Only Wikipedia is in TFDS; the others are folders that you prepare.
    config.data = common.mixture(
        {"common_crawl": 60, "webtext2": 22, "books1": 8, "books2": 8, "wikipedia/20230601.en": 3}
    )
    # Appendix B counts in tokens: 300 billion in all, 375 million to warm up, down to a tenth at 260 billion. The batch
    # grows from 32,000 tokens (16 rows) over the first 4 to 12 billion, "depending on the model size".
    billions = 4 if batch_size < 512 else 8 if batch_size < 1024 else 12  # not published which model takes how many
    phases = common.ramp(16, batch_size, billions * 10**9 // 2048, stages=8, multiple=16)  # not published: 8 stages

    def steps(tokens: float) -> int:
        return common.steps_for(int(tokens) // 2048, phases, batch_size)

    config.optimizer = {
        "name": "adamw",
        "learning_rate": learning_rate,
        "schedule": "cosine",
        "warmup_steps": steps(375e6),
        "decay_steps": steps(260e9),
        "final_fraction": 0.1,
        "beta2": 0.95,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
    }
    config.training.update({"num_steps": steps(300e9), "batch_size": batch_size, "phases": tuple(phases)})
    # 2048 rows of logits over 50,257 ids are 400 MB a row.
    config.training.logits_chunk = 256
    if scale:
        common.shrink(config, scale)
        config.model.max_length = config.objective.sequence_length = 128
        config.model.attention_window = 32
        config.training.batch_size = 16
        config.optimizer.update({"learning_rate": {"smoke": 3e-3, "small": 1e-3}[scale], "warmup_steps": 30})
        config.optimizer.decay_steps = config.training.num_steps * 260 // 300
    return config
