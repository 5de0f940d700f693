"""The tasks of GLUE (Wang et al. 2018) with the papers' settings. T5's way is finetune/text_to_text.

jaxformer train --config=finetune/glue:bert,rte --config.init_from=RUN
"""

from ml_collections import ConfigDict

from . import common

FAMILIES = ("bert", "distilbert", "gpt", "gpt2", "gpt3", "bart")
# Of each task its training examples, its fields, and what judges it.
TASKS: dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]] = {
    "cola": (8_551, ("sentence",), ("matthews",)),
    "sst2": (67_349, ("sentence",), ("accuracy",)),
    "mrpc": (3_668, ("sentence1", "sentence2"), ("f1_binary", "accuracy")),
    "qqp": (363_846, ("question1", "question2"), ("f1_binary", "accuracy")),
    "stsb": (5_749, ("sentence1", "sentence2"), ("pearson", "spearman")),
    "mnli": (392_702, ("premise", "hypothesis"), ("accuracy",)),
    "qnli": (104_743, ("question", "sentence"), ("accuracy",)),
    "rte": (2_490, ("sentence1", "sentence2"), ("accuracy",)),
    "wnli": (635, ("sentence1", "sentence2"), ("accuracy",)),
}
# BART's, from its code's recipe: rate, batch, steps and warm-up of each.
BART = {
    "mnli": (5e-6, 128, 30_968, 1858),
    "qnli": (1e-5, 32, 33_112, 1986),
    "qqp": (1e-5, 32, 113_272, 6796),
    "rte": (1e-5, 32, 1018, 61),
    "sst2": (5e-6, 128, 5233, 314),
    "mrpc": (2e-5, 64, 1148, 68),
    "cola": (2e-5, 64, 1334, 80),
    "stsb": (2e-5, 32, 1799, 107),
}


def get_config(arg: str = "bert,sst2") -> ConfigDict:
    """`jaxformer train --config=finetune/glue:FAMILY,TASK[,SIZE][,smoke|small] --config.init_from=RUN`, FAMILY bert,
    distilbert, gpt, gpt2, gpt3 or bart, TASK cola, sst2 (without a word), mrpc, qqp, stsb, mnli, qnli, rte or
    wnli."""
    family, *words = (arg or "bert,sst2").split(",")
    chosen = [word for word in words if word in TASKS] or ["sst2"]
    if len(chosen) != 1:
        raise ValueError(f"'{arg}': give one of the tasks {', '.join(TASKS)}")
    (name,) = chosen
    rest = [family, *(word for word in words if word != name)]
    try:
        config, family, words = common.begin(",".join(rest), "bert", FAMILIES)
    except ValueError as error:
        raise ValueError(f"{error}; the tasks are {', '.join(TASKS)}") from error
    examples, fields, metrics = TASKS[name]
    kind = "regression" if name == "stsb" else "classification"
    config.task = {"name": kind, "text_fields": fields, "metrics": metrics, "sequence_length": 128}
    if family in common.DECODERS:
        config.task.language_model_weight = 0.5  # GPT, section 3.2; of the others not published
        # GPT, section 3.3: similarity has no order.
        config.task.both_orders = name in ("mrpc", "qqp", "stsb")
    config.data = common.tfds(f"glue/{name}")
    if name == "mnli":
        config.data.update({"validation_split": "validation_matched", "test_split": "validation_mismatched"})
    common.train(config, family, words, examples, epochs=3, batch_size=32)
    if family == "bart" and name in BART and not {"smoke", "small"} & set(words):
        rate, batch_size, steps, warmup = BART[name]
        config.optimizer.update({"learning_rate": rate, "warmup_steps": warmup, "warmup_share": 0.0, "clip_norm": 0.0})
        config.optimizer.update({"beta2": 0.98, "epsilon": 1e-8, "weight_decay": 0.01})
        config.training.update({"num_steps": steps, "batch_size": batch_size, "eval_every": steps // 10})
        config.checkpoint.every = steps // 10
    return config
