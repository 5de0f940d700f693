"""SQuAD 2.0, in which questions may have no answer (BERT, section 4.3).

Evaluations tell which threshold would have been the best one on the development set, best_null_threshold: give it to
`predict` as --config.task.null_threshold.

jaxformer train --config=finetune/squad2:bert --config.init_from=RUN \\
    --config.data.path=train-v2.0.json --config.data.validation_path=dev-v2.0.json
"""

from ml_collections import ConfigDict

from . import common, squad

FAMILIES = squad.FAMILIES


def get_config(arg: str = "bert") -> ConfigDict:
    """`jaxformer train --config=finetune/squad2:bert|distilbert|bart[,SIZE][,smoke|small] --config.init_from=RUN`."""
    config = squad.get_config(arg)
    config.task.null_threshold = 0.0
    config.data.update({"path": "train-v2.0.json", "validation_path": "dev-v2.0.json"})
    family, *words = (arg or "bert").split(",")
    rate = config.optimizer.learning_rate
    common.train(config, family, words, examples=130_319, epochs=2, batch_size=48)
    config.optimizer.learning_rate = rate
    return config
