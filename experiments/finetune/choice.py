"""Multiple choice: which of several texts follows, or answers? SWAG, as BERT does it (section 4.4).

GPT's StoryCloze and RACE have the same form (section 3.3).

jaxformer train --config=finetune/choice:bert --config.init_from=RUN \\
    --config.data.name=csv --config.data.path=swag/train.csv --config.data.validation_path=swag/val.csv
"""

from ml_collections import ConfigDict

from . import common

FAMILIES = ("bert", "distilbert", "gpt", "gpt2", "gpt3", "bart")


def get_config(arg: str = "bert") -> ConfigDict:
    """`jaxformer train --config=finetune/choice:FAMILY[,SIZE][,smoke|small] --config.init_from=RUN`, FAMILY bert,
    distilbert, gpt, gpt2, gpt3 or bart.

    RACE: task.text_fields=article,question, task.choice_fields=options[0],options[1],options[2],options[3] and
    data.label_field=answer.
    """
    config, family, words = common.begin(arg, "bert", FAMILIES)
    config.task = {
        "name": "multiple_choice",
        "text_fields": ("sent1",),
        "stem_fields": ("sent2",),
        "choice_fields": ("ending0", "ending1", "ending2", "ending3"),
        "sequence_length": 128,
    }
    if family in common.DECODERS:
        config.task.language_model_weight = 0.5  # GPT, section 3.2; of the others not published
    config.data = {"name": "huggingface", "dataset": "swag", "validation_split": "validation"}
    common.train(config, family, words, examples=73_546, epochs=3, batch_size=16)
    if family == "bert" and not {"smoke", "small"} & set(words):
        config.optimizer.learning_rate = 2e-5  # BERT, section 4.4
    return config
