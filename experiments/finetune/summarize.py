"""Summaries: CNN/DailyMail, with BART or T5 (BART, section 5.3; T5, section 2.3).

jaxformer train --config=finetune/summarize:bart --config.init_from=RUN \\
    --config.data.name=json_lines --config.data.path=train.jsonl \\
    --config.task.input="{article}" --config.data.label_field=highlights
"""

from ml_collections import ConfigDict

from . import common

FAMILIES = ("bart", "t5")


def get_config(arg: str = "bart") -> ConfigDict:
    """`jaxformer train --config=finetune/summarize:bart|t5[,SIZE][,smoke|small] --config.init_from=RUN`."""
    config, family, words = common.begin(arg, "bart", FAMILIES)
    prompt = "summarize: {article}" if family == "t5" else "{article}"
    config.task = {"name": "text_to_text", "input": prompt, "target_kind": "text"}
    config.task.metrics = ("rouge1", "rouge2", "rougeLsum")
    long = {"t5": 512, "bart": 1024}[family]
    config.task.update({"sequence_length": min(long, config.model.get("max_length", long)), "target_length": 142})
    config.data = common.tfds("cnn_dailymail", test_split="test", label_field="highlights")
    if family == "bart":
        config.task.label_smoothing = 0.1
    common.train(config, family, words, examples=287_113, epochs=3, batch_size=32)
    if family == "bart" and not {"smoke", "small"} & set(words):  # its code's recipe
        config.optimizer.update({"learning_rate": 3e-5, "warmup_steps": 500, "warmup_share": 0.0})
        config.optimizer.update({"beta2": 0.999, "clip_norm": 0.1})
        config.training.num_steps = 20_000
    if {"smoke", "small"} & set(words):
        config.task.target_length = 64
    return config
