"""Named entities: a tag for each word (BERT, section 5.3), on CoNLL 2003.

jaxformer train --config=finetune/ner:bert --config.init_from=RUN \\
    --config.data.name=conll --config.data.path=train.conll --config.data.validation_path=dev.conll
"""

from ml_collections import ConfigDict

from . import common

FAMILIES = ("bert", "distilbert")


def get_config(arg: str = "bert") -> ConfigDict:
    """`jaxformer train --config=finetune/ner:bert|distilbert[,SIZE][,smoke|small] --config.init_from=RUN`. The paper's
    model is a cased one."""
    config, family, words = common.begin(arg, "bert", FAMILIES)
    config.task = {"name": "token_classification", "text_fields": ("words",), "sequence_length": 128}
    # Columns: word, part of speech, chunk, entity. A folder that you prepare: the text is under a licence.
    config.data = {
        "name": "conll",
        "path": "conll2003/train.txt",
        "validation_path": "conll2003/valid.txt",
        "label_field": "tags",
    }
    common.train(config, family, words, examples=14_041, epochs=3, batch_size=32)
    return config
