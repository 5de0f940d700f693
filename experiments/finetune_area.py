"""Fine-tuning on the built-in corpus: which area of the standard library does a docstring belong to?

jaxformer train --config=finetune_area:bert,smoke --config.init_from=runs/bert-smoke
"""

from ml_collections import ConfigDict

from . import bert, gpt, t5

FAMILIES = {"gpt": gpt, "bert": bert, "t5": t5}
TASKS = {
    "gpt": {"name": "extract_classification", "sequence_length": 128},
    "bert": {"name": "pooled_classification", "sequence_length": 128},
    "t5": {"name": "text_to_text_classification", "sequence_length": 128, "prefix": "area"},
}


def get_config(arg: str = "bert") -> ConfigDict:
    """`jaxformer train --config=finetune_area:gpt|bert|t5[,SIZE][,smoke|small] --config.init_from=RUN`."""
    family, *words = (arg or "bert").split(",")
    if family not in FAMILIES:
        raise ValueError(f"'{arg}': the first word is one of {', '.join(FAMILIES)}")
    config = FAMILIES[family].get_config(",".join(words))
    del config.objective
    config.task = dict(TASKS[family])
    return config
