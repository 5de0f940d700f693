"""A run directory: everything a run is, written as it goes and read back by resume, evaluation, reports and `load`."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np
from tensorboardX import SummaryWriter

from jaxformer import config as configs
from jaxformer.build import bind, build_model, held_out_batches, label_names
from jaxformer.checkpoint import restore_params
from jaxformer.config import Config
from jaxformer.data.prepare import prepare
from jaxformer.errors import UserError, disk_errors
from jaxformer.evaluation import combined, evaluate
from jaxformer.generation import GenerationConfig, generate, require_generator
from jaxformer.models.model import Model, Params
from jaxformer.runtime import prepare_process
from jaxformer.step import make_eval_step
from jaxformer.storage import check_bucket, is_remote, location, store_errors
from jaxformer.tokenizers import Tokenizer, load_tokenizer

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


def read_record(workdir: Path) -> dict[str, Any]:
    """Return a run's `config.json`. Raises UserError when the folder is no run or the file is damaged."""
    path = workdir / "config.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        check_bucket(workdir)
        raise UserError(f"{workdir} is not a run: it has no config.json; give a folder that `train` wrote") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it or start a new run elsewhere") from error
    if isinstance(record, dict) and "model_type" in record:
        raise UserError(f"{workdir} is a folder in Hugging Face format; `jaxformer import` makes a run of it")
    if not isinstance(record, dict) or not record.keys() >= {"name", "config", "labels"}:
        raise UserError(f"{path} does not describe a run; give a folder that `train` wrote")
    return record


def is_run(workdir: Path) -> bool:
    return (workdir / "config.json").exists()


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


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a crash leaves the old file or the new one, never half of one."""
    if is_remote(path):
        path.write_text(json.dumps(content, indent=1) + "\n")
        return
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        temporary.replace(path)


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class MetricsLog:
    """`metrics.jsonl` and the same scalars for TensorBoard. On resume, lines after the restored step are cut.

    Of several processes the first alone `writes`.
    """

    def __init__(self, workdir: Path, resume_step: int, writes: bool = True) -> None:
        self.path, self.writes = workdir / "metrics.jsonl", writes
        self._judged: set[int] = set()
        if not writes:
            return
        with disk_errors(self.path):
            self._cut(resume_step)
            for entry in read_metrics(workdir):
                self._note(entry["step"], entry)
            self._file: TextIO = self.path.open("a")
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1)

    def _cut(self, step: int) -> None:
        """Keep the whole lines of steps up to `step`, so that no step stands twice."""
        kept = [json.dumps(entry) + "\n" for entry in read_metrics(self.path.parent) if entry["step"] <= step]
        temporary = self.path.with_name(f".metrics.{os.getpid()}")
        temporary.write_text("".join(kept))
        temporary.replace(self.path)

    def last(self, name: str) -> float:
        """Return the newest logged value of `name`, 0 where there is none."""
        values = [entry[name] for entry in read_metrics(self.path.parent) if name in entry]
        return float(values[-1]) if values else 0.0

    def judged(self, step: int) -> bool:
        """Say whether an evaluation of this step is logged; the process that writes knows."""
        return step in self._judged

    def _note(self, step: int, values: Iterable[str]) -> None:
        if any(name.startswith("eval/") for name in values):
            self._judged.add(step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if not self.writes:
            return
        with disk_errors(self.path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            self._note(step, values)
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if not self.writes:
            return
        with disk_errors(self.path):
            self._file.close()
            self._board.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the entries of `metrics.jsonl`; a last line that a crash tore is left out."""
    path = workdir / "metrics.jsonl"
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained model, ready to use: `model.apply(params, batch)`, `generate(texts)`."""

    model: Model
    params: Params
    tokenizer: Tokenizer
    config: Config
    labels: tuple[str, ...]
    step: int

    def generate(self, prompts: Sequence[str], generation: GenerationConfig | None = None) -> list[str]:
        """Return what the model writes after each prompt (or, for an encoder-decoder, in answer to it)."""
        require_generator(self.model.config.family)
        vocabulary, reads = self.tokenizer.vocabulary, self.model.config.family == "encoder_decoder"
        # What an encoder reads has the tokens around it that it had in training.
        rows = [self.tokenizer.encode(prompt, special=reads) for prompt in prompts]
        if not reads and getattr(self.config.supervision, "delimited", False):
            # A single stack that learnt to read one text and write another: this token ended what it read.
            rows = [np.append(row, vocabulary.id("end")).astype(np.int32) for row in rows]
        answers = generate(
            self.model,
            self.params,
            rows,
            generation or self.config.generation,
            end_id=vocabulary.special.get("end", -1),  # GPT's own vocabulary has no end: it writes on
            start_id=vocabulary.id(self.model.config.decoder_start),
        )
        if reads:
            return [self.tokenizer.decode(ids) for ids in answers]
        return [self._continuation(row, ids) for row, ids in zip(rows, answers, strict=True)]

    def _continuation(self, row: np.ndarray, ids: np.ndarray) -> str:
        """Return the text of ids behind a row's: whether a space stands between the two, only both together tell."""
        before, both = self.tokenizer.decode(row), self.tokenizer.decode(np.append(row, ids))
        return both[len(before) :] if both.startswith(before) else self.tokenizer.decode(ids)


class OpenRun(NamedTuple):
    """What a run directory says of its model, parameters apart."""

    model: Model
    tokenizer: Tokenizer
    config: Config
    labels: tuple[str, ...]


@store_errors()
def open_run(workdir: Path) -> OpenRun:
    """Read a run directory's config and tokenizer. Raises UserError for anything missing."""
    workdir = location(workdir)
    record = read_record(workdir)
    prepare_process()
    config = configs.resolve(record["config"], name=record["name"])
    tokenizer = load_tokenizer(workdir / "tokenizer.json")
    labels = tuple(record["labels"])
    return OpenRun(build_model(config, bind(config, tokenizer, labels)), tokenizer, config, labels)


@store_errors()
def load(run: str | Path) -> LoadedRun:
    """Load a run directory: its newest good checkpoint, tokenizer and config. Raises UserError for anything missing."""
    workdir = location(run)
    model, tokenizer, config, labels = open_run(workdir)
    params, table = restore_params(workdir, model.shapes)
    return LoadedRun(model, params, tokenizer, config, labels, table.step)


@dataclasses.dataclass(frozen=True)
class Relabelled:
    """Examples whose classes are renumbered: imported weights may number the labels in another order than ours."""

    examples: Any
    classes: Sequence[int]  # ours by the data's

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        example = self.examples[number]
        label = int(example["label"])
        return example | {"label": self.classes[label] if label >= 0 else label}


@store_errors()
def evaluate_run(workdir: Path, split: str, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Judge a run's newest checkpoint on a split of its data (or of the data that the overrides name) and write the
    result to `results/evaluate-SPLIT.json`."""
    run = load(workdir)
    config = configs.resolve(run.config.to_dict(), overrides, name=run.config.name, stored=True)
    if config.model != run.config.model:
        raise UserError("--config.model: a trained model cannot be changed; leave these overrides out")
    names = label_names(config)
    labels = run.labels or names  # imported weights that write their labels know none before they see the data
    if set(names) != set(labels):
        raise UserError(f"data: its labels {names} are not those that the run learnt, {labels}")
    supervision = bind(config, run.tokenizer, labels)
    parts = []
    eval_step = jax.jit(make_eval_step(run.model, supervision))
    for member in prepare(config.data, supervision, run.tokenizer, split, seed=config.seed):
        if names != labels:
            member = member._replace(rows=Relabelled(member.rows, [labels.index(name) for name in names]))
        found = evaluate(
            run.model,
            supervision,
            eval_step,
            run.params,
            held_out_batches(config, member),
            place=lambda batch: batch,
            tokenizer=run.tokenizer,
            labels=labels,
        )
        parts.append((member.name, member.weight, found))
    metrics = combined(parts)
    write_json(workdir / "results" / f"evaluate-{split}.json", {"step": run.step, "split": split, "metrics": metrics})
    return metrics
