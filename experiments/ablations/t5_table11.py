"""T5, Table 11: how often each of several tasks is drawn when a model learns all of them at once.

jaxformer reproduce t5_table11
"""

from . import common

PAPER = {
    "fine-tuned task by task": common.T5_BASELINE,
    "equal": (76.13, 19.02, 76.51, 63.37, 23.89, 34.31, 26.78),
    "examples-proportional, K = 2^19": (81.42, 19.24, 79.78, 67.30, 25.21, 36.30, 27.76),
    "temperature 2, K = 2^21": (81.90, 19.28, 79.42, 69.92, 25.42, 36.72, 27.20),
}
BASE = "examples-proportional, K = 2^19"
# K, the number of examples of a task that count at most, in proportion to the size of the tasks.
CAP = {"smoke": 2**9, "small": 2**13, "paper": 2**19}


def _member(data: dict) -> dict:
    """Return a data section's keys as those of a mixture's member."""
    return {key.removeprefix("data."): value for key, value in data.items()}


# What `small` mixes: the task's keys, and its data. 67,349, 8,551 and 2,490 examples.
SMALL: dict = {
    "sst2": (
        {"input": "sst2 sentence: {sentence}", "metrics": ("accuracy",), "words": {"0": "negative", "1": "positive"}},
        common.SST2,
    ),
    "cola": (
        {
            "input": "cola sentence: {4}",
            "metrics": ("matthews",),
            "words": {"0": "unacceptable", "1": "acceptable"},
        },
        common.COLA_OF_T5,
    ),
    "rte": (
        {"input": "rte sentence1: {sentence1} sentence2: {sentence2}", "metrics": ("accuracy",)},
        common.RTE,
    ),
}
# The built-in corpus as two tasks of different sizes: the area of a text, and its summary.
SMOKE: dict = {
    "area": ({"input": "area text: {text}"}, {"data.name": "stdlib_docs"}),
    "few": ({"input": "area few: {text}"}, {"data.name": "stdlib_docs", "data.max_examples": 300}),
}


def _stages(scale: str) -> dict[str, dict]:
    """Return the pretraining, and the training on all tasks."""
    pretraining = common.t5_stages(scale, {"objective.name": "replace_spans"})["pretraining"]
    changes: dict
    mixed = {"init_from": "@pretraining", "data.cap": CAP[scale]}
    if scale == "paper":
        config, changes = "finetune/text_to_text:t5,all,base", {"training.num_steps": 2**18}
    else:
        tasks = SMOKE if scale == "smoke" else SMALL
        lengths = {"name": "text_to_text", "sequence_length": 64, "target_length": 8}
        config = f"finetune/text_to_text:t5,glue,{scale}"
        changes = common.TINY if scale == "smoke" else common.T5_FINE_TUNING | {"training.num_steps": 1000}
        unread = ("task.sequence_length", "task.target_length")  # each member has its own
        changes = {key: value for key, value in changes.items() if key not in unread}
        mixed["task.members"] = [
            lengths | task | {"title": title, "corpora": [number]}
            for number, (title, (task, _)) in enumerate(tasks.items())
        ]
        mixed["data.members"] = [_member(data) for _, data in tasks.values()]
    return {"pretraining": pretraining, "all tasks": {"config": config, "set": changes | mixed}}


def _columns(scale: str) -> dict[str, dict]:
    if scale == "smoke":
        return {"area": common.judged("all tasks", "eval/area/accuracy", paper="GLUE")}
    if scale == "paper":
        return _columns_of(common.T5_PAPER)
    return {
        "GLUE": {"mean_of": ["SST-2", "CoLA", "RTE"], "mode": "max"},
        "SST-2": common.judged("all tasks", "eval/sst2/accuracy"),
        "CoLA": common.judged("all tasks", "eval/cola/matthews"),
        "RTE": common.judged("all tasks", "eval/rte/accuracy"),
    } | {name: {"missing": common.T5_TOO_LARGE} for name in common.T5_COLUMNS if name != "GLUE"}


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    rows: dict[str, dict] = {
        "fine-tuned task by task": {"not_provided": "all columns here are of one run, on all tasks: see t5_table6_7"},
        "equal": {"set": {"all tasks": {"data.mixing": "weights", "data.cap": 0}}},
        BASE: {},
        # A temperature flattens rates, so a higher K goes with it.
        "temperature 2, K = 2^21": {"set": {"all tasks": {"data.cap": 4 * CAP[scale], "data.temperature": 2.0}}},
    }
    return {
        "question": "How often should each of several tasks be drawn when a model learns all of them at once?",
        "paper": "T5 (Raffel et al. 2019)",
        "place": "Table 11, section 3.5.2",
        "base": BASE,
        "seeds": common.SEEDS[scale],
        "stages": _stages(scale),
        "columns": _columns(scale),
        "rows": common.with_paper({name: common.t5_scores(*PAPER[name]) for name in PAPER}, rows),
        "notes": [
            "The paper draws the unlabelled text as one more task, from the first step on; here a model is pretrained "
            "on it and then learns all tasks at once, so that the rows differ in the mixing alone.",
            f"K is {CAP[scale]:,} examples where the paper has 2^19, and four times as many where it has 2^21. Its "
            "further values of K and of the temperature are left out.",
        ],
    }


def _columns_of(tasks: dict) -> dict[str, dict]:
    """Return the paper's columns, all of one run on all tasks."""
    columns: dict[str, dict] = {}
    for name, (title, metrics) in tasks.items():
        if len(metrics) > 1:
            columns[name] = {"mean_of": list(metrics), "mode": "max"}
        for column, metric in metrics.items():
            logged = metric if len(metrics) > 1 else metric.replace("eval/", f"eval/{title}/")
            columns[column] = common.judged("all tasks", logged, scale=common.UNITS.get(metric, 100))
    return columns
