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
