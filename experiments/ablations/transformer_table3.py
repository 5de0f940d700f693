"""Transformer, Table 3: heads, sizes, dropout, label smoothing and positions of a model that translates.

jaxformer reproduce transformer_table3
"""

from . import common

BASE = "base"
PAPER = {  # perplexity and BLEU on newstest2013
    BASE: (4.92, 25.8),
    "A: 1 head": (5.29, 24.9),
    "A: 4 heads": (5.00, 25.5),
    "A: 16 heads": (4.91, 25.8),
    "A: 32 heads": (5.01, 25.4),
    "B: d_k = 16": (5.16, 25.1),
    "B: d_k = 32": (5.01, 25.4),
    "C: N = 2": (6.11, 23.7),
    "C: N = 4": (5.19, 25.3),
    "C: N = 8": (4.88, 25.5),
    "C: d_model = 256": (5.75, 24.5),
    "C: d_model = 1024": (4.66, 26.0),
    "C: d_ff = 1024": (5.12, 25.4),
    "C: d_ff = 4096": (4.75, 26.2),
    "D: dropout 0.0": (5.77, 24.6),
    "D: dropout 0.2": (4.95, 25.5),
    "D: label smoothing 0.0": (4.67, 25.3),
    "D: label smoothing 0.2": (5.47, 25.7),
    "E: learned positions": (4.92, 25.7),
    "big": (4.33, 26.4),
}
# By how much widths and numbers of layers are smaller than the paper's.
NARROWER = {"smoke": 8, "small": 4, "paper": 1}
SHALLOWER = {"smoke": 6, "small": 2, "paper": 1}


def _sized(scale: str, layers: int = 6, width: int = 512, hidden: int = 2048, heads: int = 8) -> dict:
    """Return the keys of a model whose sizes in the paper are these, at a scale."""
    narrower = NARROWER[scale]
    return {
        "model.num_layers": max(1, layers // SHALLOWER[scale]),
        "model.d_model": width // narrower,
        "model.d_ff": hidden // narrower,
        "model.num_heads": heads,
        "model.head_dim": max(1, width // heads // narrower),
    }


def _stages(scale: str) -> dict[str, dict]:
    """Return the training, and a stage that judges it by what it writes."""
    judge = {"init_from": "@training"} | common.JUDGING
    if scale == "paper":
        return {
            "training": {"config": "transformer:base", "set": {}},
            "BLEU": {"config": "finetune/translate:transformer,base", "set": judge},
        }
    model = _sized(scale) | {"model.max_length": 128}
    greedy = {"generation.num_beams": 1, "generation.length_alpha": 0.0, "generation.extra_length": -1}
    pairs = {"objective.source_field": "en", "objective.target_field": "de", "objective.target_length": 128}
    if scale == "smoke":
        short = {key: common.TINY[key] for key in common.TINY if not key.startswith("model.")} | model
        written: dict = {"data.name": "stdlib_docs", "data.label_field": "summary", "task.input": "{body}"}
        written |= {"task.sequence_length": 64, "task.target_length": 16, "training.batch_size": 8}
        return {
            "training": {"config": "transformer:smoke", "set": short | {"training.batch_size": 8}},
            "BLEU": {"config": "finetune/translate:transformer,smoke", "set": short | written | judge | greedy},
        }
    short = {"training.eval_every": 0, "checkpoint.every": 0, "evaluation.max_examples": 0}
    training = {"training.num_steps": 500, "training.batch_size": 8, "optimizer.learning_rate": 2e-3}
    return {
        "training": {"config": "transformer:small", "set": model | MULTI30K | pairs | short | training},
        "BLEU": {
            "config": "finetune/translate:transformer,small",
            "set": model
            | MULTI30K
            | short
            | judge
            | greedy
            | {
                "task.sequence_length": 48,
                "task.target_length": 48,
                "evaluation.batch_size": 128,
                "evaluation.max_examples": 512,
            },
        },
    }


MULTI30K = {
    "data.name": "parallel",
    "data.path": "{data}/multi30k/train",
    "data.validation_path": "{data}/multi30k/val",
    "data.languages": "en,de",
}


def _rows(scale: str, stages: dict[str, dict]) -> dict[str, dict]:
    models = {f"A: {heads} head{'s' * (heads > 1)}": _sized(scale, heads=heads) for heads in (1, 4, 16, 32)}
    models |= {f"C: N = {layers}": _sized(scale, layers=layers) for layers in (2, 4, 8)}
    models |= {f"C: d_model = {width}": _sized(scale, width=width) for width in (256, 1024)}
    models |= {f"C: d_ff = {hidden}": _sized(scale, hidden=hidden) for hidden in (1024, 4096)}
    models |= {f"D: dropout {rate}": {"model.dropout": rate} for rate in (0.0, 0.2)}
    models["E: learned positions"] = {"model.position": "learned"}
    models["big"] = _sized(scale, width=1024, hidden=4096, heads=16) | {"model.dropout": 0.3}
    rows: dict[str, dict] = {name: {"set": common.everywhere(stages, model)} for name, model in models.items()}
    if scale == "paper":
        longer = {"training.num_steps": 300_000, "optimizer.learning_rate": (1024 * 4000) ** -0.5}
        rows["big"]["set"]["training"] |= longer
    for smoothing in (0.0, 0.2):
        changed = {"training": {"objective.label_smoothing": smoothing}}
        rows[f"D: label smoothing {smoothing}"] = {"set": changed}
    for width in (16, 32):
        why = "queries, keys and values of a head have one width here (model.head_dim)"
        rows[f"B: d_k = {width}"] = {"not_provided": why}
    rows[BASE] = {}
    return {name: rows[name] for name in PAPER}


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    stages = _stages(scale)
    table: dict = {
        "question": "What of the Transformer does its translation depend on?",
        "paper": "Transformer (Vaswani et al. 2017)",
        "place": "Table 3, page 9",
        "base": BASE,
        "seeds": common.SEEDS[scale],
        "stages": stages,
        "columns": {
            "perplexity": common.judged("training", "eval/perplexity", "min", scale=1),
            "BLEU": common.judged("BLEU", "eval/bleu", scale=1),
            "parameters": {"measure": "parameters", "stage": "training", "mode": "min"},
        },
        "rows": common.with_paper(
            {name: dict(zip(("perplexity", "BLEU"), scores, strict=True)) for name, scores in PAPER.items()},
            _rows(scale, stages),
        ),
        "notes": [
            "Perplexities are per token, and of the plain cross-entropy whatever smoothing a row was trained with.",
            "The paper judges on newstest2013; the data of wmt14_translate has newstest2013 for validation, too.",
        ],
    }
    if scale == "smoke":
        table["runs"] = [BASE, "A: 1 head", "E: learned positions"]
        table["notes"][1] = "Instead of translating, it writes the first line of a docstring from the rest."
    if scale == "small":
        table["runs"] = [
            BASE, "A: 1 head", "A: 32 heads", "C: N = 2", "C: d_model = 256", "D: dropout 0.0",
            "D: label smoothing 0.0", "E: learned positions",
        ]  # fmt: skip
        table["notes"][1] = (
            "Multi30k's captions instead of WMT's news, English to German, a quarter of the paper's widths and half of "
            "its layers, 1 + 1 up to 4 + 4; translations are written greedily, of 512 of its validation sentences."
        )
    return table
