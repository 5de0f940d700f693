"""T5, Tables 4 and 5: which objective learns most from unlabelled text.

jaxformer reproduce t5_table4_5
"""

from . import common

BASE = "replace spans"
OBJECTIVES = {
    "prefix LM": ("prefix_lm", (80.69, 18.94, 77.99, 65.27, 26.86, 39.73, 27.49)),
    "BERT-style": ("bert_style", (82.96, 19.17, 80.65, 69.85, 26.78, 40.03, 27.41)),
    "deshuffling": ("deshuffling", (73.17, 18.59, 67.61, 58.47, 26.11, 39.30, 25.62)),
    "MASS-style": ("mass_style", (82.32, 19.16, 80.10, 69.28, 26.79, 39.89, 27.55)),
    BASE: ("replace_spans", common.T5_BASELINE),
    "drop tokens": ("drop_tokens", (84.44, 19.31, 80.52, 68.67, 27.07, 39.76, 27.82)),
}


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    rows = {
        name: {"paper": common.t5_scores(*scores), "set": {"pretraining": {"objective.name": objective}}}
        for name, (objective, scores) in OBJECTIVES.items()
    }
    table = {
        "question": "Which way of corrupting text and of writing it teaches a model most?",
        "paper": "T5 (Raffel et al. 2019)",
        "place": "Tables 4 and 5, section 3.3",
        "base": BASE,
        "seeds": common.SEEDS[scale],
        "stages": common.t5_stages(scale, {"objective.name": "replace_spans"}),
        "columns": common.t5_columns(scale),
        "rows": rows,
        "notes": [
            *common.T5_NOTES[scale],
            "Table 4 compares the first three, Table 5 BERT-style with what makes it simpler. All rows have equally "
            "many steps; those whose targets are the whole text take longer for each.",
        ],
    }
    return table | ({"runs": [BASE, "deshuffling", "drop tokens"]} if scale == "smoke" else {})
