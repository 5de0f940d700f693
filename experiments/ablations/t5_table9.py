"""T5, Table 9: what it costs to repeat the text, with as many steps on less of it.

jaxformer reproduce t5_table9
"""

from . import common

BASE = "no repeats"
# Repeats, tokens of text, and what the paper printed.
PAPER = {
    BASE: common.T5_BASELINE,
    "64 repeats": (82.87, 19.19, 80.97, 72.03, 26.83, 39.74, 27.63),
    "256 repeats": (82.62, 19.20, 79.78, 69.97, 27.02, 39.71, 27.33),
    "1024 repeats": (79.55, 18.57, 76.27, 64.76, 26.38, 39.56, 26.80),
    "4096 repeats": (76.34, 18.33, 70.92, 59.29, 26.37, 38.84, 25.81),
}
REPEATS = (64, 256, 1024, 4096)
# The share of the documents that is held out; what is left is drawn again and again. Of 88,206 abstracts these leave
# 76, 19, 5 and 1; all steps together read about 4,900.
HELD_OUT = {
    "smoke": {repeats: 0.5 for repeats in REPEATS},
    "small": {64: 0.9991951, 256: 0.9997822, 1024: 0.9999424, 4096: 0.9999934},
    # Of C4's 156 billion tokens; 2^35 are read in all.
    "paper": {repeats: 1 - 2**35 / repeats / 156e9 for repeats in REPEATS},
}
ABSTRACTS = {
    "data.name": "json_lines",
    "data.path": "{data}/arxiv_abstracts/train.jsonl.xz",
    "data.text_field": "abstract",
}


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    stages = common.t5_stages(scale, {"objective.name": "replace_spans"})
    if scale == "small":
        # One vocabulary, of all text, for all rows.
        vocabulary = {"config": "t5:small", "set": common.T5_NARROW | ABSTRACTS | common.JUDGING, "shared": True}
        read = {"data.validation_path": "", "tokenizer.name": "file", "tokenizer.path": "@vocabulary/tokenizer.json"}
        stages["pretraining"]["set"] = stages["pretraining"]["set"] | ABSTRACTS | read
        stages = {"vocabulary": vocabulary} | stages
    if scale == "paper":
        stages["pretraining"]["set"] = stages["pretraining"]["set"] | {"data.validation_split": ""}
    rows: dict[str, dict] = {BASE: {}}
    for repeats in REPEATS:
        held_out = {"data.validation_share": HELD_OUT[scale][repeats]}
        rows[f"{repeats} repeats"] = {"set": {"pretraining": held_out}}
    table: dict = {
        "question": "How often may a model read the same text while it is pretrained?",
        "paper": "T5 (Raffel et al. 2019)",
        "place": "Table 9, section 3.4.2",
        "base": BASE,
        "seeds": common.SEEDS[scale],
        "stages": stages,
        "columns": {"training loss": common.judged("pretraining", "train/loss", "min", scale=1)}
        | common.t5_columns(scale),
        "rows": common.with_paper({name: common.t5_scores(*PAPER[name]) for name in PAPER}, rows),
        "notes": [
            *common.T5_NOTES[scale],
            "Text is left out by holding it out: data.validation_share says how much of it, by the hash of a "
            "document's number. The paper takes the first tokens of C4.",
        ],
    }
    if scale == "smoke":  # the built-in corpus has splits of its own, of which nothing can be held out
        table["runs"] = [BASE]
        table["notes"].append("The built-in corpus cannot be cut short, so only the base runs at this scale.")
    return table
