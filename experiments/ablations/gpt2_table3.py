"""GPT-2, Table 3: what larger models gain on text of kinds that they were not trained on.

jaxformer reproduce gpt2_table3
"""

from . import common

BASE = "117M"
COLUMNS = ("LAMBADA", "LAMBADA acc", "CBT-CN", "CBT-NE", "WikiText-2", "PTB", "enwik8", "text8", "WikiText-103", "1BW")
PAPER = {
    BASE: (35.13, 45.99, 87.65, 83.4, 29.41, 65.85, 1.16, 1.17, 37.50, 75.20),
    "345M": (15.60, 55.48, 92.35, 87.1, 22.76, 47.33, 1.01, 1.06, 26.37, 55.72),
    "762M": (10.87, 60.12, 93.45, 88.0, 19.93, 40.31, 0.97, 1.02, 22.05, 44.575),
    "1542M": (8.63, 63.24, 93.30, 89.05, 18.34, 35.76, 0.93, 0.98, 17.48, 42.16),
}
# Layers, d_model and heads; those of the paper are the presets'.
SIZES = {
    "smoke": {BASE: (1, 32, 2), "345M": (2, 48, 3), "762M": (3, 64, 4), "1542M": (4, 80, 5)},
    "small": {BASE: (1, 64, 2), "345M": (2, 96, 3), "762M": (3, 128, 4), "1542M": (4, 160, 5)},
}
# The presets, and the rates of experiments/gpt2.py.
PRESETS = {
    BASE: ("gpt2_124m", 6e-4),
    "345M": ("gpt2_355m", 3e-4),
    "762M": ("gpt2_774m", 2.5e-4),
    "1542M": ("gpt2_1558m", 2e-4),
}
# Text of other kinds under --data: what it stands in for, and its keys.
TEXTS = {
    "LAMBADA": {
        "data.name": "json_lines",
        "data.path": "{data}/lambada/lambada_test.jsonl.xz",
        "data.validation_path": "{data}/lambada/lambada_test.jsonl.xz",
    },
    "WikiText-2": {
        "data.name": "text",
        "data.path": "{data}/wikitext2/wiki.valid.raw",
        "data.validation_path": "{data}/wikitext2/wiki.test.raw.xz",
        "data.document": "file",
    },
    "abstracts": {
        "data.name": "json_lines",
        "data.path": "{data}/arxiv_abstracts/valid.jsonl.xz",
        "data.validation_path": "{data}/arxiv_abstracts/test.jsonl.xz",
        "data.text_field": "abstract",
    },
}
# As TFDS has it.
LAMBADA = {"data.dataset": "lambada", "data.text_field": "passage", "data.validation_split": "test"}
NOTES = [
    "Perplexities are per token of a vocabulary that all rows share; the paper's are per word, and higher. They rank "
    "the rows, and no more. LAMBADA's is of whole passages, where the paper's is of their last words.",
    "The sizes are the paper's own words; the right numbers are 124, 355, 774 and 1558 million.",
]
SMALL_NOTE = (
    "Models of 1 to 4 layers and widths of 64 to 160, all trained on as many tokens of English novels; scientific "
    "abstracts are a further kind of text, which the paper does not have."
)


def _model(size: tuple[int, int, int]) -> dict:
    layers, width, heads = size
    return {
        "model.num_layers": layers,
        "model.d_model": width,
        "model.d_ff": 4 * width,
        "model.num_heads": heads,
        "model.head_dim": width // heads,
    }


def _stages(scale: str) -> dict[str, dict]:
    """Return the pretraining, and a stage for each kind of text that judges it."""
    judge = {"init_from": "@pretraining"} | common.JUDGING
    if scale == "smoke":
        kept = {key: value for key, value in common.TINY.items() if not key.startswith("model.")}
        kept |= {"objective.sequence_length": 64, "training.batch_size": 8}
        return {
            "pretraining": {"config": "gpt2:124m,smoke", "set": kept | {"optimizer.warmup_steps": 5}},
            "docstrings": {"config": "gpt2:124m,smoke", "set": kept | judge | {"evaluation.split": "test"}},
        }
    if scale == "small":
        short = {"training.eval_every": 0, "checkpoint.every": 0, "training.batch_size": 8}
        training = {"training.num_steps": 800, "optimizer.learning_rate": 2e-3}
        part = {"evaluation.max_examples": 1024, "evaluation.batch_size": 32}
        judges = {
            name: {"config": "gpt2:124m,small", "set": short | data | judge | part} for name, data in TEXTS.items()
        }
        return {"pretraining": {"config": "gpt2:124m,small", "set": short | common.NOVELS | training}} | judges
    return {
        "pretraining": {"config": "gpt2:124m", "set": {}},
        "LAMBADA": {"config": "gpt2:124m", "set": judge | LAMBADA},
    }


def _columns(scale: str) -> dict[str, dict]:
    parameters = {"parameters": {"measure": "parameters", "stage": "pretraining", "mode": "min"}}
    if scale == "smoke":
        stands_for = common.judged("docstrings", "eval/perplexity", "min", scale=1, paper="WikiText-2")
        return {"docstrings": stands_for} | parameters
    own = "novels" if scale == "small" else "web text"
    columns = {own: common.judged("pretraining", "eval/perplexity", "min", scale=1)}
    judges = TEXTS if scale == "small" else ("LAMBADA",)
    columns |= {name: common.judged(name, "eval/perplexity", "min", scale=1) for name in judges}
    why = "its text is not there" if scale == "small" else "jaxformer score judges a run on files of it"
    return columns | parameters | {name: {"missing": why} for name in COLUMNS if name not in columns}


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    stages = _stages(scale)
    rows: dict[str, dict] = {}
    for name, (preset, rate) in PRESETS.items():
        if scale == "paper":
            rows[name] = {"set": common.everywhere(stages, {"model.preset": preset})}
            rows[name]["set"]["pretraining"]["optimizer.learning_rate"] = rate
        else:
            rows[name] = {"set": common.everywhere(stages, _model(SIZES[scale][name]))}
    return {
        "question": "What do larger language models gain on text of kinds that they were not trained on?",
        "paper": "GPT-2 (Radford et al. 2019)",
        "place": "Table 3, page 5",
        "base": BASE,
        "seeds": common.SEEDS[scale],
        "stages": stages,
        "columns": _columns(scale),
        "rows": common.with_paper(
            {name: dict(zip(COLUMNS, scores, strict=True)) for name, scores in PAPER.items()}, rows
        ),
        "notes": [*NOTES, *([SMALL_NOTE] if scale == "small" else [])],
    }
