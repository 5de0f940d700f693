"""From an experiment file to a resolved `Config`, a section for each room, every field valued.

Every section is one frozen dataclass of its room. Resolution is: preset, then the experiment's keys, then overrides
from the command line. A typo, a missing key, a value of the wrong type or a combination that cannot work is one
`UserError`, before any device is touched.
"""

import ast
import dataclasses
import functools
import importlib
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxformer.checkpoint import CheckpointConfig, named
from jaxformer.checks import KINDS, several
from jaxformer.data import SOURCES
from jaxformer.devices import ShardingConfig
from jaxformer.errors import UserError, suggest, summary_of
from jaxformer.evaluation import EvaluationConfig
from jaxformer.footprint import FootprintConfig
from jaxformer.generation import GenerationConfig, with_open_length
from jaxformer.models import PRESETS, TransformerConfig, check_attentions
from jaxformer.objectives import OBJECTIVES, Supervision
from jaxformer.storage import read_record
from jaxformer.tasks import TASKS, Definitions, joined, read_file, renamed
from jaxformer.tokenizers import TOKENIZERS
from jaxformer.training import OPTIMIZERS, DistillationConfig, Phase, TrainingConfig, read_phases, schedule

_EXPERIMENTS, TABLES = "jaxformer.experiments", "ablations/"
# A section is one dataclass, or a dict of them of which the section's `name` selects one.
SECTIONS: dict[str, Any] = {
    "model": TransformerConfig,
    "objective": OBJECTIVES,
    "task": TASKS,
    "distillation": DistillationConfig,
    "tokenizer": TOKENIZERS,
    "data": SOURCES,
    "optimizer": OPTIMIZERS,
    "training": TrainingConfig,
    "sharding": ShardingConfig,
    "checkpoint": CheckpointConfig,
    "evaluation": EvaluationConfig,
    "generation": GenerationConfig,
    "footprint": FootprintConfig,
}
# What not every config has.
OPTIONAL = ("objective", "task", "distillation")
FORMER = {"task": renamed, "generation": with_open_length}  # sections of before, as they are written today
SCALARS: dict[str, Any] = {"seed": int, "init_from": str}
# The selector is a key of the section, beside the dataclass's fields.
INIT_FROM = "init_from"  # for model.preset: the model of the run that this one starts from
SELECTORS = {"model": "preset"} | {section: "name" for section, room in SECTIONS.items() if isinstance(room, dict)}


@dataclasses.dataclass(frozen=True)
class Config:
    """A resolved experiment. Exactly one of `objective` and `task` is there, and `distillation` where it is used."""

    name: str
    seed: int
    init_from: str
    model: TransformerConfig
    objective: Any
    task: Any
    distillation: DistillationConfig | None
    tokenizer: Any
    data: Any
    optimizer: Any
    training: TrainingConfig
    sharding: ShardingConfig
    checkpoint: CheckpointConfig
    evaluation: EvaluationConfig
    generation: GenerationConfig
    footprint: FootprintConfig
    selected: Mapping[str, str]  # section -> the chosen preset or name
    defined: Definitions | None = None  # the objectives and tasks of its own file

    @property
    def supervision(self) -> Supervision:
        """The objective or the task, whichever the experiment has."""
        return self.task if self.objective is None else self.objective

    @functools.cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the run; without `training.phases` there is one."""
        training = self.training
        name = self.selected["task" if self.objective is None else "objective"]
        return read_phases(training.phases, training.batch_size, training.accumulation_steps, self.supervision, name)

    @property
    def longest_row(self) -> int:
        """How many tokens a stack reads at most, in any phase."""
        return max(shape[-1] for one in self.shapes for name, (shape, _) in one.items() if name.endswith("inputs"))

    @property
    def shapes(self) -> list[dict[str, Any]]:
        """The arrays of an example (see docs/batch.md) in each phase."""
        return [phase.of(self.supervision).shapes for phase in self.phases]

    @property
    def packed(self) -> bool:
        """Whether a row may hold several segments, in any phase."""
        return any(phase.of(self.supervision).packed for phase in self.phases)

    @property
    def evaluation_rows(self) -> int:
        """How many rows are judged at a time: where the config does not say, as many as a micro-batch has."""
        return self.evaluation.batch_size or self.training.batch_size // self.training.accumulation_steps

    @property
    def batch_sizes(self) -> dict[str, int]:
        """The sizes of all batches that devices share, each under the name that errors call it by."""
        sizes = {"evaluation.batch_size": self.evaluation_rows}
        for number, phase in enumerate(self.phases):
            where = "training" if phase.last is None else f"training.phases[{number}]"
            sizes[f"{where}.batch_size / accumulation_steps"] = phase.batch_size // phase.accumulation_steps
        return sizes

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved sections as plain dicts, as `config.json` holds them."""
        resolved: dict[str, Any] = {key: getattr(self, key) for key in SCALARS}
        for section in SECTIONS:
            value = getattr(self, section)
            if value is not None:
                selector = {SELECTORS[section]: self.selected[section]} if section in self.selected else {}
                resolved[section] = selector | {name: vars(value)[name] for name in _fields(type(value))}
        return resolved


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's dict of sections as {"section.key": value}, tuples and lists alike as tuples."""
    keys: dict[str, Any] = {}
    for name, value in config.items():
        section = isinstance(value, Mapping)
        entries = {f"{name}.{key}": entry for key, entry in value.items()} if section else {name: value}
        keys |= {key: tuple(entry) if isinstance(entry, list) else entry for key, entry in entries.items()}
    return keys


def load(spec: str, overrides: str | Sequence[str] = ()) -> Config:
    """Resolve `NAME[:ARG]` or `FILE[:ARG]` with overrides `section.key=value`.

    Raises UserError for an unknown experiment, a bad ARG, key or value, and for combinations that cannot work.
    """
    experiment, defined = _called(spec, "get_config", "--config")
    if not isinstance(experiment, (ConfigDict, Mapping)):
        raise UserError(f"--config={spec}: get_config returns {type(experiment).__name__}, not a ConfigDict")
    sections = experiment.to_dict() if isinstance(experiment, ConfigDict) else experiment
    return resolve(sections, overrides, name=spec, defined=defined)


def resolve(
    experiment: Mapping[str, Any], overrides: str | Sequence[str] = (), *, name: str, stored: bool = False,
    defined: Definitions | None = None,
) -> Config:  # fmt: skip
    """Resolve an experiment's dict of sections (see `load`).

    `stored` says that it is a resolved one, which gives every field: where an override makes another choice, those that
    say what the old choice says by itself do not count. `defined` are objectives and tasks that join the package's.
    """
    with joined(defined):
        return dataclasses.replace(_resolve(experiment, overrides, name, stored), defined=defined)


def _resolve(experiment: Mapping[str, Any], overrides: str | Sequence[str], name: str, stored: bool) -> Config:
    given = {key: dict(value) if isinstance(value, Mapping) else value for key, value in experiment.items()}
    known = [*SCALARS, *SECTIONS]
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{name}: '{key}' is not a section of a config{suggest(key, known)}")
        if key in SECTIONS and not isinstance(value, Mapping):
            raise UserError(f"{name}: '{key}' is a section of keys, not a value")
    given |= {key: current(given[key]) for key, current in FORMER.items() if key in given}
    _override(given, overrides, stored)
    if given.get("model", {}).get("preset") == INIT_FROM:
        given["model"] = _model_of(str(given.get("init_from", "")), given["model"], name)
    if ("objective" in given) == ("task" in given):
        raise UserError(f"{name}: a config has either an 'objective' (pretraining) or a 'task' (supervised)")

    values: dict[str, Any] = {"name": name} | dict.fromkeys(OPTIONAL)
    values |= {key: _convert(given.get(key, kind()), kind, key) for key, kind in SCALARS.items()}
    selected: dict[str, str] = {}
    for section, room in SECTIONS.items():
        if section in OPTIONAL and section not in given:
            continue
        keys = dict(given.get(section, {}))
        if section in SELECTORS:
            selected[section] = _select(section, keys)
        values[section] = _section(section, _dataclass(section, selected.get(section, ""), room), keys)
    learnt = "objective" if "objective" in given else "task"
    values[learnt] = values[learnt].for_model(values["model"])
    values["checkpoint"] = values["checkpoint"].judged_by(values[learnt].metrics)
    values["data"] = values["data"].seeded(values["seed"])
    config = Config(**values, selected=selected)
    _check(config)
    return config


def load_described(spec: str, function: str, option: str = "--config") -> Any:
    """Return what another function of a file says: `get_sweep(arg)` what to search, `get_table(scale)` a table."""
    return _called(spec, function, option)[0]


def _called(spec: str, function: str, option: str) -> tuple[Any, Definitions | None]:
    """Return what a function of an experiment gives for NAME[:ARG] or FILE[:ARG], and what its file defines."""
    module_name, arg = _split(spec)
    get, defined = _experiment(module_name, arg, function, option)
    try:
        return get(arg), defined
    except ValueError as error:
        raise UserError(f"{option}={spec}: {error}") from error
    except Exception as error:
        if not module_name.endswith(".py"):
            raise
        raise UserError(f"{option}={spec}: {function}('{arg}') fails: {summary_of(error)}") from error


def _split(spec: str) -> tuple[str, str]:
    """Split NAME:ARG, leaving the colon of a drive or an object store in a file's path alone."""
    if (match := re.fullmatch(r"(.*\.py)(?::(.*))?", spec) or re.fullmatch(r"([^:]*)(?::(.*))?", spec)) is None:
        raise UserError(f"--config={spec}: give NAME[:ARG] or FILE.py[:ARG]")
    return match[1], match[2] or ""


def experiments(tables: bool = False) -> list[str]:
    """Return the names of the package's experiments, those in a folder with its name (`finetune/area`); or, with
    `tables`, of its tables of ablations, which are no configs."""
    walked = pkgutil.walk_packages(importlib.import_module(_EXPERIMENTS).__path__, f"{_EXPERIMENTS}.")
    found = [module.name for module in walked if not module.ispkg]
    names = [name.removeprefix(f"{_EXPERIMENTS}.").replace(".", "/") for name in found if not name.endswith(".common")]
    return sorted(name for name in names if name.startswith(TABLES) == tables)


def _experiment(name: str, arg: str, function: str, option: str) -> tuple[Callable[[str], Any], Definitions | None]:
    """Return a function of an experiment of the package or of a file, `get_config` or `get_sweep`, and what the file
    defines: the only dynamic import of the project."""
    choices = experiments(name.startswith(TABLES))
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise UserError(f"{option}: no file {name}")
    elif name not in choices:
        raise UserError(
            f"{option}: no experiment '{name}'{suggest(name, choices)}; there are {', '.join(choices)}, or give FILE.py"
        )
    try:
        if name.endswith(".py"):
            defined = read_file(Path(name), arg)
            module = defined.module
        else:
            module, defined = importlib.import_module(f"{_EXPERIMENTS}.{name.replace('/', '.')}"), None
    except UserError:
        raise
    except Exception as error:  # whatever a user's own file raises
        raise UserError(f"{option}: {name} does not load: {summary_of(error)}") from error
    if not hasattr(module, function):
        raise UserError(f"{option}: {name} has no function {function}(arg)")
    return getattr(module, function), defined if defined and (defined.objectives or defined.tasks) else None


def _override(given: dict[str, Any], overrides: str | Sequence[str], stored: bool) -> None:
    # Selectors first, so that no override is lost to another choice that stands after it.
    selectors = {f"{section}.{selector}" for section, selector in SELECTORS.items()}
    for override in sorted(several(overrides), key=lambda override: override.partition("=")[0] not in selectors):
        key, equals, value = override.partition("=")
        section, dot, field = key.partition(".")
        if section in SCALARS and (dot or not equals):
            raise UserError(f"--config.{override}: write --config.{section}=value")
        if not equals or (section in SECTIONS and not dot):
            raise UserError(f"--config.{override}: write --config.section.key=value")
        if section in SCALARS:
            given[section] = value
        elif section in SECTIONS and dot:
            if section == "objective" and "task" in given or section == "task" and "objective" in given:
                other = "task" if "task" in given else "objective"
                raise UserError(f"--config.{key}: this experiment has a section '{other}', not '{section}'")
            keys = given.setdefault(section, {})
            if field == SELECTORS.get(section) and keys.get(field) != value:
                # Another choice keeps only those of the experiment's keys that it also has.
                fields = _fields(_dataclass(section, value, SECTIONS[section]))
                old = _defaults(section, keys.get(field)) if stored else {}
                given[section] = keys = {
                    name: entry for name, entry in keys.items() if name in fields and old.get(name, fields) != entry
                }
            keys[field] = value
        else:
            known = [*SCALARS, *SECTIONS]
            raise UserError(f"--config.{key}: no section '{section}'{suggest(section, known)}")


def _dataclass(section: str, choice: str, room: Any) -> type:
    if not isinstance(room, dict):
        return room
    if choice not in room:
        raise UserError(f"{section}.name: no '{choice}'{suggest(choice, room)}; there are {', '.join(room)}")
    return room[choice]


def _defaults(section: str, choice: Any) -> dict[str, Any]:
    """Return the default values of a section's choice; of a model's preset, none."""
    room = SECTIONS[section]
    if not isinstance(room, dict) or choice not in room:
        return {}
    return {name: field.default for name, field in _fields(room[choice]).items()}


def _model_of(run: str, keys: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the model of the run that this one starts from, with the experiment's keys; it must be of their family."""
    if not run:
        raise UserError(
            f"model.preset: '{INIT_FROM}' is the model of the run that this one starts from, and none is named; "
            "give --config.init_from=RUN, or a size in the config's argument"
        )
    model = dict(read_record(named(run)[0])["config"]["model"])
    if (wanted := keys.get("family", model["family"])) != model["family"]:
        raise UserError(
            f"init_from: {run} is a model of {model['family']} ({model['preset']}), but --config={name} is for models "
            f"of {wanted}; name its family there, or another run"
        )
    return model | {key: value for key, value in keys.items() if key != "preset"}


def _select(section: str, keys: dict[str, Any]) -> str:
    """Take the section's selector out of its keys; for a model, lay the preset's values under them."""
    selector = SELECTORS[section]
    if selector not in keys:
        if section == "model":
            raise UserError("model.preset: missing; `jaxformer models` lists them")
        raise UserError(f"{section}.name: missing; there are {', '.join(SECTIONS[section])}")
    choice = str(keys.pop(selector))
    if section == "model":
        if choice not in PRESETS:
            raise UserError(f"model.preset: no '{choice}'{suggest(choice, PRESETS)}; `jaxformer models` lists all")
        for key, value in PRESETS[choice].items():
            keys.setdefault(key, value)
    return choice


def _fields(room: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(room) if field.metadata.get("config", True)}


def _section(section: str, room: type, keys: Mapping[str, Any]) -> Any:
    fields, types_ = _fields(room), typing.get_type_hints(room)
    for key in keys:
        if key not in fields:
            raise UserError(
                f"{section}.{key}: no such key{suggest(key, fields)}; {section} has {', '.join(sorted(fields))}"
            )
    for key, field in fields.items():
        if key not in keys and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{section}.{key}: missing; set it in the experiment or with --config.{section}.{key}=…")
    return room(**{key: _convert(value, types_[key], f"{section}.{key}") for key, value in keys.items()})


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Return the value as `kind` (int, float, bool, str, tuple[...], X | None), reading strings of the command line."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None or value == "None":
            return None
        return _convert(value, next(choice for choice in arguments if choice is not type(None)), where)
    if origin is tuple:
        entries = _literal(value) if isinstance(value, str) and value[:1] in ("(", "[") else value
        if isinstance(value, str) and not isinstance(entries, (tuple, list)) and value[:1] != "[":
            entries = tuple(part for part in value.split(",") if part)  # also a pattern such as (a|b)/.*
        if not isinstance(entries, (tuple, list)):
            raise UserError(f"{where}: {value!r} is not a list of values")
        return tuple(_convert(entry, arguments[0], where) for entry in entries)
    if kind is dict and isinstance(read := _literal(value) if isinstance(value, str) else value, Mapping):
        return dict(read)
    if kind is bool:
        names = {"true": True, "false": False, "1": True, "0": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in names:
            return names[value.lower()]
    elif kind is str and isinstance(value, str):
        return value
    elif kind in (int, float) and not isinstance(value, bool):
        number = _literal(value) if isinstance(value, str) else value
        finite = isinstance(number, (int, float)) and abs(number) <= sys.float_info.max
        if finite and (kind is float or number == int(number)):
            return kind(number)
    raise UserError(f"{where}: {value!r} is not {KINDS.get(kind, kind)}")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


def _check(config: Config) -> None:
    """Refuse what cannot work, with the reason."""
    model, longest, training = config.model, config.longest_row, config.training
    config.generation.check_family(model.family)
    if model.position == "learned" and longest > model.max_length:
        raise UserError(f"model.max_length: {model.max_length} positions, but rows are {longest} tokens long")
    if config.distillation is not None and config.objective is None:
        raise UserError("distillation: a student is taught on an objective, not on a task; leave one of them out")
    if config.distillation is not None and config.distillation.layers and config.init_from:
        raise UserError("init_from: with distillation.layers the student begins from its teacher; leave one out")
    if training.patience and not training.eval_every:
        raise UserError(
            "training.patience: it counts evaluations, of which there is one alone, at the end; set training.eval_every"
        )
    if config.evaluation.parameters == "ema" and not training.ema_decay:
        raise UserError("evaluation.parameters: ema is the average that training.ema_decay keeps; set that, too")
    schedule(config.optimizer, training.num_steps)  # refuses a warm-up that leaves no step to decay in
    check_attentions(training.attention, model, training.compute_dtype, config.packed, config.shapes)
