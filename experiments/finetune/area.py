"""Fine-tuning on the built-in corpus: which area of the standard library does a docstring belong to?

jaxformer train --config=finetune/area:bert,smoke --config.init_from=runs/bert-smoke
"""

from ml_collections import ConfigDict

from .. import bert, gpt, t5

FAMILIES = {"gpt": gpt, "bert": bert, "t5": t5}
TASKS = {
    "gpt": {"name": "classification", "sequence_length": 128, "language_model_weight": 0.5},
    "bert": {"name": "classification", "sequence_length": 128},
    "t5": {"name": "text_to_text", "sequence_length": 128, "input": "area text: {text}", "target_length": 8},
}
# What each paper fine-tunes with, and what a run of `smoke` or `small` size needs. The corpus has about 4,000 labels,
# so that 375 steps are three epochs.
OPTIMIZERS = {
    "gpt": {"schedule": "linear_product", "warmup_steps": 1, "learning_rate": 6.25e-5},  # 0.2 % of the steps
    "bert": {"schedule": "linear", "warmup_steps": 37, "learning_rate": 3e-5},  # of 5e-5, 3e-5 and 2e-5
    "t5": {"schedule": "constant", "warmup_steps": 0, "learning_rate": 1e-3},
}
SHRUNK_RATES = {"gpt": 1e-3, "bert": 1e-3, "t5": 1e-2}
# Parameters that only one side has: the pretraining heads, and the classifier.
PRETRAINING_HEADS = {"gpt": (), "bert": ("vocabulary/.*", "row_heads/next_sentence/.*"), "t5": ()}
NEW_HEADS = {"gpt": ("row_heads/.*",), "bert": ("row_heads/label/.*",), "t5": ()}


def get_config(arg: str = "bert") -> ConfigDict:
    """`jaxformer train --config=finetune/area:gpt|bert|t5[,SIZE][,smoke|small] --config.init_from=RUN`."""
    family, *words = (arg or "bert").split(",")
    if family not in FAMILIES:
        raise ValueError(f"'{arg}': the first word is one of {', '.join(FAMILIES)}")
    config = FAMILIES[family].get_config(",".join(words))
    del config.objective
    config.data = {"name": "stdlib_docs"}
    config.task = dict(TASKS[family])
    config.optimizer.update(OPTIMIZERS[family])
    config.training.update({"num_steps": 375, "batch_size": 32, "log_every": 10, "eval_every": 125, "phases": ()})
    config.checkpoint.update({"every": 125, "best_metric": "eval/accuracy", "best_mode": "max"})
    config.checkpoint.update({"init_skip": PRETRAINING_HEADS[family], "init_new": NEW_HEADS[family]})
    if {"smoke", "small"} & set(words):
        config.optimizer.learning_rate = SHRUNK_RATES[family]
    return config
