"""T5, Tables 6 and 7: how many of the tokens to corrupt, and in spans of which length.

jaxformer reproduce t5_table6_7
"""

from . import common

BASE = "15 %, i.i.d."
PAPER = {
    "10 %": (82.82, 19.00, 80.38, 69.55, 26.87, 39.28, 27.44),
    BASE: common.T5_BASELINE,
    "25 %": (83.00, 19.54, 80.96, 70.48, 27.04, 39.83, 27.47),
    "50 %": (81.27, 19.32, 79.80, 70.33, 27.01, 39.90, 27.49),
    "spans of 2": (83.54, 19.39, 82.09, 72.20, 26.76, 39.99, 27.63),
    "spans of 3": (83.49, 19.62, 81.84, 72.53, 26.86, 39.65, 27.62),
    "spans of 5": (83.40, 19.24, 82.05, 72.23, 26.88, 39.40, 27.53),
    "spans of 10": (82.85, 19.33, 81.84, 70.44, 26.79, 39.49, 27.69),
}
# Each token is noise by itself, neighbours share a sentinel.
IID = {"objective.name": "replace_spans", "objective.noise_density": 0.15}


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    rows: dict[str, dict] = {BASE: {}}
    rows |= {f"{rate} %": {"set": {"pretraining": {"objective.noise_density": rate / 100}}} for rate in (10, 25, 50)}
    for length in (2, 3, 5, 10):
        spans = {"objective.name": "span_corruption", "objective.mean_span_length": float(length)}
        rows[f"spans of {length}"] = {"set": {"pretraining": spans}}
    table = {
        "question": "How many tokens should be corrupted, and in spans of which length?",
        "paper": "T5 (Raffel et al. 2019)",
        "place": "Tables 6 and 7, section 3.3",
        "base": BASE,
        "seeds": common.SEEDS[scale],
        "stages": common.t5_stages(scale, IID),
        "columns": common.t5_columns(scale),
        "rows": common.with_paper(
            {name: common.t5_scores(*PAPER[name]) for name in PAPER}, {name: rows[name] for name in PAPER}
        ),
        "notes": [
            *common.T5_NOTES[scale],
            "Table 6 varies the share of the baseline's i.i.d. noise, Table 7 the spans.",
        ],
    }
    return table | ({"runs": [BASE, "50 %", "spans of 3"]} if scale == "smoke" else {})
