"""BERT, Table 5: what next-sentence prediction and reading in both directions are worth.

jaxformer reproduce bert_table5
"""

from . import common

PAPER = {  # MNLI-m, QNLI, MRPC and SST-2: accuracy; SQuAD: F1; of the development sets
    "BERT base": {"MNLI-m": 84.4, "QNLI": 88.4, "MRPC": 86.7, "SST-2": 92.7, "SQuAD": 88.5},
    "No NSP": {"MNLI-m": 83.9, "QNLI": 84.9, "MRPC": 86.5, "SST-2": 92.6, "SQuAD": 87.9},
    "LTR & No NSP": {"MNLI-m": 82.1, "QNLI": 84.3, "MRPC": 77.5, "SST-2": 92.1, "SQuAD": 77.8},
    "+ BiLSTM": {"MNLI-m": 82.1, "QNLI": 84.1, "MRPC": 75.7, "SST-2": 91.6, "SQuAD": 84.9},
}
# Left to right while pretraining and, as in the paper, while fine-tuning.
LEFT_TO_RIGHT = {"model.visibility": "causal"}


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    if scale == "smoke":
        stages = {
            "pretraining": {"config": "bert:smoke", "set": common.TINY},
            "area": {"config": "finetune/area:bert,smoke", "set": common.TINY | {"init_from": "@pretraining"}},
        }
        columns = {"area": common.judged("area", "eval/accuracy", paper="SST-2")}
    else:
        raise ValueError("not yet")
    fine_tunings = [name for name in stages if name != "pretraining"]
    return {
        "question": "What are next-sentence prediction and reading in both directions worth?",
        "paper": "BERT (Devlin et al. 2018)",
        "place": "Table 5, page 8",
        "base": "BERT base",
        "seeds": common.SEEDS[scale],
        "stages": stages,
        "columns": columns,
        "rows": common.with_paper(
            PAPER,
            {
                "BERT base": {},
                "No NSP": {"set": {"pretraining": {"objective.next_sentence": False}}},
                "LTR & No NSP": {
                    "set": {"pretraining": LEFT_TO_RIGHT | {"objective.name": "causal_lm"}}
                    | dict.fromkeys(fine_tunings, LEFT_TO_RIGHT)
                },
                "+ BiLSTM": {"not_provided": "the house has no LSTM"},
            },
        ),
        "notes": [],
    }
