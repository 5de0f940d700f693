"""T5, Table 2: which architecture reads and writes best, with which objective.

jaxformer reproduce t5_table2
"""

from . import common

BASE = "encoder-decoder, denoising"
# Architecture, and what the paper printed with the denoising objective and with the language model's.
PAPER = {
    "encoder-decoder": (common.T5_BASELINE, (79.56, 18.59, 76.02, 64.29, 26.27, 39.17, 26.86)),
    "encoder-decoder, shared": (
        (82.81, 18.78, 80.63, 70.73, 26.72, 39.03, 27.46),
        (79.60, 18.13, 76.35, 63.50, 26.62, 39.17, 27.05),
    ),
    "encoder-decoder, half the layers": (
        (80.88, 18.97, 77.59, 68.42, 26.38, 38.40, 26.95),
        (78.67, 18.26, 75.32, 64.06, 26.13, 38.42, 26.89),
    ),
    "language model": (
        (74.70, 17.93, 61.14, 55.02, 25.09, 35.28, 25.86),
        (73.78, 17.54, 53.81, 56.51, 25.23, 34.31, 25.38),
    ),
    "prefix LM": (
        (81.82, 18.61, 78.94, 68.11, 26.43, 37.98, 27.39),
        (79.68, 17.84, 76.87, 64.86, 26.28, 37.51, 26.76),
    ),
}
LAYERS = {"smoke": 2, "small": 2, "paper": 12}
# What each architecture changes in all stages, and the objective that its paper's column "LM" stands for: an
# encoder-decoder reads up to a place drawn uniformly and writes the rest, as a prefix LM does.
PREFIX_LM = {"objective.name": "prefix_lm"}
CAUSAL_LM = {"objective.name": "causal_lm", "objective.z_loss": 1e-4}


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    stages = common.t5_stages(scale, {"objective.name": "replace_spans"})
    if scale != "paper":  # half of one layer is none
        layers = {"model.num_layers": LAYERS[scale]}
        stages = {name: stage | {"set": stage["set"] | layers} for name, stage in stages.items()}
    architectures: dict[str, tuple[dict, dict]] = {
        "encoder-decoder": ({}, PREFIX_LM),
        "encoder-decoder, half the layers": ({"model.num_layers": LAYERS[scale] // 2}, PREFIX_LM),
        "language model": ({"model.family": "decoder_only", "model.visibility": "causal"}, CAUSAL_LM),
        "prefix LM": ({"model.family": "decoder_only", "model.visibility": "prefix"}, PREFIX_LM),
    }
    rows: dict[str, dict] = {}
    for name, scores in PAPER.items():
        for number, objective in enumerate(("denoising", "LM")):
            row: dict = {"paper": common.t5_scores(*scores[number])}
            if name in architectures:
                model, language_model = architectures[name]
                row["set"] = common.everywhere(stages, model)
                row["set"]["pretraining"] |= language_model if objective == "LM" else {}
            else:
                row["not_provided"] = "the house has no stacks that share their parameters"
            rows[f"{name}, {objective}"] = row
    table = {
        "question": "Which architecture learns most from unlabelled text, and with which objective?",
        "paper": "T5 (Raffel et al. 2019)",
        "place": "Table 2, section 3.2",
        "base": BASE,
        "seeds": common.SEEDS[scale],
        "stages": stages,
        "columns": {"parameters": {"measure": "parameters", "stage": "pretraining", "mode": "min"}}
        | common.t5_columns(scale),
        "rows": rows,
        "notes": [
            *common.T5_NOTES[scale],
            "A single stack has as many layers as the encoder, and so half of the parameters, as in the paper. With "
            "the denoising objective it reads the source and predicts the target alone.",
        ],
    }
    return table | ({"runs": [BASE, "language model, LM", "prefix LM, denoising"]} if scale == "smoke" else {})
