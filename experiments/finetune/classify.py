"""Classifying a text, or a pair of texts; by default the sentiment of sentences (SST-2, in GLUE).

jaxformer train --config=finetune/classify:bert --config.init_from=RUN \\
    --config.data.name=csv --config.data.path=train.tsv --config.data.validation_path=dev.tsv \\
    --config.task.text_fields=sentence --config.data.label_field=label --config.training.num_steps=2000
"""

from ml_collections import ConfigDict

from . import common

FAMILIES = ("bert", "distilbert", "gpt", "gpt2", "gpt3", "bart", "t5")


def get_config(arg: str = "bert") -> ConfigDict:
    """`jaxformer train --config=finetune/classify:FAMILY[,SIZE][,smoke|small] --config.init_from=RUN`, FAMILY bert,
    distilbert, gpt, gpt2, gpt3, bart or t5 (by a classifier; T5's own way is finetune/text_to_text).

    A pair: --config.task.text_fields=first,second. Several labels a text: --config.task.name=multi_label. A number:
    --config.task.name=regression.
    """
    config, family, words = common.begin(arg, "bert", FAMILIES)
    config.task = {"name": "classification", "text_fields": ("sentence",), "sequence_length": 128}
    if family in common.DECODERS:
        config.task.language_model_weight = 0.5  # GPT, section 3.2; of the others not published
    config.data = common.tfds("glue/sst2")
    common.train(config, family, words, examples=67_349, epochs=3, batch_size=32)
    return config
