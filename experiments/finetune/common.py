"""What the fine-tuning experiments share: reading ARG, and what each paper fine-tunes with."""

from ml_collections import ConfigDict

from .. import bart, bert, distilbert, gpt, gpt2, gpt3, t5, transformer

FAMILIES = {
    "gpt": gpt,
    "gpt2": gpt2,
    "gpt3": gpt3,
    "bert": bert,
    "distilbert": distilbert,
    "transformer": transformer,
    "bart": bart,
    "t5": t5,
}
DECODERS, ENCODERS = ("gpt", "gpt2", "gpt3"), ("bert", "distilbert")
KINDS = dict.fromkeys(FAMILIES, "encoder_decoder") | dict.fromkeys(DECODERS, "decoder_only")
KINDS |= dict.fromkeys(ENCODERS, "encoder_only")

# The share of the steps that warms up is that of each paper's code.
RATES: dict[str, dict] = {
    "gpt": {"learning_rate": 6.25e-5, "schedule": "linear_product", "warmup_share": 0.002},
    "bert": {"learning_rate": 3e-5, "schedule": "linear", "warmup_share": 0.1},  # of 5e-5, 4e-5, 3e-5 and 2e-5
    "bart": {"learning_rate": 1e-5, "schedule": "linear_from_peak", "warmup_share": 0.06},
    "t5": {"learning_rate": 1e-3, "schedule": "constant", "warmup_share": 0.0},
}
RATES |= {
    "gpt2": RATES["gpt"],  # not published: GPT's
    "gpt3": RATES["gpt"],  # not published: GPT's
    "distilbert": RATES["bert"],
    "transformer": RATES["t5"],  # not published: it is not fine-tuned
}
# How T5 writes translations and summaries (section 3.7); all else greedily.
T5_BEAMS: dict[str, object] = {"num_beams": 4, "length_penalty": "gnmt", "length_alpha": 0.6}
SHRUNK_RATES = {"t5": 1e-2, "bart": 5e-4, "transformer": 1e-3}  # of models of smoke or small size; others: 5e-4


def begin(arg: str, default: str, families: tuple[str, ...]) -> tuple[ConfigDict, str, list[str]]:
    """Return (config without a task, family, further words) of ARG: FAMILY, and then words of that family's experiment.

    Without a size or a scale the model is that of the run that this one starts from. Raises ValueError for a family
    that is not among `families`.
    """
    family, *words = (arg or default).split(",")
    if family not in families:
        raise ValueError(f"'{arg}': the first word is one of {', '.join(families)}")
    config = FAMILIES[family].get_config(",".join(words))
    del config.objective
    if "distillation" in config:
        del config.distillation
    if not words:
        config.model = {"preset": "init_from", "family": KINDS[family]}
    config.training.update({"phases": (), "accumulation_steps": 1, "logits_chunk": 0})
    config.evaluation.max_examples = 0
    config.checkpoint.update({"init_heads": "fresh", "init_skip": (), "init_new": ()})
    return config, family, words


def train(config: ConfigDict, family: str, words: list[str], examples: int, epochs: float, batch_size: int) -> None:
    """Set how long a run takes, and its optimizer: `epochs` of so many examples. For data of your own:
    --config.training.num_steps=EPOCHS x EXAMPLES / BATCH_SIZE."""
    steps = max(1, round(epochs * examples / batch_size))
    rates = dict(RATES[family])
    if {"smoke", "small"} & set(words):
        rates["learning_rate"] = SHRUNK_RATES.get(family, 5e-4)
    config.optimizer.update(rates | {"warmup_steps": 0})
    config.training.update({"num_steps": steps, "batch_size": batch_size, "log_every": 10})
    config.training.eval_every = config.checkpoint.every = max(1, steps // 6)


def tfds(dataset: str, **keys: object) -> dict:
    """Return the data section of a TFDS data set with a validation split of its own."""
    return {"name": "tfds", "dataset": dataset, "validation_split": "validation"} | keys
