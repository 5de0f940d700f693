"""What a checkpoint is worth for a task: fine-tunings from it and from scratch, over numbers of labels and seeds.

Each arm is two sweeps: ARM/rates tries its learning rates, with the most labels, on the validation split; ARM/labels
trains every number of labels with every seed, at the best rate, and judges on the test split. The arms differ in
`init_from` alone: both read the checkpoint's tokenizer and have its model's sizes.
"""

import dataclasses
import datetime
import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxformer import __version__
from jaxformer import config as configs
from jaxformer.checkpoint import checkpoint_of, content_of, named
from jaxformer.checks import check_choice, check_range
from jaxformer.config import Config
from jaxformer.data import check_split, digest, num_labelled, weighted_sources
from jaxformer.errors import UserError
from jaxformer.footprint import read_emissions
from jaxformer.report import (
    ARMS,
    LABELS,
    MOST,
    OVER,
    RATE,
    RATES,
    STEPS,
    STUDY,
    TRANSFER,
    Sweep,
    is_sweep,
    read_study_record,
    read_sweep,
    read_transfer,
)
from jaxformer.report import write_transfer_report as write_report
from jaxformer.runs import Display, git_revision
from jaxformer.storage import finite, is_remote, read_metrics, read_record, write_json
from jaxformer.studies.space import read_space
from jaxformer.studies.study import Experiment, Settings, check_folder, differences, open_study, planned_study
from jaxformer.studies.sweeping import train_study

SPLITS = ("test", "validation")
# Keys of the config that a transfer sets, and what says so instead.
_OWN = {
    "init_from": "give the run as --pretrained",
    "tokenizer": "both arms read the tokenizer of --pretrained",
    "data.max_examples": "--labels says how many there are",
    "evaluation.split": "--split says where the fine-tunings are judged",
}
_SHARES = (1 / 3, 1, 3)  # of the config's learning rate, where none are given


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """What is compared, and how.

    `labels` up to 1 are shares of the labelled training examples, larger ones are counts. `steps` are those of each, or
    one for all; (): `training.num_steps` with the most labels, and with fewer in proportion to the square root of their
    number, so that fewer labels are seen more often. `rates` are the learning rates that both arms try, but for
    `scratch_rates`; (): a third, one and three times the config's. The final seeds are those that follow the config's.
    """

    config: str
    pretrained: str
    overrides: tuple[str, ...] = ()
    labels: tuple[float, ...] = (0.01, 0.1, 1.0)
    steps: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    scratch_rates: tuple[float, ...] = ()
    seeds: int = 3
    metric: str = ""  # "": that of the config's best checkpoint
    split: str = "test"


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A transfer whose config is resolved: `sizes` are (labels, steps), the fewest labels first."""

    asked: Transfer
    config: Config  # of the arm from the checkpoint
    words: Mapping[str, tuple[str, ...]]  # each arm's overrides
    sizes: tuple[tuple[int, int], ...]
    rates: Mapping[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    metric: str
    mode: str

    @property
    def judged(self) -> Settings:
        return Settings(metrics=(f"{self.metric}:{self.mode}",), keep="none")

    def tuning(self, arm: str) -> tuple[Experiment, dict[str, Any], Settings]:
        """What finds an arm's learning rate."""
        most, steps = self.sizes[-1]
        words = (f"{MOST}={most}", f"{STEPS}={steps}", "training.eval_every=0", "evaluation.split=validation")
        return Experiment(self.asked.config, (*self.words[arm], *words)), {RATE: list(self.rates[arm])}, self.judged

    def training(self, arm: str, rate: float) -> tuple[Experiment, dict[str, Any], Settings]:
        """An arm's fine-tunings at its rate, as often judged on their way as the config says."""
        words = (f"{RATE}={rate}", f"evaluation.split={self.asked.split}")
        keys, values = [MOST, STEPS], [list(size) for size in self.sizes]
        if every := self.config.training.eval_every:
            keys.append("training.eval_every")
            values = [[*size, max(1, round(every * size[1] / self.config.training.num_steps))] for size in values]
        space = {", ".join(keys): values, "seed": list(self.seeds)}
        settings = dataclasses.replace(self.judged, keep="best")
        return Experiment(self.asked.config, (*self.words[arm], *words)), space, settings


def transfer(
    asked: Transfer, folder: Path, *, parallel: int = 1, quiet: bool = False, allow_change: bool = False
) -> dict[str, Any]:
    """Train what is left of a transfer, write its page into `folder`, and return what was found (see
    `report.read_transfer`).

    Raises UserError, before anything is trained, for what cannot be compared and for a folder that holds anything else;
    and where no run of an arm gives the metric.
    """
    plan = _planned(asked, folder)
    _open(plan, folder, allow_change)
    display = Display(quiet=quiet)
    most, tried = plan.sizes[-1][0], {arm: rates for arm, rates in plan.rates.items() if len(rates) > 1}
    if tried:
        number = sum(map(len, tried.values()))
        display.note(f"{number} trainings choose each arm's learning rate: {most:,} labels, the validation split")
    chosen = {arm: _best_rate(plan, arm, folder, parallel, quiet, display) for arm in ARMS}
    sizes = ", ".join(f"{labels:,} ({steps:,} steps)" for labels, steps in plan.sizes)
    number = len(ARMS) * len(plan.sizes) * len(plan.seeds)
    display.note(f"{number} fine-tunings, judged on the {asked.split} split by {plan.metric}: labels {sizes}")
    for arm, rate in chosen.items():
        display.note(f"{ARMS[arm]}, at a learning rate of {rate:g}:")
        # Whether the transfer may change is known by now.
        made = open_study(folder / arm / LABELS, *plan.training(arm, rate), allow_change=True)
        train_study(made, parallel, quiet=quiet)
    found = read_transfer(folder)
    write_report(found, folder / "report")
    return found


def _best_rate(plan: _Plan, arm: str, folder: Path, parallel: int, quiet: bool, display: Display) -> float:
    rates = plan.rates[arm]
    if len(rates) == 1:
        return rates[0]
    made = open_study(folder / arm / RATES, *plan.tuning(arm), allow_change=True)
    found = train_study(made, parallel, quiet=quiet)
    if found.best is None:
        raise UserError(f"{ARMS[arm].lower()}: no learning rate gives {plan.metric}; {_why(found)}")
    best = float(found.best.values[RATE])
    means = {point.values[RATE]: point.mean(plan.metric) for point in found.points}
    listed = ", ".join(f"{rate:g} ({mean:.4g})" for rate, mean in sorted(means.items()) if mean is not None)
    end = {min(rates): "lowest", max(rates): "highest"}.get(best) if len(rates) > 2 else None
    hint = f"; it is the {end} that was tried, and one beyond may be better (--rates)" if end else ""
    display.note(f"{ARMS[arm]}: {best:g} of {listed}{hint}")
    return best


def _why(sweep: Sweep) -> str:
    failed = [trial for trial in sweep.trials if trial.record.get("error")]
    return f"{failed[0].record['error']} ({failed[0].path / 'error.log'})" if failed else f"see {sweep.path}"


def _planned(asked: Transfer, folder: Path) -> _Plan:
    """Resolve what is asked. Raises UserError for what cannot be compared."""
    check_range("--seeds", asked.seeds, at_least=1)
    check_choice("--split", asked.split, SPLITS)
    for override in asked.overrides:
        for key, instead in _OWN.items():
            if override.partition("=")[0] == key or override.startswith(f"{key}."):
                raise UserError(f"--config.{key}: {instead}; leave it out")
    run = asked.pretrained if is_remote(asked.pretrained) else os.path.abspath(os.path.expanduser(asked.pretrained))
    try:
        checkpoint_of(run)
        home = named(run)[0]
        record = read_record(home)
    except UserError as error:
        raise UserError(f"--pretrained: {error}") from error
    # Every seed has labels of its own, and all held-out examples judge, unless the overrides say otherwise.
    shared = ["data.subset_seed=-1", "evaluation.max_examples=0", *asked.overrides]
    shared += ["tokenizer.name=file", f"tokenizer.path={home / 'tokenizer.json'}"]
    config = configs.load(asked.config, [*shared, f"init_from={run}"])
    _check(asked, config, record["config"]["model"])
    if warmup := config.optimizer.warmup_steps:  # as many labels, so many steps: what is kept is its share
        shared += ["optimizer.warmup_steps=0", f"optimizer.warmup_share={warmup / config.training.num_steps}"]
    model = [f"model.{key}={value}" for key, value in config.to_dict()["model"].items()]
    words = {"pretrained": (*shared, f"init_from={run}"), "scratch": (*shared, "init_from=", *model)}
    rates = asked.rates or tuple(float(f"{share * config.optimizer.learning_rate:.2g}") for share in _SHARES)
    settings = Settings(metrics=tuple(filter(None, [asked.metric]))).resolved(read_space({RATE: rates}), config)
    if not settings.metrics[0].startswith("eval/"):
        raise UserError(f"--metric: {settings.metrics[0]} does not judge a run; give eval/…")
    plan = _Plan(
        asked, config, words, _sizes(asked, config),
        {"pretrained": tuple(rates), "scratch": tuple(asked.scratch_rates or rates)},
        tuple(range(config.seed + 1, config.seed + 1 + asked.seeds)), settings.metrics[0], settings.modes[0],
    )  # fmt: skip
    for arm in ARMS:  # each is refused now for what cannot be trained
        planned_study(folder / arm / RATES, *plan.tuning(arm))
        planned_study(folder / arm / LABELS, *plan.training(arm, plan.rates[arm][0]))
    return plan


def _check(asked: Transfer, config: Config, model: Mapping[str, Any]) -> None:
    """Raise UserError for a config without labels of one source, a run of another family, and a split that is not."""
    if config.task is None or not config.supervision.labelled:
        raise UserError(f"--config={asked.config}: it learns no labels; a transfer is of a task, as finetune/… are")
    if len(weighted_sources(config.data)) > 1:
        raise UserError(f"--config={asked.config}: a transfer takes its labels of one source, and this is a mixture")
    if model["family"] != config.model.family:
        raise UserError(
            f"--pretrained: {asked.pretrained} is a model of {model['family']}, but --config={asked.config} is for "
            f"models of {config.model.family}; name its family there, or another run"
        )
    if model["d_model"] != config.model.d_model:
        raise UserError(
            f"--pretrained: {asked.pretrained} has a width of {model['d_model']} (model.d_model), and --config="
            f"{asked.config} one of {config.model.d_model}; give the run's own size or scale there, or another run"
        )
    if config.training.patience:
        raise UserError("training.patience: each number of labels has its steps, for both arms; leave it at 0")
    check_split(config.data, "validation")
    try:
        check_split(config.data, asked.split)
    except UserError as error:
        raise UserError(
            f"{error}; or judge on the split that the learning rates are chosen on: --split=validation"
        ) from error


def _sizes(asked: Transfer, config: Config) -> tuple[tuple[int, int], ...]:
    """Return (labels, steps) of every size, the smallest first."""
    total, counts = num_labelled(config.data, config.supervision), dict[int, float]()
    for given in asked.labels:
        count = round(given * total) if given <= 1 else int(given)
        if not given > 0 or (given > 1 and given != count):
            raise UserError(f"--labels: {given:g} is neither a share, up to 1, nor a number of labels")
        if not 1 <= count <= total:
            few = "gives not even one; give a larger share" if count < 1 else "asks for more; give fewer"
            raise UserError(f"--labels: there are {total:,} labelled examples to train on, and {given:g} {few}")
        if count in counts:
            raise UserError(
                f"--labels: {counts[count]:g} and {given:g} both are {count:,} labels; leave one of them out"
            )
        counts[count] = given
    if not counts:
        raise UserError("--labels: none are given; give shares, as 0.01,0.1,1, or numbers, as 50,200,800")
    steps = asked.steps
    if not steps:
        most = max(counts)
        steps = tuple(max(1, round(config.training.num_steps * math.sqrt(count / most))) for count in counts)
    elif len(steps) == 1:
        steps = steps * len(counts)
    if len(steps) != len(counts):
        raise UserError(
            f"--steps: {len(steps)} values for {len(counts)} of --labels; give one for each, or one for all"
        )
    return tuple(sorted(zip(counts, steps, strict=True)))


def _open(plan: _Plan, folder: Path, allow_change: bool) -> None:
    """Write what is asked into the folder. Raises UserError for one that holds another transfer, or anything else."""
    record = _record(plan)
    if not (folder / STUDY).exists():
        check_folder(folder)
        write_json(folder / STUDY, record)
        return
    before = read_study_record(folder, TRANSFER)
    for name, what in (("checkpoint", f"the checkpoint of {plan.asked.pretrained}"), ("data", "the data")):
        if before["settings"][name] != record["settings"][name]:
            raise UserError(f"{folder}: {what} changed since the transfer began; choose another --study")
    differing = differences(before, record)
    if differing and _has_found(folder) and not allow_change:
        raise UserError(
            f"{folder} holds another transfer ({'; '.join(differing)}); choose another --study, or go on with "
            "--allow-config-change: equal runs are kept, and the others trained anew"
        )
    if differing:
        write_json(folder / STUDY, record)


def _has_found(folder: Path) -> bool:
    places = [folder / arm / name for arm in ARMS for name in (RATES, LABELS)]
    return any(trial.state in OVER for place in places if is_sweep(place) for trial in read_sweep(place).trials)


def _record(plan: _Plan) -> dict[str, Any]:
    asked, home = plan.asked, named(plan.config.init_from)[0]
    record = {
        "kind": TRANSFER,
        "name": asked.config.rpartition("/")[2] if ".py" in asked.config else asked.config,
        "pretrained": asked.pretrained,
        "pretrained_folder": str(home),
        "pretraining": _pretraining(home),
        "config": plan.config.to_dict(),
        "space": {"labels": plan.sizes, "rates": plan.rates, "seeds": plan.seeds},
        "settings": {
            "metric": plan.metric,
            "mode": plan.mode,
            "split": asked.split,
            "checkpoint": content_of(checkpoint_of(plan.config.init_from)),
            "data": digest([list(read.values()) for _, read in sorted(plan.config.data.contents().items())]),
        },
        "version": __version__,
        "git_revision": git_revision(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["jaxformer", *sys.argv[1:]]),
    }
    stored: dict[str, Any] = json.loads(json.dumps(finite(record)))  # as it will be read
    return stored


def _pretraining(home: Path) -> dict[str, float | None]:
    """Return what the run that is compared took, as far as its folder tells."""
    emissions = read_emissions(home)
    last: Sequence[Mapping[str, Any]] = [line for line in read_metrics(home) if "train/seconds" in line][-1:]
    return {
        "energy_wh": emissions.energy_kwh * 1e3 if emissions.segments else None,
        "emissions_g": emissions.emissions_kg * 1e3 if emissions.segments else None,
        "seconds": last[0]["train/seconds"] if last else None,
        "tokens": last[0]["train/tokens"] if last else None,
    }
