"""What every experiment file shares: reading ARG, and the sections that do not depend on the system."""

from ml_collections import ConfigDict

SCALES = ("smoke", "small")
# Stored rows of the vocabulary: accelerators multiply in tiles of 128. The extra ones are masked, and not exported.
VOCAB_MULTIPLE = 128


def parse_arg(arg: str, sizes: tuple[str, ...], default: str) -> tuple[str, str]:
    """Return (size, scale) of a comma-separated ARG: at most one of `sizes`, at most one of smoke and small.

    Raises ValueError, with what is allowed, for anything else.
    """
    words = [word for word in (arg or "").split(",") if word]
    unknown = [word for word in words if word not in (*sizes, *SCALES)]
    size, scale = [w for w in words if w in sizes], [w for w in words if w in SCALES]
    if unknown or len(size) > 1 or len(scale) > 1:
        raise ValueError(f"'{arg}': give at most one of {', '.join(sizes)} and at most one of smoke, small")
    return (size or [default])[0], (scale or [""])[0]


def mixture(weights: dict[str, float]) -> dict:
    """Return the data section that draws from TFDS datasets {NAME[/CONFIG]: weight}.

    They are read from ~/tensorflow_datasets, prepared as ArrayRecord. What TFDS has comes from `tfds build NAME
    --file_format=array_record`; a corpus that it does not have (each experiment says which) is a folder of that name
    there, which you prepare, with one field "text".
    """
    members = [{"name": "tfds", "dataset": name, "weight": weight} for name, weight in weights.items()]
    return {"name": "mixture", "members": members}


def ramp(start: int, full: int, rows: int, stages: int, multiple: int) -> list[dict]:
    """Return phases in which the batch grows from `start` towards `full` rows, linearly in the `rows` drawn: `stages`
    of equally many rows, with batches that are multiples of `multiple` (which devices have to share)."""
    sizes = [start + (full - start) * stage // stages // multiple * multiple for stage in range(stages)]
    return [{"steps": rows // stages // size, "batch_size": size} for size in sizes]


def steps_for(rows: int, phases: list[dict], full: int) -> int:
    """Return how many steps it takes to draw so many rows."""
    steps = 0
    for phase in phases:
        drawn = phase["steps"] * phase["batch_size"]
        if rows < drawn:
            return steps + rows // phase["batch_size"]
        steps, rows = steps + phase["steps"], rows - drawn
    return steps + rows // full


def base() -> ConfigDict:
    """Return the skeleton of a pretraining experiment.

    Its `data` is the paper's, which is not small and often not public. Your own text instead:
    --config.data.name=text --config.data.path=FILE_OR_FOLDER
    """
    return ConfigDict(
        {
            "seed": 0,
            "init_from": "",
            "model": {},
            "objective": {},
            "tokenizer": {},
            "data": {},
            "optimizer": {},
            "training": {"log_every": 100, "eval_every": 5000},
            "sharding": {},
            "checkpoint": {"every": 5000},
            "evaluation": {"max_examples": 10_000},  # of corpora so large, a part will do
            "generation": {},
            "footprint": {},
        }
    )


def shrink(config: ConfigDict, scale: str) -> None:
    """Make a laptop's run of a paper's: about a minute for smoke, about ten for small, on two CPU cores.

    Its text is the built-in corpus, the documentation that every Python carries.
    """
    sizes = {
        "smoke": {"d_model": 128, "d_ff": 512, "num_heads": 4, "head_dim": 32, "num_layers": 2},
        "small": {"d_model": 256, "d_ff": 1024, "num_heads": 4, "head_dim": 64, "num_layers": 4},
    }
    steps = {"smoke": 300, "small": 600}
    config.data = {"name": "stdlib_docs"}
    config.model.update(sizes[scale])
    # No dropout: so short a run underfits.
    config.model.update({"vocab_size": 4096, "vocab_multiple": 1, "dropout": 0.0, "attention_dropout": 0.0})
    config.tokenizer.vocab_size = 4096
    config.training.update({"num_steps": steps[scale], "log_every": 10, "eval_every": steps[scale] // 3})
    config.training.update({"phases": (), "logits_chunk": 0})
    config.checkpoint.every = steps[scale] // 3
    config.evaluation.max_examples = 256
