"""DistilBERT, Table 4: what the parts of the triple loss are worth, and beginning from the teacher's layers; and how
far the student is from its teacher in size, speed and quality.

jaxformer reproduce distilbert_table4
"""

from . import common
from .bert_table5 import MASKED, PRETRAINING, SIZE, glue

BASE, TEACHER = "DistilBERT", "BERT (teacher)"
# How the macro-average of GLUE changes (Table 4); the teacher's is that of Table 1, 79.5 against 77.0. Of both also
# the millions of parameters, and the seconds of a pass over STS-B on a CPU (Table 3).
PAPER = {
    BASE: {"GLUE": 0.0, "parameters": 66, "seconds": 410, "quality": 77.0},
    "without L_ce": {"GLUE": -2.96},
    "without L_cos": {"GLUE": -1.46},
    "without L_mlm": {"GLUE": -0.31},
    "triple loss, random weights": {"GLUE": -3.69},
    TEACHER: {"GLUE": 2.5, "parameters": 110, "seconds": 668, "quality": 79.5},
}
CHANGES = {
    BASE: {},
    "without L_ce": {"distillation.soft_weight": 0.0},
    "without L_cos": {"distillation.cosine_weight": 0.0},
    "without L_mlm": {"distillation.hard_weight": 0.0},
    "triple loss, random weights": {"distillation.layers": ()},
}
METRICS = {
    "CoLA": "matthews", "MNLI": "accuracy", "MRPC": "f1_binary", "QNLI": "accuracy", "QQP": "f1_binary",
    "RTE": "accuracy", "SST-2": "accuracy", "STS-B": "pearson", "WNLI": "accuracy",
}  # fmt: skip


def _smoke() -> tuple[dict, dict, dict]:
    """Return the stages, the columns, and the sizes of the teacher's model."""
    teacher = {"model.num_layers": 2}
    student = {"model.num_layers": 1, "distillation.layers": (0,), "distillation.teacher": "@teacher"}
    stages = {
        "teacher": {"config": "bert:smoke", "set": common.TINY | common.WARM_UP | teacher, "shared": True},
        "student": {"config": "distilbert:smoke", "set": common.TINY | common.WARM_UP | student},
        "area": {
            "config": "finetune/classify:distilbert,smoke",
            "set": common.TINY
            | {"data.name": "stdlib_docs", "task.text_fields": ("text",), "data.label_field": "area"}
            | {"init_from": "@student"},
        },
    }
    return stages, {"area": common.judged("area", "eval/accuracy", paper="GLUE")} | _triangle("area"), teacher


def _small() -> tuple[dict, dict, dict]:
    teacher = {"model.num_layers": 4}
    student = SIZE | common.NOVELS | common.AT_THE_END | {
        "training.num_steps": 800,
        "training.batch_size": 16,
        "objective.masking_rate": 0.3,
        "objective.max_predictions": 38,
        "distillation.teacher": "@teacher",
        "distillation.layers": (0, 2),
        "checkpoint.init_skip": ("encoder/inputs/token_types",),  # the teacher learns no next sentences
    }  # fmt: skip
    learnt = PRETRAINING | MASKED | teacher | {"objective.next_sentence": False}
    learnt |= {"training.num_steps": 3000, "optimizer.learning_rate": 1e-3}
    stages = {
        "teacher": {"config": "bert:small", "set": learnt, "shared": True},
        "student": {"config": "distilbert:small", "set": student},
        "CoLA": glue("cola", 200, family="distilbert", start="@student"),
        "SST-2": glue("sst2", 300, family="distilbert", start="@student"),
        "RTE": glue("rte", 100, family="distilbert", start="@student"),
        "STS-B": glue("stsb", 200, family="distilbert", start="@student"),
    }
    return stages, _quality(("CoLA", "SST-2", "RTE", "STS-B")) | _triangle("SST-2"), teacher


def _paper() -> tuple[dict, dict, dict]:
    stages = {
        "teacher": {"config": "bert:base", "shared": True},
        "student": {"config": "distilbert:base", "set": {"distillation.teacher": "@teacher"}},
    }
    for name in METRICS:
        task = name.replace("-", "").lower()
        stages[name] = {"config": f"finetune/glue:distilbert,{task},base", "set": {"init_from": "@student"}}
    return stages, _quality(tuple(METRICS)) | _triangle("SST-2"), {}


def _quality(tasks: tuple[str, ...]) -> dict:
    judged = {name: common.judged(name, f"eval/{METRICS[name]}") for name in tasks}
    return {"GLUE": {"mean_of": list(tasks), "mode": "max"}} | judged


def _triangle(stage: str) -> dict:
    return {name: {"measure": name, "stage": stage, "mode": "min"} for name in ("parameters", "seconds")}


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    stages, columns, sizes = {"smoke": _smoke, "small": _small, "paper": _paper}[scale]()
    rows = {name: {"set": {"student": changes}} if changes else {} for name, changes in CHANGES.items()}
    # No student: the teacher itself is fine-tuned.
    own = {"init_from": "@teacher", "model.preset": "bert_base"} | sizes
    rows[TEACHER] = {"set": {"student": None} | {name: own for name in stages if name not in ("teacher", "student")}}
    table = {
        "question": "What are the three losses and the teacher's layers worth to a student of half its depth?",
        "paper": "DistilBERT (Sanh et al. 2019)",
        "place": "Table 4, section 4",
        "base": BASE,
        "seeds": common.SEEDS[scale],
        "stages": stages,
        "columns": columns,
        "rows": common.with_paper(PAPER, rows),
        "differences": True,
        "notes": NOTES[scale]
        + [
            "The paper's triangle: 66 of 110 million parameters (40 % smaller), 410 of 668 s for a pass over STS-B "
            "(60 % faster), 77.0 of 79.5 on GLUE (97 % kept: Table 1, from which the teacher's row is). Seconds are "
            "those of one full row here.",
        ],
    }
    return (
        table if scale != "smoke" else table | {"runs": [BASE, "without L_ce", "triple loss, random weights", TEACHER]}
    )


NOTES = {
    "smoke": ["On the built-in corpus one task, the area of a docstring, stands in the place of GLUE."],
    "small": [
        "GLUE is the mean of CoLA (Matthews), SST-2, RTE (accuracy) and STS-B (Pearson); the paper's is over nine "
        "tasks.",
        "The teacher of all students has four layers of width 128, a student two: the teacher's first and third.",
        "The teacher learns no next sentences. The student is taught at the masked tokens, not at all of them.",
    ],
    "paper": ["The paper does not say with which runs it made this table; the weights are its code's."],
}
