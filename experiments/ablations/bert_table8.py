"""BERT, Table 8 (appendix C.2): what stands in the place of the tokens that are to be predicted.

jaxformer reproduce bert_table8
"""

from . import common
from .bert_table5 import MASKED, PRETRAINING, SIZE, glue

# Shares of [MASK], of the token itself and of a random one, in percent. MNLI: accuracy; NER: F1; development sets.
PAPER = {
    "80/10/10": {"MNLI": 84.2, "NER fine-tuned": 95.4, "NER features": 94.9},
    "100/0/0": {"MNLI": 84.3, "NER fine-tuned": 94.9, "NER features": 94.0},
    "80/0/20": {"MNLI": 84.1, "NER fine-tuned": 95.2, "NER features": 94.6},
    "80/20/0": {"MNLI": 84.4, "NER fine-tuned": 95.2, "NER features": 94.7},
    "0/20/80": {"MNLI": 83.7, "NER fine-tuned": 94.8, "NER features": 94.6},
    "0/0/100": {"MNLI": 83.6, "NER fine-tuned": 94.9, "NER features": 94.6},
}
CASED = {"tokenizer.lowercase": False, "tokenizer.strip_accents": False}  # names are told by their capitals
# A linear classifier alone learns at a higher rate than a whole model; not published: the paper's is another one.
FROZEN = {"training.trainable": ("token_heads/.*",), "optimizer.learning_rate": 1e-2}


def ner(steps: int, *more: dict, start: str = "@pretraining") -> dict:
    """Return the stage of `small` that learns named entities."""
    length = {"task.sequence_length": 64}
    return common.fine_tuning("finetune/ner:bert,small", steps, common.WNUT, SIZE, length, *more, start=start)


def _smoke() -> tuple[dict, dict]:
    area: dict = {"config": "finetune/area:bert,smoke", "set": common.AREA | {"init_from": "@pretraining"}}
    stages = {
        "pretraining": {"config": "bert:smoke", "set": common.TINY | common.WARM_UP},
        "area": area,
        "features": area | {"set": area["set"] | {"training.trainable": ("row_heads/.*",)}},
    }
    columns = {
        "area": common.judged("area", "eval/accuracy", paper="MNLI"),
        "area, features": common.judged("features", "eval/accuracy", paper="NER features"),
    }
    return stages, columns | common.missing("the built-in corpus has no entities", "NER fine-tuned")


def _small() -> tuple[dict, dict]:
    stages = {
        # Masks alone: beside so few steps, next sentences are learnt hardly at all, and take their share of them.
        "pretraining": {
            "config": "bert:small",
            "set": PRETRAINING | MASKED | CASED | {"objective.next_sentence": False},
        },
        "SST-2": glue("sst2", 300),
        "NER": ner(900),
        "features": ner(600, FROZEN),
    }
    columns = {
        "SST-2": common.judged("SST-2", "eval/accuracy", paper="MNLI"),
        "NER fine-tuned": common.judged("NER", "eval/seqeval_f1"),
        "NER features": common.judged("features", "eval/seqeval_f1"),
    }
    return stages, columns


def _paper() -> tuple[dict, dict]:
    start = {"init_from": "@pretraining"}
    stages = {
        "pretraining": {"config": "bert:base"},
        "MNLI": {"config": "finetune/glue:bert,mnli,base", "set": start},
        "NER": {"config": "finetune/ner:bert,base", "set": start},
        "features": {"config": "finetune/ner:bert,base", "set": start | FROZEN},
    }
    columns = {
        "MNLI": common.judged("MNLI", "eval/accuracy"),
        "NER fine-tuned": common.judged("NER", "eval/seqeval_f1"),
        "NER features": common.judged("features", "eval/seqeval_f1"),
    }
    return stages, columns


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    stages, columns = {"smoke": _smoke, "small": _small, "paper": _paper}[scale]()
    rows = {}
    for name in PAPER:
        mask, _, random = (int(share) / 100 for share in name.split("/"))
        changes = {"objective.mask_share": mask, "objective.random_share": random}
        rows[name] = {} if name == "80/10/10" else {"set": {"pretraining": changes}}
    notes = {
        "smoke": ["On the built-in corpus one task, the area of a docstring, stands in the place of the paper's."],
        "small": [
            "SST-2 stands beside the paper's MNLI, and the rare entities of WNUT-17 beside those of CoNLL 2003.",
            "BERT-tiny reads about two million tokens of novels, upper and lower case apart, and predicts no next "
            "sentences.",
        ],
        "paper": ["The paper does not say whether this table's models tell upper and lower case apart; ours do not."],
    }
    table = {
        "question": "Of the tokens to predict, how many should become [MASK], stay, or become another one?",
        "paper": "BERT (Devlin et al. 2018)",
        "place": "Table 8, appendix C.2",
        "base": "80/10/10",
        "seeds": common.SEEDS[scale],
        "stages": stages,
        "columns": columns,
        "rows": common.with_paper(PAPER, rows),
        "notes": notes[scale]
        + [
            "From features alone a linear classifier reads the last layer of a frozen encoder; the paper's is a BiLSTM "
            "of two layers that reads the last four."
        ],
    }
    return table if scale != "smoke" else table | {"runs": ["80/10/10", "100/0/0", "0/0/100"]}
