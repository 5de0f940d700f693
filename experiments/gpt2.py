"""GPT-2 (Radford et al. 2019): causal language modelling on web text.

jaxformer train --config=gpt2:smoke
"""

from ml_collections import ConfigDict

from . import common

SIZES = ("124m", "355m", "774m", "1558m")


def get_config(arg: str = "") -> ConfigDict:
    """`jaxformer train --config=gpt2[:124m|355m|774m|1558m][,smoke|small]`; without ARG the paper's GPT-2 (1558m)."""
    size, scale = common.parse_arg(arg, SIZES, "1558m")
    config = common.base()
    config.model = {"preset": f"gpt2_{size}", "vocab_multiple": common.VOCAB_MULTIPLE}
    config.objective = {"name": "causal_lm", "sequence_length": 1024}
    config.tokenizer = {"name": "byte_bpe", "vocab_size": 50_257}
    config.data = {"name": "tfds", "dataset": "webtext"}  # not in TFDS: a folder that you prepare
    # Not published, none of it. Rates, betas, decay and clipping are GPT-3's (Brown et al. 2020, of the nearest size);
    # schedule and steps those of Kaplan et al. 2020 (section 2.2), who train such models on such text and batches.
    config.optimizer = {
        "name": "adamw",
        "learning_rate": {"124m": 6e-4, "355m": 3e-4, "774m": 2.5e-4, "1558m": 2e-4}[size],  # not published
        "schedule": "cosine",  # not published
        "warmup_steps": 3000,  # not published
        "beta2": 0.95,  # not published
        "weight_decay": 0.1,  # not published
        "clip_norm": 1.0,  # not published
    }
    config.training.update({"num_steps": 250_000, "batch_size": 512})  # steps not published
    if scale:
        common.shrink(config, scale)
        config.model.max_length = config.objective.sequence_length = 128
        config.training.batch_size = 16
        config.optimizer.update({"learning_rate": {"smoke": 3e-3, "small": 1e-3}[scale], "warmup_steps": 30})
    return config
