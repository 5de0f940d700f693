"""GPT, Figure 2 (left): what each layer that is taken over from the pretrained model is worth.

jaxformer reproduce gpt_figure2
"""

from . import common
from .gpt_table5 import PRETRAINING, SIZE, glue


def _taken(layers: int) -> dict:
    """Return the keys that take over the embeddings and so many layers; those above start afresh."""
    above = (f"decoder/layers[{layers}:]/.*",)
    return {"checkpoint.init_skip": above, "checkpoint.init_new": above}


def _name(layers: int) -> str:
    return "embeddings alone" if not layers else f"{layers} layer{'s' * (layers > 1)}"


def _smoke() -> tuple[dict, dict, int]:
    deep = {"model.num_layers": 2}
    stages = {
        "pretraining": {"config": "gpt:smoke", "set": common.TINY | common.WARM_UP | deep, "shared": True},
        "area": {"config": "finetune/area:gpt,smoke", "set": common.AREA | deep | {"init_from": "@pretraining"}},
    }
    return stages, {"area": common.judged("area", "eval/accuracy")}, 2


def _small() -> tuple[dict, dict, int]:
    stages = {
        "pretraining": {"config": "gpt:small", "set": PRETRAINING, "shared": True},
        "SST-2": glue("sst2", 400),
        "AG-News": common.fine_tuning("finetune/classify:gpt,small", 200, common.AG_NEWS, SIZE),
        "STS-B": glue("stsb", 150),
    }
    columns = {
        "SST-2": common.judged("SST-2", "eval/accuracy"),
        "AG News": common.judged("AG-News", "eval/accuracy"),
        "STS-B": common.judged("STS-B", "eval/pearson"),
    }
    return stages, columns | common.missing(common.NO_FILE, "MultiNLI", "RACE"), 4


def _paper() -> tuple[dict, dict, int]:
    start = {"init_from": "@pretraining"}
    race = {
        "data.name": "json_lines",
        "data.path": "race/train.jsonl",
        "data.validation_path": "race/dev.jsonl",
        "data.label_field": "answer",
        "task.text_fields": ("article", "question"),
        "task.stem_fields": (),
        "task.choice_fields": ("options[0]", "options[1]", "options[2]", "options[3]"),
        "task.sequence_length": 512,
        "training.num_steps": 8236,  # 3 epochs of 87,866 questions in batches of 32
        "training.batch_size": 32,
    }
    stages = {
        "pretraining": {"config": "gpt", "shared": True},
        "MultiNLI": {"config": "finetune/glue:gpt,mnli,117m", "set": start},
        "RACE": {"config": "finetune/choice:gpt,117m", "set": race | start},
    }
    return stages, {name: common.judged(name, "eval/accuracy") for name in ("MultiNLI", "RACE")}, 12


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    stages, columns, deep = {"smoke": _smoke, "small": _small, "paper": _paper}[scale]()
    tasks = [name for name in stages if name != "pretraining"]
    rows: dict[str, dict] = {_name(n): {"set": dict.fromkeys(tasks, _taken(n))} for n in range(deep)}
    rows[_name(deep)] = {}
    notes = {
        "smoke": ["On the built-in corpus one task, the area of a docstring, stands in the place of the paper's."],
        "small": [
            "Four layers of width 128, trained on novels; the paper's twelve layers are judged on MultiNLI and RACE."
        ],
        "paper": ["RACE is a folder that you prepare: one question a line, with its article, options and answer."],
    }
    return {
        "question": "Is each layer that is taken over from the pretrained model of use to the task?",
        "paper": "GPT (Radford et al. 2018)",
        "place": "Figure 2 (left), section 5",
        "base": _name(deep),
        "seeds": common.SEEDS[scale],
        "stages": stages,
        "columns": columns,
        "rows": {name: {"paper": {}} | row for name, row in rows.items()},
        "notes": notes[scale]
        + [
            "The paper draws its curves and prints no numbers: accuracy rises with every layer, on MultiNLI by up to 9 "
            "points.",
            "All rows and seeds start from one pretrained model.",
        ],
    }
