"""Answers to questions as spans of a text: SQuAD, as BERT and BART do it (BERT, section 4.2). T5's way is
finetune/text_to_text.

jaxformer train --config=finetune/squad:bert --config.init_from=RUN \\
    --config.data.path=train-v1.1.json --config.data.validation_path=dev-v1.1.json
"""

from ml_collections import ConfigDict

from . import common

FAMILIES = ("bert", "distilbert", "bart")


def get_config(arg: str = "bert") -> ConfigDict:
    """`jaxformer train --config=finetune/squad:bert|distilbert|bart[,SIZE][,smoke|small] --config.init_from=RUN`.
    Every question has an answer (SQuAD 1.1); finetune/squad2 is for questions that may have none."""
    config, family, words = common.begin(arg, "bert", FAMILIES)
    config.task = {
        "name": "question_answering",
        "text_fields": ("question", "context"),
        "sequence_length": 384,
        "null_threshold": None,
    }
    if {"smoke", "small"} & set(words):  # rows as long as their positions go
        config.task.update({"sequence_length": config.model.max_length, "max_query_length": 32, "doc_stride": 64})
    config.data = {"name": "squad", "path": "train-v1.1.json", "validation_path": "dev-v1.1.json"}
    common.train(config, family, words, examples=87_599, epochs=3, batch_size=32)
    if family != "bart" and not {"smoke", "small"} & set(words):
        config.optimizer.learning_rate = 5e-5  # BERT, section 4.2
    return config
