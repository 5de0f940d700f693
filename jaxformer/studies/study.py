"""A sweep's folder: `study.json`, which says what is searched, how, and over which config, and `trials/ID/`, each an
ordinary run directory beside a `trial.json` with its point, its state and what it gave."""

import dataclasses
import datetime
import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxformer import __version__
from jaxformer import config as configs
from jaxformer.checkpoint import LOWER_IS_BETTER
from jaxformer.checks import check_choice, check_range
from jaxformer.config import Config
from jaxformer.devices import has_peers, is_first
from jaxformer.errors import UserError
from jaxformer.report import COSTS, KIND, OVER, STUDY, TRIALS, read_study_record, read_sweep
from jaxformer.runs import LEFT_OUT, git_revision, identity_of, package_versions
from jaxformer.storage import finite, folders_in, is_run, write_json
from jaxformer.studies.space import Point, Space, described, overrides_of, read_space

SAMPLERS = ("grid", "random", "tpe", "cma_es")
PRUNERS = ("none", "median", "halving", "hyperband")
KEEP = ("best", "all", "none")
_FREE = ("trials", "keep", "attempts")  # settings that may change while a study goes on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a space is searched, and by what.

    `metrics` are what a run logs last ("eval/loss") or costs ("energy_kwh"), `modes` say of each whether min or max is
    sought; of several the Pareto front is. A failed run is tried `attempts` times.
    """

    metrics: tuple[str, ...] = ()  # (): that of the config's best checkpoint
    modes: tuple[str, ...] = ()
    sampler: str = ""  # "": grid for lists, tpe where there are ranges
    trials: int = 0  # points; 0: all of a grid
    search_seed: int = 0
    pruner: str = "none"
    keep: str = "best"  # whose checkpoints
    attempts: int = 2

    def __post_init__(self) -> None:
        if self.sampler:
            check_choice("--sampler", self.sampler, SAMPLERS)
        check_choice("--pruner", self.pruner, PRUNERS)
        check_choice("--keep", self.keep, KEEP)
        check_range("--trials", self.trials, at_least=0)
        check_range("--attempts", self.attempts, at_least=1)
        check_range("--search-seed", self.search_seed, at_least=0)

    def resolved(self, space: Space, config: Config) -> "Settings":
        """Return a copy with every field valued. Raises UserError for what does not go together."""
        names, modes = [], []
        best = config.checkpoint
        for text in self.metrics or (f"{best.best_metric}:{best.best_mode}",):
            name, _, mode = text.partition(":")
            if name not in COSTS and not name.startswith(("eval/", "train/")):
                raise UserError(
                    f"--metric: '{name}' is nothing that a run logs or costs; give eval/… or train/… as its "
                    f"metrics.jsonl has it, or {', '.join(COSTS)}"
                )
            lower = name in COSTS or name.endswith((*LOWER_IS_BETTER, "seconds"))
            given = best.best_mode if name == best.best_metric else "min" if lower else "max"
            check_choice(f"--metric={name}:", mode or given, ("min", "max"))
            names.append(name)
            modes.append(mode or given)
        sampler = self.sampler or ("tpe" if space.has_ranges else "grid")
        if sampler == "grid":
            space.grid()
        elif sampler != "random" and space.points:
            raise UserError(f"--sampler={sampler}: it makes points of lists and ranges, and here they are given")
        elif not self.trials:
            raise UserError(f"--trials: how many points {sampler} shall try has no default; give --trials=N")
        settings = dataclasses.replace(self, metrics=tuple(names), modes=tuple(modes), sampler=sampler)
        settings._check_pruner(config)
        return settings

    def _check_pruner(self, config: Config) -> None:
        if self.pruner == "none":
            return
        if len(self.metrics) > 1:
            raise UserError(f"--pruner={self.pruner}: of several metrics none decides; give one --metric, or no pruner")
        if not self.metrics[0].startswith("eval/"):
            raise UserError(f"--pruner={self.pruner}: it goes by evaluations on the way; {self.metrics[0]} is none")
        every, steps = config.training.eval_every, config.training.num_steps
        if not 0 < every < steps:
            raise UserError(
                f"--pruner={self.pruner}: it goes by evaluations on the way, and training.eval_every={every} of "
                f"{steps} steps gives none; set --config.training.eval_every"
            )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What makes a config: an experiment's name or file with overrides, or sections of a config as data."""

    spec: str
    overrides: tuple[str, ...] = ()
    sections: Mapping[str, Any] | None = None

    def config(self, more: Sequence[str] = ()) -> Config:
        words = (*self.overrides, *more)
        if self.sections is None:
            return configs.load(self.spec, words)
        return configs.resolve(self.sections, words, name=self.spec)

    def to_dict(self) -> dict[str, Any]:
        return {"spec": self.spec, "overrides": list(self.overrides), "sections": self.sections}

    @property
    def command(self) -> list[str]:
        """The words that train it, or [] where no command line can say it."""
        if self.sections is not None:
            return []
        return ["jaxformer", "train", f"--config={self.spec}", *(f"--config.{word}" for word in self.overrides)]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a study: a point with one seed."""

    folder: Path
    point: Point
    seed: int
    config: Config

    @property
    def values(self) -> dict[str, Any]:
        """The point as the config has it, with the types of its keys."""
        known = configs.flat(self.config.to_dict())
        return {key: known.get(key, value) for key, value in self.point.items()}


@dataclasses.dataclass(frozen=True)
class Study:
    """A study that is open for work. `storage` is the URL of its database, or "" for the journal in its folder."""

    folder: Path
    name: str
    experiment: Experiment
    space: Space
    settings: Settings
    seeds: tuple[int, ...]
    storage: str = ""
    _known: dict[str, Trial] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def trial(self, point: Point, seed: int) -> Trial:
        """Return a run of the study. Raises UserError, with its values, where it cannot be one."""
        words = described(point, seed)
        if words not in self._known:
            try:
                config = self.experiment.config([*overrides_of(point), f"seed={seed}"])
                found = identity_of(config, self.space.keys)
            except UserError as error:
                raise UserError(f"trial {words}: {error}") from error
            self._known[words] = Trial(self.folder / TRIALS / found, point, seed, config)
        return self._known[words]

    def fixed_points(self) -> list[Point] | None:
        """Return the points of a grid, or those drawn at random, which nothing that is found changes; None where each
        follows from what others gave."""
        if self.settings.sampler == "grid":
            points = self.space.grid()
            return points[: self.settings.trials or len(points)]
        if self.settings.sampler == "random":
            return self.space.drawn(self.settings.search_seed, self.settings.trials)
        return None

    def trials(self, point: Point) -> list[Trial]:
        """Return the runs of a point, one for each seed."""
        return [self.trial(point, seed) for seed in self.seeds]


def open_study(
    folder: Path, experiment: Experiment, space: Mapping[str, Any], settings: Settings, storage: str = "",
    allow_change: bool = False,
) -> Study:  # fmt: skip
    """Make a study, or go on with the one that lies in `folder`.

    Raises UserError, before anything is written, for what `planned_study` refuses, and for a folder that holds another
    study, or anything else.
    """
    study = planned_study(folder, experiment, space, settings, storage)
    if has_peers() and not is_first():  # who writes what all share
        return study
    record = _record(study, experiment.config())
    if (folder / STUDY).exists():
        before = read_study_record(folder)
        differing = differences(before, record)
        found = differing and any(trial.state in OVER for trial in read_sweep(folder).trials)
        if found and not allow_change:  # one that has found nothing yet may become another
            raise UserError(
                f"{folder} holds another study ({'; '.join(differing)}); choose another --study, or go on with "
                "--allow-config-change: equal trials are kept, and the others trained anew"
            )
        kept = {"created": before.get("created"), "command": before.get("command")}
        if json.loads(json.dumps(finite(record | kept))) != before:
            write_json(folder / STUDY, record | ({} if differing else kept))
        return study
    check_folder(folder)
    write_json(folder / STUDY, record)
    return study


def planned_study(
    folder: Path, experiment: Experiment, space: Mapping[str, Any], settings: Settings, storage: str = ""
) -> Study:
    """Return a study as it will be, of which nothing is written yet. Raises UserError for a space that is none, and for
    a point of it that cannot be trained."""
    read, config = read_space(space), experiment.config()
    study = _described(folder, experiment, read, settings.resolved(read, config), config, storage)
    for point in read.checked():
        for trial in study.trials(point)[:1]:
            settings.resolved(read, trial.config)
    return study


def read_study(folder: Path, storage: str = "") -> Study:
    """Return the study that lies in a folder, to go on with it. Raises UserError where there is none, and where its
    experiment gives another config by now."""
    record = read_study_record(folder)
    made = record["experiment"]
    experiment = Experiment(made["spec"], tuple(made["overrides"]), made["sections"])
    config, space = experiment.config(), read_space(record["space"])
    fields: dict[str, Any] = dict(record["settings"])
    fields |= {name: tuple(fields[name]) for name in ("metrics", "modes")}
    study = _described(folder, experiment, space, Settings(**fields), config, storage or record["storage"])
    if differing := differences(record, _record(study, config)):
        raise UserError(
            f"{folder}: its experiment gives another config by now ({'; '.join(differing)}); bring back what it was, "
            "or give the whole command with --allow-config-change"
        )
    return study


def check_folder(folder: Path) -> None:
    if is_run(folder):
        raise UserError(f"--study: {folder} is a run; a study needs a folder of its own")
    if others := [path.name for path in folders_in(folder) if not path.name.startswith(".")]:
        raise UserError(f"--study: {folder} has no {STUDY} but holds {', '.join(others[:5])}; choose another folder")


def _described(
    folder: Path, experiment: Experiment, space: Space, settings: Settings, config: Config, storage: str
) -> Study:
    known = json.dumps(finite(_identity(space, settings, config)), sort_keys=True, default=str)
    name = f"{folder.name}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"
    return Study(folder, name, experiment, space, settings, space.seeds or (config.seed,), storage)


def _identity(space: Space, settings: Settings, config: Config) -> dict[str, Any]:
    """Return what makes a study another one when it changes."""
    fields = {name: value for name, value in dataclasses.asdict(settings).items() if name not in _FREE}
    keys = {key: value for key, value in configs.flat(config.to_dict()).items() if not key.startswith(LEFT_OUT)}
    return {"space": space.to_dict(), "settings": fields, "config": keys}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one entry for everything by which two records of a study are not of the same one."""
    lines = []
    for section in ("config", "settings", "space"):
        pairs = [json.loads(json.dumps(finite(record[section]))) for record in (before, now)]
        if section == "config":
            pairs = [configs.flat(pair) for pair in pairs]
        for key in sorted({*pairs[0], *pairs[1]}):
            if key in _FREE or (section == "config" and key.startswith(LEFT_OUT)):
                continue
            old, new = (pair.get(key, "(absent)") for pair in pairs)
            if old != new:
                lines.append(f"{section} {key}: {_brief(old)} -> {_brief(new)}")
    return lines


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("values", value)
    return json.dumps(value) if isinstance(value, (list, tuple, Mapping)) else str(value)


def _record(study: Study, config: Config) -> dict[str, Any]:
    fixed = study.fixed_points()
    return {
        "kind": KIND,
        "name": study.name,
        "experiment": study.experiment.to_dict(),
        "config": config.to_dict(),
        "space": study.space.to_dict(),
        "seeds": list(study.seeds),
        "points": study.settings.trials if fixed is None else len(fixed),
        "settings": dataclasses.asdict(study.settings),
        "storage": without_password(study.storage),
        "version": __version__,
        "git_revision": git_revision(),
        "packages": package_versions(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["jaxformer", *sys.argv[1:]]),
    }


def without_password(url: str) -> str:
    """Return a database's URL as it may be shown and kept."""
    scheme, separator, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    return f"{scheme}{separator}{user}{at}{place}" if colon else url
