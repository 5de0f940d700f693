"""The record of a run, `config.json`: what it is, and whether it may go on with a config."""

import contextlib
import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax

from jaxformer import config as configs
from jaxformer.config import Config
from jaxformer.errors import UserError
from jaxformer.storage import location, read_record, write_json

# What may differ between the stored config and the one that resumes the run: its length, what is logged and judged,
# where and how fast it runs. None of these changes what a step computes beyond rounding.
CHANGEABLE = (
    "training.num_steps",
    "training.log_every",
    "training.eval_every",
    "training.unroll_layers",
    "training.remat",
    "training.attention",
    "training.logits_chunk",
    "training.skip_non_finite",
    "training.stuck_seconds",
    "data.workers",
    "sharding.",
    "checkpoint.",
    "evaluation.",
    "generation.",
    "footprint.",
)
IMPORT = "import "  # how the names of imported configs begin
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")


def check_resumable(workdir: Path, config: Config, allow_change: bool) -> None:
    """Raise UserError for imported weights, which no training left behind, and, unless `allow_change`, listing the keys
    in which `config` departs from the run's own, but for those that may change."""
    record = read_record(workdir)
    if record["name"].startswith(IMPORT):
        raise UserError(
            f"{workdir} holds imported weights, no training to go on with; "
            f"choose another --workdir and start from them with --config.init_from={workdir}"
        )
    if allow_change:
        return
    stored, wanted = configs.flat(record["config"]), configs.flat(config.to_dict())
    with contextlib.suppress(UserError):  # keys that are newer than the run had their default values
        stored = configs.flat(configs.resolve(record["config"], name=record["name"]).to_dict())
    absent = "(absent)"
    differing = [
        f"{key}: {stored.get(key, absent)} -> {wanted.get(key, absent)}"
        for key in sorted(stored.keys() | wanted.keys())
        if stored.get(key, absent) != wanted.get(key, absent) and not key.startswith(CHANGEABLE)
    ]
    if differing:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(differing)}); choose another --workdir, "
            "or resume it with --allow-config-change"
        )


# Model fields that may differ from those of the run that parameters come from, without a word.
_FREE = ("preset", "vocab_multiple", "initialization", "dropout", "attention_dropout", "attention_output_dropout",
         "hidden_dropout", "final_dropout")  # fmt: skip


def compare_with_base(config: Config, labels: Sequence[str], restored: Iterable[str]) -> list[str]:
    """Return one line per slot in which this model departs from that of `init_from`, whose parameters it takes over.

    Raises UserError when the classifier among them (`restored` paths) tells other labels apart, or numbers them
    differently.
    """
    record = read_record(location(config.init_from))
    if any(path.startswith("row_heads/label/") for path in restored) and list(labels) != record["labels"]:
        raise UserError(
            f"init_from: its classifier knows the labels {', '.join(record['labels'])}, "
            f"the data has {', '.join(labels)}; "
            "for a fresh one name 'row_heads/label/.*' in checkpoint.init_skip and in checkpoint.init_new"
        )
    base = record["config"]["model"]
    return [
        f"model.{name} is {value!r} here and {base[name]!r} in {config.init_from}"
        for name, value in vars(config.model).items()
        if name not in _FREE and base.get(name, value) != value
    ]


def write_record(
    workdir: Path, config: Config, labels: Sequence[str], num_parameters: int, started: datetime.datetime | None = None
) -> None:
    """Write `config.json`: what this run is, on what it runs, and when it `started` (None: now)."""
    device = jax.devices()[0]
    record = {
        "name": config.name,
        "config": config.to_dict(),
        "labels": list(labels),
        "num_parameters": num_parameters,
        "git_revision": _git_revision(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
        "command": shlex.join(["jaxformer", *sys.argv[1:]]),
        "created": (started or datetime.datetime.now(datetime.UTC)).isoformat(timespec="seconds"),
    }
    write_json(workdir / "config.json", record)


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
