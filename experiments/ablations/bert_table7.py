"""BERT, Table 7: named entities from features of a model that is not fine-tuned, and which layers give the best ones.

jaxformer reproduce bert_table7
"""

from . import common
from .bert_table5 import MASKED, PRETRAINING
from .bert_table8 import CASED, FROZEN, ner

BASE = "fine-tuning, base"
PAPER = {  # F1 on CoNLL 2003's development set
    "fine-tuning, large": {"NER": 96.6},
    BASE: {"NER": 96.4},
    "embeddings": {"NER": 91.0},
    "second-to-last hidden": {"NER": 95.6},
    "last hidden": {"NER": 94.9},
    "weighted sum of the last four": {"NER": 95.9},
    "concatenation of the last four": {"NER": 96.1},
    "weighted sum of all layers": {"NER": 95.5},
}
NOT_PROVIDED = {
    "embeddings": "a model has at least one layer",
    "weighted sum of the last four": "a task reads the states of one layer",
    "concatenation of the last four": "a task reads the states of one layer",
    "weighted sum of all layers": "a task reads the states of one layer",
}
DEEP = {"model.num_layers": 4}


def _second_to_last(layers: int) -> dict:
    """Return the keys of the model without its last layer: no norm follows BERT's layers, so its output is the states
    of the second-to-last one."""
    return {"model.num_layers": layers - 1, "checkpoint.init_skip": (f"encoder/layers[{layers - 1}:]/.*",)}


def _smoke() -> tuple[dict, dict, int]:
    deep = {"model.num_layers": 2}
    stages = {
        "base": {"config": "bert:smoke", "set": common.TINY | common.WARM_UP | deep, "shared": True},
        "NER": {"config": "finetune/area:bert,smoke", "set": common.AREA | deep | {"init_from": "@base"}},
    }
    return stages, {"training.trainable": ("row_heads/.*",)}, 2


def _small() -> tuple[dict, dict, int]:
    learnt = PRETRAINING | MASKED | DEEP | CASED | {"objective.next_sentence": False}
    learnt |= {"training.num_steps": 3000, "optimizer.learning_rate": 1e-3}
    stages = {"base": {"config": "bert:small", "set": learnt, "shared": True}, "NER": ner(1200, DEEP, start="@base")}
    return stages, FROZEN, 4


def _paper() -> tuple[dict, dict, int]:
    cased = CASED | {"tokenizer.vocab_size": 28_996}
    stages = {
        "base": {"config": "bert:base", "set": cased | {"model.preset": "bert_base_cased"}, "shared": True},
        "large": {"config": "bert:large", "set": cased | {"model.preset": "bert_large_cased"}, "shared": True},
        "NER": {"config": "finetune/ner:bert,base", "set": {"model.preset": "bert_base_cased", "init_from": "@base"}},
    }
    return stages, FROZEN, 12


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    stages, frozen, layers = {"smoke": _smoke, "small": _small, "paper": _paper}[scale]()
    rows: dict[str, dict] = {name: {"not_provided": why} for name, why in NOT_PROVIDED.items()}
    large = {"init_from": "@large", "model.preset": "bert_large_cased"}
    rows["fine-tuning, large"] = {"set": {"NER": large}} if scale == "paper" else {}
    rows[BASE] = {}
    rows["last hidden"] = {"set": {"NER": frozen}}
    rows["second-to-last hidden"] = {"set": {"NER": frozen | _second_to_last(layers)}}
    metric = "eval/accuracy" if scale == "smoke" else "eval/seqeval_f1"
    notes = {
        "smoke": ["On the built-in corpus, which has no entities, the area of a docstring stands in their place."],
        "small": [
            "The rare entities of WNUT-17 stand beside those of CoNLL 2003. The model has four layers of width 128.",
            "The fine-tunings of all seeds start from one model, which predicts no next sentences.",
        ],
        "paper": ["The fine-tunings start from one model of each size."],
    }
    table = {
        "question": "Which layers of a frozen model give the best features, and how far are they from fine-tuning?",
        "paper": "BERT (Devlin et al. 2018)",
        "place": "Table 7, section 5.3",
        "base": BASE,
        "seeds": 5 if scale == "paper" else common.SEEDS[scale],
        "stages": stages,
        "columns": {"NER": common.judged("NER", metric)},
        "rows": common.with_paper(PAPER, {name: rows[name] for name in PAPER}),
        "notes": notes[scale]
        + ["From features a linear classifier tells the entities; the paper's is a BiLSTM of two layers."],
    }
    return table if scale == "paper" else table | {"runs": [BASE, "second-to-last hidden", "last hidden"]}
