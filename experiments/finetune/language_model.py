"""Going on with pretraining on text of another kind: a language model is taken to a new domain.

jaxformer train --config=finetune/language_model:gpt2 --config.init_from=RUN \\
    --config.data.name=text --config.data.path=FOLDER
"""

from ml_collections import ConfigDict

from . import common

FAMILIES = ("gpt", "gpt2", "gpt3", "bert", "t5", "bart")


def get_config(arg: str = "gpt2") -> ConfigDict:
    """`jaxformer train --config=finetune/language_model:gpt|gpt2|gpt3|bert|t5|bart[,SIZE][,smoke|small]
    --config.init_from=RUN`, on the built-in corpus where no data is named.

    Each goes on with the objective that it was pretrained with, heads included. The papers do not do this: the rates
    are those with which each is fine-tuned.
    """
    family, *words = (arg or "gpt2").split(",")
    config, _, words = common.begin(",".join([family, *words]), "gpt2", FAMILIES)
    config.objective = common.FAMILIES[family].get_config(",".join(words)).objective
    config.data = {"name": "stdlib_docs"}
    config.evaluation.max_examples = 256
    # For data of your own: as many rows as it has, once.
    rows = 4_800 if {"smoke", "small"} & set(words) else 32_000
    common.train(config, family, words, examples=rows, epochs=1, batch_size=16)
    config.checkpoint.update({"best_metric": "eval/loss", "best_mode": "min"})
    return config
