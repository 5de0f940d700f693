"""BART, Table 1: which objective and which noise to pretrain with.

jaxformer reproduce bart_table1
"""

from . import common

BASE = "BART, infilling + shuffling"
COLUMNS = ("SQuAD", "MNLI", "ELI5", "XSum", "ConvAI2", "CNN/DM")
PAPER = {  # F1, accuracy, and perplexities
    "BERT base (published)": (88.5, 84.3),
    "masked LM": (90.0, 83.5, 24.77, 7.87, 12.59, 7.06),
    "masked seq2seq": (87.0, 82.1, 23.40, 6.80, 11.43, 6.19),
    "language model": (76.7, 80.1, 21.40, 7.00, 11.51, 6.56),
    "permuted LM": (89.1, 83.7, 24.03, 7.69, 12.23, 6.96),
    "multitask masked LM": (89.2, 82.4, 23.73, 7.50, 12.39, 6.74),
    "BART, token masking": (90.4, 84.1, 25.05, 7.08, 11.73, 6.10),
    "BART, token deletion": (90.4, 84.1, 24.61, 6.90, 11.46, 5.87),
    "BART, text infilling": (90.8, 84.0, 24.26, 6.61, 11.05, 5.83),
    "BART, document rotation": (77.2, 75.3, 53.69, 17.14, 19.87, 10.59),
    "BART, sentence shuffling": (85.4, 81.5, 41.87, 10.93, 16.67, 7.89),
    BASE: (90.8, 83.8, 24.17, 6.62, 11.12, 5.41),
}
NOT_PROVIDED = {
    "BERT base (published)": "published elsewhere, with other steps and data: see bert_table5",
    "permuted LM": "it needs two-stream attention, which the house does not have",
    "multitask masked LM": "it needs two-stream attention, which the house does not have",
}
LENGTH = {"smoke": 64, "small": 64, "paper": 512}
SIZES = {"model.d_model": 128, "model.d_ff": 512, "model.num_heads": 4, "model.head_dim": 32, "model.num_layers": 2}
SMALL = SIZES | {"model.max_length": 128, "training.eval_every": 0, "checkpoint.every": 0}
GREEDY = {"generation.num_beams": 1}


def _stages(scale: str) -> dict[str, dict]:
    """Return the pretraining, one task that reads a state and one that writes."""
    if scale == "smoke":
        tiny = common.TINY | {"optimizer.warmup_steps": 5, "training.batch_size": 8}
        judge = tiny | {"init_from": "@pretraining", "task.sequence_length": 64, "data.name": "stdlib_docs"}
        return {
            "pretraining": {"config": "bart:smoke", "set": tiny | {"objective.sequence_length": 64}},
            "area": {"config": "finetune/classify:bart,smoke", "set": judge | {"task.text_fields": ("text",)}},
            "summaries": {
                "config": "finetune/summarize:bart,smoke",
                "set": judge
                | GREEDY
                | {"task.input": "{body}", "task.target_length": 16, "data.label_field": "summary"},
            },
        }
    if scale == "small":
        judge = SMALL | {"init_from": "@pretraining", "evaluation.batch_size": 64}
        return {
            "pretraining": {
                "config": "bart:small",
                "set": SMALL
                | common.NOVELS
                | {
                    "objective.sequence_length": 64,
                    "training.batch_size": 16,
                    "training.num_steps": 800,
                    "optimizer.learning_rate": 1e-3,
                },
            },
            "SST-2": {
                "config": "finetune/glue:bart,sst2,small",
                "set": judge | common.SST2 | {"task.sequence_length": 64, "training.num_steps": 300},
            },
            "headlines": {
                "config": "finetune/summarize:bart,small",
                "set": judge | GREEDY | HEADLINES | {"training.num_steps": 300, "training.batch_size": 16},
            },
        }
    judge = {"init_from": "@pretraining"}
    return {
        "pretraining": {"config": "bart:base", "set": {}},
        "SQuAD": {"config": "finetune/squad:bart,base", "set": judge},
        "MNLI": {"config": "finetune/glue:bart,mnli,base", "set": judge},
        "XSum": {"config": "finetune/summarize:bart,xsum,base", "set": judge},
        "CNN/DM": {"config": "finetune/summarize:bart,base", "set": judge},
    }


# AG News: the headline (2) of a description (3).
HEADLINES = {
    "data.name": "csv",
    "data.path": "{data}/ag_news/test.csv.xz",
    "data.header": False,
    "data.label_field": "2",
    "task.input": "{3}",
    "task.sequence_length": 96,
    "task.target_length": 24,
    "evaluation.max_examples": 256,
}


def _columns(scale: str) -> dict[str, dict]:
    missing = {name: {"missing": "neither its data nor an experiment is in the house"} for name in ("ELI5", "ConvAI2")}
    if scale == "smoke":
        return {
            "area": common.judged("area", "eval/accuracy", paper="MNLI"),
            "summaries": common.judged("summaries", "eval/perplexity", "min", 1, paper="XSum"),
        }
    if scale == "small":
        large = {name: {"missing": "its data is too large for two cores"} for name in ("SQuAD", "CNN/DM")}
        return {
            "SST-2": common.judged("SST-2", "eval/accuracy", paper="MNLI"),
            "headlines": common.judged("headlines", "eval/perplexity", "min", 1, paper="XSum"),
        } | large | missing  # fmt: skip
    return {
        "SQuAD": common.judged("SQuAD", "eval/squad_f1"),
        "MNLI": common.judged("MNLI", "eval/accuracy"),
        "XSum": common.judged("XSum", "eval/perplexity", "min", 1),
        "CNN/DM": common.judged("CNN/DM", "eval/perplexity", "min", 1),
    } | missing


def _rows(scale: str, stages: dict[str, dict]) -> dict[str, dict]:
    length, layers = LENGTH[scale], {"smoke": 2, "small": 4, "paper": 12}[scale]
    writing = [name for name in stages if name in ("summaries", "headlines", "XSum", "CNN/DM")]
    # BERT's model with both stacks' layers in one, without next sentences. It cannot write.
    masked = common.everywhere(stages, {"model.preset": "bert_base", "model.num_layers": layers})
    masked["pretraining"] |= {
        "objective.name": "masked_lm",
        "objective.next_sentence": False,
        "objective.sequence_length": length,
        "objective.max_predictions": round(0.16 * length),
        "tokenizer.name": "wordpiece",
    }
    # The decoder alone, with both stacks' layers; its tokens are those of GPT's task inputs.
    decoder = {"model.family": "decoder_only", "model.num_layers": layers, "model.decoder_start": "pad"}
    left_to_right = common.everywhere(stages, decoder)
    left_to_right["pretraining"] |= {
        "objective.name": "causal_lm",
        "objective.sequence_length": length,
        "tokenizer.special": "gpt",
    }
    if scale == "paper":  # what it reads and what it writes share its 1024 positions
        for stage in writing:
            left_to_right[stage]["task.sequence_length"] = 883
    # A span of one half of the tokens; masks begin behind a kept token, so a single one would always be the end.
    span = {
        "objective.name": "span_corruption",
        "objective.inputs": "mask",
        "objective.targets": "noise",
        "objective.noise_density": 0.5,
        "objective.mean_span_length": length / 4,
        "objective.z_loss": 0.0,
    }
    noises = {
        "token masking": {"objective.name": "token_masking"},
        "token deletion": {"objective.name": "token_deletion"},
        "text infilling": {"objective.name": "text_infilling"},
        "document rotation": {"objective.name": "document_rotation"},
        "sentence shuffling": {"objective.name": "sentence_permutation"},
    }
    rows: dict[str, dict] = {
        "masked LM": {"set": {**masked, **dict.fromkeys(writing)}},
        "masked seq2seq": {"set": {"pretraining": span}},
        "language model": {"set": left_to_right},
        BASE: {},
    }
    rows |= {f"BART, {name}": {"set": {"pretraining": noise}} for name, noise in noises.items()}
    rows |= {name: {"not_provided": why} for name, why in NOT_PROVIDED.items()}
    return {name: rows[name] for name in PAPER}


def get_table(scale: str) -> dict:
    """Return the table at a scale: smoke, small or paper."""
    stages = _stages(scale)
    table: dict = {
        "question": "Which objective, and which noise, teaches a model both to understand and to write?",
        "paper": "BART (Lewis et al. 2019)",
        "place": "Table 1, section 4",
        "base": BASE,
        "seeds": common.SEEDS[scale],
        "stages": stages,
        "columns": _columns(scale),
        "rows": common.with_paper(
            {name: dict(zip(COLUMNS, scores, strict=False)) for name, scores in PAPER.items()}, _rows(scale, stages)
        ),
        "notes": [
            "Masked LM is BERT's model, which cannot write: it has no perplexities here (in the paper it sees the text "
            "and what it has written so far).",
            "Perplexities are per token.",
        ],
    }
    if scale == "smoke":
        table["runs"] = [BASE, "masked LM", "BART, token deletion"]
    if scale == "small":
        table["runs"] = [
            BASE, "masked LM", "masked seq2seq", "language model", "BART, token masking", "BART, token deletion",
            "BART, text infilling", "BART, document rotation",
        ]  # fmt: skip
        table["notes"] += [
            "Models of 2 + 2 layers of width 128, pretrained on English novels with rows of 64 tokens. SST-2 stands in "
            "MNLI's place, and headlines of AG News in XSum's.",
        ]
    return table
