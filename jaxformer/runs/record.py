"""The record of a run, `config.json`: what it is, what changed in it at which step, and whether it may go on with a
config."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxformer import config as configs
from jaxformer.checkpoint import checkpoint_of, content_of, finished_steps, named
from jaxformer.config import Config
from jaxformer.data import PLACES
from jaxformer.devices import flags_in_force
from jaxformer.errors import UserError
from jaxformer.runs.fingerprints import KEY
from jaxformer.runs.paths import anchored, paths_of, same_target, target
from jaxformer.storage import location, read_record, write_json
from jaxformer.training import schedule

# What may differ between the stored config and the one that resumes the run: its length, what is logged and judged,
# where and how fast it runs. None of these changes what a step computes beyond rounding (and, of attention, which of
# its weights dropout drops).
CHANGEABLE = (
    "training.num_steps",
    "training.log_every",
    "training.eval_every",
    "training.patience",
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
    in which `config` departs from the run's own, but for those that may change, and the learning rates that another
    length of the run would change.

    Paths count by what they lead to. Those of which the run keeps a fingerprint do not count here: their content does,
    once it is read.
    """
    record = read_record(workdir)
    if record["name"].startswith(IMPORT):
        raise UserError(
            f"{workdir} holds imported weights, no training to go on with; "
            f"choose another --workdir and start from them with --config.init_from={workdir}"
        )
    if allow_change:
        return
    stored, known, rates = _as_it_was(record["config"]), dict(record.get(KEY, {})), []
    steps = finished_steps(location(workdir) / "checkpoints")
    with contextlib.suppress(UserError):  # keys that are newer than the run had their default values
        before = configs.resolve(stored, name=record["name"], defined=config.defined)
        stored, rates = before.to_dict(), other_rates(before, config, steps[-1]) if steps else []
    wanted = config.to_dict()
    if record.get("defined") is not None and config.defined is not None:
        one, other = {"sha256": record["defined"]["sha256"]}, {"sha256": config.defined.sha256}
        stored, wanted = {**stored, "defined": one}, {**wanted, "defined": other}
    if steps:
        known["optimizer.decay_steps"] = ""  # counts by the rates that it gives
    if known.get("init_from") and wanted["init_from"] and not same_target(stored["init_from"], wanted["init_from"]):
        with contextlib.suppress(UserError):
            if content_of(checkpoint_of(wanted["init_from"])) == known["init_from"]:
                wanted["init_from"] = stored["init_from"]  # moved
    differing = [
        f"{key}: {old} -> {new}"
        for key, (old, new) in changes(_comparable(stored, known), _comparable(wanted, known)).items()
        if not key.startswith(CHANGEABLE)
    ]
    if differing or rates:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join([*differing, *rates])}); choose another "
            "--workdir, or resume it with --allow-config-change"
        )


def other_rates(before: Config, config: Config, step: int) -> list[str]:
    """Return one line with the learning rates of both configs where a run that goes on from `step` would have another
    rate at some step; [] where it would not, or has no step to go."""
    lengths = [one.training.num_steps for one in (before, config)]
    old, new = (schedule(one.optimizer, length) for one, length in zip((before, config), lengths, strict=True))
    end = lengths[1]
    looked_at = {*range(step, end, max((end - step) // 1000, 1)), min(lengths[0], end - 1), end - 1}
    differing = [done for done in sorted(looked_at) if step <= done < end and old(done) != new(done)]
    if not differing:
        return []
    at = differing[0]
    hint = ""
    if lengths[0] != end and before.optimizer == config.optimizer:
        hint = f"; optimizer.decay_steps={lengths[0]} keeps the decay as it was"
    return [
        f"training.num_steps: {lengths[0]} -> {end}, with which the learning rate of step {at + 1} would be "
        f"{new(at):.4g} instead of {old(at):.4g}{hint}"
    ]


def _as_it_was(config: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded config with the keys that it lacks and whose default is not what it did."""
    tokenizer = config.get("tokenizer", {})
    if tokenizer.get("name") == "wordpiece" and "lowercase" in tokenizer:  # lower case took the accents off
        return config | {"tokenizer": {"strip_accents": tokenizer["lowercase"]} | tokenizer}
    return config


_ABSENT = "(absent)"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {key: (old, new)} of what differs."""
    pairs = {key: (before.get(key, _ABSENT), now.get(key, _ABSENT)) for key in sorted(before.keys() | now.keys())}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _comparable(config: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return a config's keys with one spelling of each path, without those that are `known` by their fingerprints."""
    paths = {key: target(path) for key, path in paths_of(config).items()}
    keys = configs.flat(config) | {key: path for key, path in paths.items() if "[" not in key}
    left_out = {"optimizer.decay_steps", "distillation.teacher"} & set(known)
    left_out |= {"tokenizer.path"} if "tokenizer" in known else set()
    left_out |= {f"data.{place}" for place in PLACES} if "data" in known else set()
    if members := keys.get("data.members"):
        keys["data.members"] = tuple(
            {
                key: paths.get(f"data.members[{number}].{key}", value)
                for key, value in member.items()
                if f"data.{key}" not in left_out
            }
            for number, member in enumerate(members)
        )
    return {key: value for key, value in keys.items() if key not in left_out}


# Model fields that may differ from those of the run that parameters come from, without a word.
_FREE = ("preset", "vocab_multiple", "initialization", "dropout", "attention_dropout", "attention_output_dropout",
         "hidden_dropout", "final_dropout")  # fmt: skip


def compare_with_base(config: Config, labels: Sequence[str], restored: Iterable[str]) -> list[str]:
    """Return one line per slot in which this model departs from that of `init_from`, whose parameters it takes over.

    Raises UserError when the classifier among them (`restored` paths) tells other labels apart, or numbers them
    differently.
    """
    record = read_record(named(config.init_from)[0])
    heads = {path.split("/")[0] for path in restored if path.startswith(("row_heads/label/", "token_heads/label/"))}
    if heads and list(labels) != record["labels"]:
        raise UserError(
            f"init_from: its classifier knows the labels {', '.join(record['labels'])}, "
            f"the data has {', '.join(labels)}; "
            f"for a fresh one name '{heads.pop()}/label/.*' in checkpoint.init_skip and in checkpoint.init_new"
        )
    base = record["config"]["model"]
    return [
        f"model.{name} is {value!r} here and {base[name]!r} in {config.init_from}"
        for name, value in vars(config.model).items()
        if name not in _FREE and base.get(name, value) != value
    ]


def write_record(
    workdir: Path, config: Config, labels: Sequence[str], num_parameters: int, started: datetime.datetime | None = None,
    read: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write `config.json`: what this run is, on what it runs, when it `started` (None: now), and what is to be kept of
    what it has `read`: fingerprints, and what was left out."""
    record = _described(config, labels, num_parameters, read)
    record |= {"created": (started or datetime.datetime.now(datetime.UTC)).isoformat(timespec="seconds")}
    write_json(workdir / "config.json", record | {"segments": [_segment(0, record["created"], record["command"], {})]})


def write_segment(
    workdir: Path, config: Config, labels: Sequence[str], num_parameters: int, read: Mapping[str, Any], step: int,
) -> None:  # fmt: skip
    """Bring `config.json` up to date where a run goes on from `step` with anything changed: it says how the run trains
    now, and "segments" what changed at which step."""
    old = read_record(workdir)
    new = old | _described(config, labels, num_parameters, read)
    changed = changes(_facts(old), _facts(new))
    if KEY not in old:  # a run from before there were any: that it keeps them now is no change
        changed = {key: pair for key, pair in changed.items() if not key.startswith(f"{KEY}.")}
    elif not changed:
        return
    segments = old.get("segments") or [_segment(0, old.get("created"), old.get("command"), {})]
    if changed:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        segments = [*segments, _segment(step, now, new["command"], changed)]
    write_json(workdir / "config.json", new | {"segments": segments})


def _segment(step: int, time: Any, command: Any, changed: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {"from_step": step, "time": time, "command": command, "changed": dict(changed)}


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a record may change from one start to the next, each key with its section before it. Paths count
    by what they lead to."""
    sections = {key: record.get(key) or {} for key in (KEY, "packages", "device", "defined")}
    facts = configs.flat(record["config"]) | configs.flat(sections)
    facts |= configs.flat({f"{KEY}.data": facts.pop(f"{KEY}.data", None) or {}})
    facts |= {key: target(path) for key, path in paths_of(record["config"]).items() if "[" not in key}
    return facts | {key: record.get(key) for key in ("git_revision", "python")} | {"labels": tuple(record["labels"])}


def _described(
    config: Config, labels: Sequence[str], num_parameters: int, read: Mapping[str, Any] | None
) -> dict[str, Any]:
    device = jax.devices()[0]
    flags = flags_in_force(jax.default_backend(), os.environ)
    return {
        "name": config.name,
        "config": anchored(config).to_dict(),
        **({"defined": config.defined.to_dict()} if config.defined else {}),
        "labels": list(labels),
        **(read or {}),
        "num_parameters": num_parameters,
        "git_revision": git_revision(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
            **({"flags": flags} if flags else {}),
        },
        "command": shlex.join(["jaxformer", *sys.argv[1:]]),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide a run's numbers."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def git_revision() -> str | None:
    """Return the commit of this checkout, or None for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
