"""GPT, Table 5: what pretraining is worth, and language modelling beside the task.

jaxformer reproduce gpt_table5
"""

from . import common

BASE = "Transformer with aux LM (full)"
_TASKS = ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE")
_NUMBERS = {  # in the order of _TASKS
    BASE: (45.4, 91.3, 82.3, 82.0, 70.3, 81.8, 88.1, 56.0),
    "without pre-training": (18.9, 84.0, 79.4, 30.9, 65.5, 75.7, 71.2, 53.8),
    "without aux LM": (47.9, 92.0, 84.9, 83.2, 69.8, 81.1, 86.9, 54.4),
    "LSTM with aux LM": (30.3, 90.5, 83.2, 71.8, 68.1, 73.7, 81.1, 54.6),
}
PAPER = {name: dict(zip(_TASKS, numbers, strict=True)) for name, numbers in _NUMBERS.items()}
AVERAGES = {BASE: 74.7, "without pre-training": 59.9, "without aux LM": 75.0, "LSTM with aux LM": 69.1}
METRICS = dict.fromkeys(_TASKS, "accuracy") | {
    "CoLA": "matthews",
    "MRPC": "f1_binary",
    "QQP": "f1_binary",
    "STS-B": "pearson",
}
# Four layers of width 128: in so few minutes a larger model learns less. N(0, 0.02) is too small for so narrow a one.
SIZE = {
    "model.d_model": 128,
    "model.d_ff": 512,
    "model.num_heads": 2,
    "model.head_dim": 64,
    "model.num_layers": 4,
    "model.initialization": "transformer",
}
PRETRAINING = common.NOVELS | SIZE | common.AT_THE_END | {
    "objective.sequence_length": 64,
    "training.num_steps": 3000,
    "optimizer.learning_rate": 1e-3,
}  # fmt: skip
LENGTHS = {"cola": 32, "sst2": 64, "stsb": 64, "rte": 96}
DATA: dict[str, dict] = {"cola": common.COLA, "sst2": common.SST2, "stsb": common.STSB, "rte": common.RTE}
FAR = ("CoLA", "SST-2", "STS-B", "RTE")  # of the paper's tasks those that have public files


def glue(task: str, steps: int, *more: dict) -> dict:
    """Return the stage of `small` that fine-tunes on a task of GLUE."""
    length = {"task.sequence_length": LENGTHS[task]}
    return common.fine_tuning(f"finetune/glue:gpt,{task},small", steps, DATA[task], SIZE, length, *more)


def _smoke() -> tuple[dict, dict]:
    stages = {
        "pretraining": {"config": "gpt:smoke", "set": common.TINY | common.WARM_UP, "shared": True},
        "area": {"config": "finetune/area:gpt,smoke", "set": common.AREA | {"init_from": "@pretraining"}},
    }
    return stages, {"area": common.judged("area", "eval/accuracy", paper="SST-2")}


def _small() -> tuple[dict, dict]:
    stages = {
        "pretraining": {"config": "gpt:small", "set": PRETRAINING, "shared": True},
        "CoLA": glue("cola", 300),
        "SST-2": glue("sst2", 300),
        "STS-B": glue("stsb", 150),
        "RTE": glue("rte", 100),
    }
    columns = {name: common.judged(name, f"eval/{METRICS[name]}") for name in FAR}
    columns |= common.missing(common.NO_FILE, "MRPC", "QQP", "MNLI", "QNLI")
    return stages, {"mean of the four": {"mean_of": list(FAR), "mode": "max"}} | columns


def _paper() -> tuple[dict, dict]:
    stages = {"pretraining": {"config": "gpt", "shared": True}}
    for name in _TASKS:
        task = name.replace("-", "").lower()
        stages[name] = {"config": f"finetune/glue:gpt,{task},117m", "set": {"init_from": "@pretraining"}}
    columns = {name: common.judged(name, f"eval/{METRICS[name]}") for name in _TASKS}
    return stages, {"average": {"mean_of": list(_TASKS), "mode": "max"}} | columns


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    stages, columns = {"smoke": _smoke, "small": _small, "paper": _paper}[scale]()
    tasks = [name for name in stages if name != "pretraining"]
    scratch = {"init_from": "", "tokenizer.name": "file", "tokenizer.path": "@pretraining/tokenizer.json"}
    rows: dict[str, dict] = {
        BASE: {},
        "without pre-training": {"set": dict.fromkeys(tasks, scratch)},
        "without aux LM": {"set": dict.fromkeys(tasks, {"task.language_model_weight": 0.0})},
        "LSTM with aux LM": {"not_provided": "there is no LSTM among the models"},
    }
    four = {name: round(sum(row[task] for task in FAR) / len(FAR), 1) for name, row in PAPER.items()}
    paper = {name: row | {"average": AVERAGES[name], "mean of the four": four[name]} for name, row in PAPER.items()}
    notes = {
        "smoke": ["On the built-in corpus one task, the area of a docstring, stands in the place of the paper's."],
        "small": [
            "The mean of the four is made of the paper's numbers for these tasks, too; its average is over eight.",
            "Four layers of width 128 read three million tokens of novels; the paper's model reads 100 billion.",
            "Judged on the development sets, the paper's numbers on the test sets.",
        ],
        "paper": ["Judged on the development sets, the paper's numbers on the test sets; MNLI on matched genres."],
    }
    return {
        "question": "What are pretraining, and language modelling beside the task, worth?",
        "paper": "GPT (Radford et al. 2018)",
        "place": "Table 5, section 5",
        "base": BASE,
        "seeds": common.SEEDS[scale],
        "stages": stages,
        "columns": columns,
        "rows": common.with_paper(paper, rows),
        "notes": notes[scale] + ["All rows and seeds start from one pretrained model, as in the paper."],
    }
