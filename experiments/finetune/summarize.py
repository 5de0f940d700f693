"""Summaries: CNN/DailyMail, with BART or T5, or XSum (BART, section 5.3; T5, section 2.3).

jaxformer train --config=finetune/summarize:bart --config.init_from=RUN \\
    --config.data.name=json_lines --config.data.path=train.jsonl \\
    --config.task.input="{article}" --config.data.label_field=highlights
"""

from ml_collections import ConfigDict

from . import common

FAMILIES = ("bart", "t5")
# Of BART's code: how it writes, and for how many updates it learns.
BEAMS = {"length_penalty": "power", "no_repeat_ngram": 3, "early_stopping": True}
CNN = {"num_beams": 4, "length_alpha": 2.0, "min_new_tokens": 55, "max_new_tokens": 140}
XSUM = {"num_beams": 6, "length_alpha": 1.0, "min_new_tokens": 10, "max_new_tokens": 60}


def get_config(arg: str = "bart") -> ConfigDict:
    """`jaxformer train --config=finetune/summarize:bart|t5[,xsum][,SIZE][,smoke|small] --config.init_from=RUN`."""
    given = (arg or "bart").split(",")
    is_xsum = "xsum" in given
    config, family, words = common.begin(",".join(word for word in given if word != "xsum"), "bart", FAMILIES)
    text = "{document}" if is_xsum else "{article}"
    prompt = f"summarize: {text}" if family == "t5" else text
    config.task = {"name": "text_to_text", "input": prompt, "target_kind": "text"}
    config.task.metrics = ("rouge1", "rouge2", "rougeLsum")
    long = {"t5": 512, "bart": 1024}[family]
    config.task.update({"sequence_length": min(long, config.model.get("max_length", long)), "target_length": 142})
    config.data = common.tfds("cnn_dailymail", test_split="test", label_field="highlights")
    if is_xsum:
        config.data = common.tfds("xsum", test_split="test", label_field="summary")
    config.generation = dict(common.T5_BEAMS) if family == "t5" else BEAMS | (XSUM if is_xsum else CNN)
    if family == "bart":
        config.task.label_smoothing = 0.1
    common.train(config, family, words, examples=204_045 if is_xsum else 287_113, epochs=3, batch_size=32)
    if family == "bart" and not {"smoke", "small"} & set(words):  # its code's recipe
        config.optimizer.update({"learning_rate": 3e-5, "warmup_steps": 500, "warmup_share": 0.0})
        config.optimizer.update({"beta2": 0.999, "clip_norm": 0.1})
        config.training.num_steps = 15_000 if is_xsum else 20_000
    if {"smoke", "small"} & set(words):
        config.task.target_length = 64
        config.generation.update({"min_new_tokens": 0, "max_new_tokens": 0})  # as long as those targets
    return config
