"""What the tables share: the data of each scale, and the tasks that judge their rows."""

SCALES = ("smoke", "small", "paper")
SEEDS = {"smoke": 2, "small": 3, "paper": 1}
# A model that compiles and trains in seconds: `smoke` shows that all of it works, and nothing about the question.
TINY = {
    "model.d_model": 32,
    "model.d_ff": 64,
    "model.num_heads": 2,
    "model.head_dim": 16,
    "model.num_layers": 1,
    "training.num_steps": 20,
    "training.eval_every": 0,
    "checkpoint.every": 0,
    "evaluation.max_examples": 64,
}
# Files under the folder that --data names, as they are published: see docs/reproducing.md.
NOVELS = {
    "data.name": "json_lines",
    "data.path": "{data}/english_novels/train.jsonl.xz",
    "data.validation_path": "{data}/english_novels/valid.jsonl",
}
_TSV = {"data.name": "csv", "data.quoting": "none"}
COLA = _TSV | {
    "data.path": "{data}/glue/CoLA/train.tsv",
    "data.validation_path": "{data}/glue/CoLA/dev.tsv",
    "data.header": False,
    "data.label_field": "2",
    "task.text_fields": ("4",),
}
SST2 = _TSV | {"data.path": "{data}/glue/SST-2/train.tsv.xz", "data.validation_path": "{data}/glue/SST-2/dev.tsv"}
RTE = _TSV | {"data.path": "{data}/glue/RTE/train.tsv", "data.validation_path": "{data}/glue/RTE/dev.tsv"}
AG_NEWS = _TSV | {  # 10,000 of its articles; a tenth of them is held out
    "data.path": "{data}/ag_news/train10k.tsv.xz",
    "data.validation_share": 0.1,
    "data.header": False,
    "data.label_field": "2",
    "task.text_fields": ("1",),
    "task.sequence_length": 64,
}
STSB = _TSV | {
    "data.path": "{data}/glue/STS-B/train.tsv",
    "data.validation_path": "{data}/glue/STS-B/dev.tsv",
    "data.label_field": "score",
}
SQUAD = {
    "data.name": "squad",
    "data.path": "{data}/squad_train5k/train.json.xz",
    "data.validation_path": "{data}/squad_train5k/valid.json",
}


def judged(stage: str, metric: str, mode: str = "max", scale: float = 100, **fields: object) -> dict:
    """Return a column: a metric that the runs of a stage log last, times `scale`."""
    return {"stage": stage, "metric": metric, "mode": mode, "scale": scale} | fields


def with_paper(paper: dict[str, dict], rows: dict[str, dict]) -> dict:
    """Return the rows, each with what the paper printed of it."""
    return {name: {"paper": paper[name]} | row for name, row in rows.items()}


def missing(why: str, *names: str) -> dict[str, dict]:
    """Return the paper's columns that a scale does not have."""
    return {name: {"missing": why} for name in names}


# A warm-up that is a share of the steps, however few they are.
WARM_UP = {"optimizer.warmup_steps": 0, "optimizer.warmup_share": 0.1}
# Only the last step is judged and saved.
AT_THE_END = {"training.eval_every": 0, "checkpoint.every": 0}
NO_FILE = "the public files have no such data"
WNUT = {  # emerging entities, in the place of CoNLL 2003, whose text is under a licence
    "data.path": "{data}/wnut17/wnut17train.conll",
    "data.validation_path": "{data}/wnut17/emerging.dev.conll",
}
# On the built-in corpus: which area of the library a docstring belongs to. Heads start fresh, whatever is there.
AREA = TINY | WARM_UP | {"checkpoint.init_heads": "fresh", "checkpoint.init_skip": (), "checkpoint.init_new": ()}


def fine_tuning(config: str, steps: int, *parts: dict, start: str = "@pretraining") -> dict:
    """Return a stage of `small` that fine-tunes the run `start` for so many steps; `parts` are keys of its config."""
    keys: dict[str, object] = {}
    for part in parts:
        keys |= part
    return {"config": config, "set": keys | AT_THE_END | {"init_from": start, "training.num_steps": steps}}


# T5's tables, which share their columns and what they fine-tune on.
T5_COLUMNS = ("GLUE", "CNN/DM", "SQuAD", "SuperGLUE", "EnDe", "EnFr", "EnRo")
T5_TOO_LARGE = "its data is too large for two cores"
T5_BASELINE = (83.28, 19.24, 80.88, 71.36, 26.98, 39.82, 27.65)
# `small` trains models of 1 + 1 layers of width 128: what two cores can teach something in three minutes. Deeper ones
# learn less in as many steps, and so do all with larger batches of as many tokens in all.
T5_NARROW = {
    "model.d_model": 128,
    "model.d_ff": 512,
    "model.num_heads": 4,
    "model.head_dim": 32,
    "model.num_layers": 1,
    "model.max_length": 64,
    "training.eval_every": 0,
    "checkpoint.every": 0,
}
T5_PRETRAINING = T5_NARROW | {
    "objective.sequence_length": 64,
    "training.num_steps": 3000,
    "training.batch_size": 8,
}
T5_FINE_TUNING = T5_NARROW | {
    "init_from": "@pretraining",
    "task.sequence_length": 48,
    "task.target_length": 8,
    "training.batch_size": 32,
    "optimizer.warmup_share": 0.1,
    "evaluation.batch_size": 128,
    "evaluation.max_examples": 0,
}
COLA_OF_T5 = {key: value for key, value in COLA.items() if key != "task.text_fields"}
_T5_SMALL = {
    "SST-2": {
        "config": "finetune/text_to_text:t5,sst2,small",
        "set": T5_FINE_TUNING | SST2 | {"task.words": {"0": "negative", "1": "positive"}, "training.num_steps": 800},
    },
    "CoLA": {
        "config": "finetune/text_to_text:t5,cola,small",
        "set": T5_FINE_TUNING
        | COLA_OF_T5
        | {
            "task.input": "cola sentence: {4}",
            "task.words": {"0": "unacceptable", "1": "acceptable"},
            "training.num_steps": 300,
        },
    },
}
# Stage, its config and, of several tasks in one run, each column with what the run logs of it.
T5_PAPER: dict[str, tuple[str, dict[str, str]]] = {
    "GLUE": (
        "glue",
        {
            "CoLA": "eval/cola/matthews",
            "SST-2": "eval/sst2/accuracy",
            "MRPC": "eval/mrpc/f1_binary",
            "QQP": "eval/qqp/f1_binary",
            "STS-B": "eval/stsb/pearson",
            "MNLI-m": "eval/mnli/accuracy",
            "QNLI": "eval/qnli/accuracy",
            "RTE": "eval/rte/accuracy",
        },
    ),
    "CNN/DM": ("cnn_dailymail", {"CNN/DM": "eval/rouge2"}),
    "SQuAD": ("squad", {"SQuAD": "eval/squad_em"}),
    "SuperGLUE": (
        "super_glue",
        {
            "BoolQ": "eval/boolq/accuracy",
            "CB": "eval/cb/f1",
            "COPA": "eval/copa/accuracy",
            "MultiRC": "eval/multirc/f1_binary",
            "RTE (SuperGLUE)": "eval/rte/accuracy",
            "WiC": "eval/wic/accuracy",
        },
    ),
    "EnDe": ("en_de", {"EnDe": "eval/bleu_intl"}),
    "EnFr": ("en_fr", {"EnFr": "eval/bleu_intl"}),
    "EnRo": ("en_ro", {"EnRo": "eval/bleu_intl"}),
}
UNITS = {"eval/rouge2": 1, "eval/bleu_intl": 1}  # these are logged as per cent
T5_NOTES = {
    "smoke": [],
    "small": [
        "Models of 1 + 1 layers of width 128 instead of 12 + 12 of 768, pretrained on English novels with rows of 64 "
        "tokens. GLUE is the mean of SST-2 and CoLA alone, each fine-tuned by itself; the paper fine-tunes on all of "
        "GLUE at once and takes the best checkpoint, this the last one.",
        "In CoLA's 300 steps so small a model learns next to nothing: its Matthews correlation is near 0.",
    ],
    "paper": [
        "Each task has one metric (the paper averages two where there are two), ReCoRD and WSC are left out of "
        "SuperGLUE, and the last checkpoint is judged, where the paper chooses the best one of each task.",
    ],
}


def t5_scores(*scores: float) -> dict[str, float]:
    """Return a row of one of T5's tables, in the order of their columns."""
    return dict(zip(T5_COLUMNS, scores, strict=True))


def t5_stages(scale: str, objective: dict) -> dict[str, dict]:
    """Return T5's stages: pretraining with the keys of the base row's `objective`, and the fine-tunings that judge."""
    if scale == "smoke":
        short = {"objective.sequence_length": 64, "training.batch_size": 8}
        tiny = TINY | {"init_from": "@pretraining", "task.sequence_length": 64, "training.batch_size": 8}
        return {
            "pretraining": {"config": "t5:smoke", "set": TINY | short | objective},
            "area": {"config": "finetune/area:t5,smoke", "set": tiny},
        }
    if scale == "small":
        return {"pretraining": {"config": "t5:small", "set": NOVELS | T5_PRETRAINING | objective}} | _T5_SMALL
    fine_tunings = {
        name: {"config": f"finetune/text_to_text:t5,{task},base", "set": {"init_from": "@pretraining"}}
        for name, (task, _) in T5_PAPER.items()
    }
    return {"pretraining": {"config": "t5:base", "set": objective}} | fine_tunings


def t5_columns(scale: str) -> dict[str, dict]:
    """Return T5's columns: the paper's, and the tasks of which GLUE and SuperGLUE are means."""
    if scale == "smoke":
        return {"area": judged("area", "eval/accuracy", paper="GLUE")}
    if scale == "small":
        return {
            "GLUE": {"mean_of": ["SST-2", "CoLA"], "mode": "max"},
            "SST-2": judged("SST-2", "eval/accuracy"),
            "CoLA": judged("CoLA", "eval/matthews"),
        } | {name: {"missing": T5_TOO_LARGE} for name in T5_COLUMNS if name != "GLUE"}
    columns: dict[str, dict] = {}
    for stage, (_, metrics) in T5_PAPER.items():
        if len(metrics) > 1:
            columns[stage] = {"mean_of": list(metrics), "mode": "max"}
        columns |= {name: judged(stage, metric, scale=UNITS.get(metric, 100)) for name, metric in metrics.items()}
    return columns


# A stage that judges another stage's parameters by what it did not log: one step with a rate of 0 changes none.
JUDGING = {
    "training.num_steps": 1,
    "training.eval_every": 0,
    "checkpoint.every": 0,
    "optimizer.learning_rate": 0.0,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
}


def everywhere(stages: dict[str, dict], changes: dict) -> dict[str, dict]:
    """Return a row's `set` that changes the same keys in every stage, as keys of the model have to."""
    return {name: dict(changes) for name in stages}
