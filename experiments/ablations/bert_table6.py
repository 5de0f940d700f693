"""BERT, Table 6: what the model's size is worth.

jaxformer reproduce bert_table6
"""

from . import common
from .bert_table5 import MASKED, PRETRAINING, SIZE, glue

BASE = "L=12, H=768, A=12"
# Perplexity of the held-out masked tokens, and accuracy on the development sets, the mean of five fine-tunings.
PAPER = {
    "L=3, H=768, A=12": {"LM perplexity": 5.84, "MNLI-m": 77.9, "MRPC": 79.8, "SST-2": 88.4},
    "L=6, H=768, A=3": {"LM perplexity": 5.24, "MNLI-m": 80.6, "MRPC": 82.2, "SST-2": 90.7},
    "L=6, H=768, A=12": {"LM perplexity": 4.68, "MNLI-m": 81.9, "MRPC": 84.8, "SST-2": 91.3},
    BASE: {"LM perplexity": 3.99, "MNLI-m": 84.4, "MRPC": 86.7, "SST-2": 92.9},
    "L=12, H=1024, A=16": {"LM perplexity": 3.54, "MNLI-m": 85.7, "MRPC": 86.9, "SST-2": 93.3},
    "L=24, H=1024, A=16": {"LM perplexity": 3.23, "MNLI-m": 86.6, "MRPC": 87.8, "SST-2": 93.7},
}
# (layers, width, heads): a third of the layers, a sixth of the width, a third of the heads; of the wide ones nearly.
SMALL = {
    "L=3, H=768, A=12": (1, 128, 4),
    "L=6, H=768, A=3": (2, 128, 1),
    "L=6, H=768, A=12": (2, 128, 4),
    BASE: (4, 128, 4),
    "L=12, H=1024, A=16": (4, 160, 5),
    "L=24, H=1024, A=16": (8, 160, 5),
}
STEPS = 1500


def _size(layers: int, width: int, heads: int) -> dict:
    return {
        "model.num_layers": layers,
        "model.d_model": width,
        "model.d_ff": 4 * width,
        "model.num_heads": heads,
        "model.head_dim": width // heads,
    }


def _smoke() -> tuple[dict, dict]:
    stages = {
        "pretraining": {
            "config": "bert:smoke",
            "set": common.TINY | common.WARM_UP | {"objective.next_sentence": False},
        },
        "area": {"config": "finetune/area:bert,smoke", "set": common.AREA | {"init_from": "@pretraining"}},
    }
    return stages, {"area": common.judged("area", "eval/accuracy", paper="SST-2")}


def _small() -> tuple[dict, dict]:
    pretraining = PRETRAINING | MASKED | _size(*SMALL[BASE]) | {
        "objective.next_sentence": False,
        "training.num_steps": STEPS,
        "optimizer.learning_rate": 1e-3,
    }  # fmt: skip
    size = _size(*SMALL[BASE])
    stages = {
        "pretraining": {"config": "bert:small", "set": pretraining},
        "SST-2": glue("sst2", 300, size),
        "AG-News": common.fine_tuning("finetune/classify:bert,small", 200, common.AG_NEWS, SIZE, size),
    }
    columns = common.missing(common.NO_FILE, "MNLI-m", "MRPC") | {
        "SST-2": common.judged("SST-2", "eval/accuracy"),
        "AG News": common.judged("AG-News", "eval/accuracy"),
    }
    return stages, columns


def _paper() -> tuple[dict, dict]:
    tasks = {"MNLI-m": "mnli", "MRPC": "mrpc", "SST-2": "sst2"}
    stages: dict[str, dict] = {"pretraining": {"config": "bert:base"}}
    for name, task in tasks.items():
        stages[name] = {"config": f"finetune/glue:bert,{task},base", "set": {"init_from": "@pretraining"}}
    return stages, {name: common.judged(name, "eval/accuracy") for name in tasks}


def _changes(name: str, scale: str) -> dict:
    if name == BASE:
        return {}
    if scale == "smoke":
        return {"model.num_layers": 2} if name == "L=24, H=1024, A=16" else {"model.num_heads": 1, "model.head_dim": 32}
    layers, width, heads = SMALL[name] if scale == "small" else [int(part.split("=")[1]) for part in name.split(", ")]
    own, base = _size(layers, width, heads), _size(*(SMALL[BASE] if scale == "small" else (12, 768, 12)))
    return {key: value for key, value in own.items() if value != base[key]}


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    stages, columns = {"smoke": _smoke, "small": _small, "paper": _paper}[scale]()
    rows = {}
    for name in PAPER:
        changes = _changes(name, scale)
        rows[name] = {"set": dict.fromkeys(stages, changes)} if changes else {}
    notes = {
        "smoke": ["On the built-in corpus one task, the area of a docstring, stands in the place of the paper's."],
        "small": [
            "Sizes are the paper's in proportion: a third of the layers and a sixth of the width, trained alike.",
            "AG News is a further task, which the paper's table does not have. No model predicts next sentences.",
        ],
        "paper": ["Each of the five seeds pretrains, too; the paper fine-tunes one pretrained model five times."],
    }
    table = {
        "question": "Is a larger model a better one, also on tasks with few examples?",
        "paper": "BERT (Devlin et al. 2018)",
        "place": "Table 6, section 5.2",
        "base": BASE,
        "seeds": 5 if scale == "paper" else common.SEEDS[scale],
        "stages": stages,
        "columns": {"LM perplexity": common.judged("pretraining", "eval/perplexity", "min", 1)} | columns,
        "rows": common.with_paper(PAPER, rows),
        "notes": notes[scale],
    }
    return table if scale != "smoke" else table | {"runs": ["L=6, H=768, A=3", BASE, "L=24, H=1024, A=16"]}
