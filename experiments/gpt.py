"""GPT (Radford et al. 2018): causal language modelling on contiguous windows.

jaxformer train --config=gpt:smoke
"""

from ml_collections import ConfigDict

from . import common


def get_config(arg: str = "") -> ConfigDict:
    """`jaxformer train --config=gpt[:smoke|small]`; without ARG the paper's run."""
    _, scale = common.parse_arg(arg, ("117m",), "117m")
    config = common.base()
    config.model = {"preset": "gpt", "vocab_multiple": common.VOCAB_MULTIPLE}
    config.objective = {"name": "causal_lm", "sequence_length": 512}
    # The paper's lower-cased BPE has 40,000 merges; ours is trained on the corpus at hand.
    config.tokenizer = {"name": "byte_bpe", "vocab_size": 40_478, "lowercase": True}
    config.data = {"name": "tfds", "dataset": "bookscorpus"}  # not in TFDS: a folder that you prepare
    config.optimizer = {
        "name": "adamw",
        "learning_rate": 2.5e-4,
        "schedule": "cosine",
        "warmup_steps": 2000,
        "weight_decay": 0.01,
        "clip_norm": 1.0,  # from the released code
    }
    # 100 epochs of BooksCorpus in batches of 64 x 512 tokens.
    config.training.update({"num_steps": 3_000_000, "batch_size": 64})  # steps not published: 100 x 1e9 tokens / 32,768
    if scale:
        common.shrink(config, scale)
        config.model.max_length = config.objective.sequence_length = 128
        config.training.batch_size = 16
        # At 1e-3 the larger, post-norm model never learns more than how often tokens come.
        config.optimizer.update({"learning_rate": {"smoke": 1e-3, "small": 3e-4}[scale], "warmup_steps": 60})
    return config
