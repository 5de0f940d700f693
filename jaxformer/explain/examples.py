"""The examples that training would draw from a text, by the same config, token store, row index, rngs and batches.

For looking at objectives; `showing` prints them.
"""

import copy
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import config as configs
from jaxformer.checks import check_choice, check_range
from jaxformer.config import Config
from jaxformer.data import prepare, train_batches, training_texts
from jaxformer.errors import UserError, suggest
from jaxformer.models import FAMILIES
from jaxformer.objectives import OBJECTIVES, TOKENS, ObjectiveMixture, Part, Row
from jaxformer.tokenizers import ByteBPE, Tokenizer, Unigram, WordPiece, load_tokenizer, train_tokenizer

# The models that an objective without an experiment is for: of them only the family and what a decoder reads first
# count. BART's noises, which need a mask, are for BART.
_PRESETS = {"decoder_only": "gpt", "encoder_only": "bert_tiny", "encoder_decoder": "t5_small"}
_MASKING_PRESET = "bart_base"
_VISIBILITIES = {
    "decoder_only": ("causal", "prefix"),
    "encoder_only": ("full", "causal"),
    "encoder_decoder": ("causal",),
}
_LENGTHS = ("sequence_length", "source_length", "target_length")
_LENGTH = 64


@dataclasses.dataclass(frozen=True)
class Example:
    """One example of a run: its arrays as a batch has them, and which of their tokens the objective put there."""

    objective: Any  # of a mixture, the member
    row: int
    num_rows: int
    arrays: dict[str, np.ndarray]
    inserted: dict[str, np.ndarray]  # bool, for every array of tokens; padding is not inserted


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples, and what one needs to say what they are."""

    objective: Any
    family: str
    visibility: str
    tokenizer: Tokenizer
    origin: str  # of the tokenizer, in words
    drawn: list[Example]


def draw_examples(
    text: Path, name: str = "", *, config: str = "", tokenizer: Path | None = None, family: str = "",
    visibility: str = "", count: int = 2, length: int | None = None, seed: int | None = None,
    overrides: Sequence[str] = (),
) -> Examples:  # fmt: skip
    """Return the first `count` examples that training on `text` draws, for the objective `name` or an experiment's.

    What is not given is the experiment's; without one, the first family and visibility that carry the objective, rows
    of 64 tokens, seed 0, and a tokenizer trained on the text. Raises UserError for all that the user can mend.
    """
    check_range("--examples", count, at_least=1)
    if not text.is_file():
        raise UserError(f"--text={text}: no such file")
    given = [f"seed={seed}"] if seed is not None else []
    given += [f"model.visibility={visibility}"] if visibility else []
    resolved = _experiment(text, name, config, family, [*given, *overrides])
    if length is not None or not config:
        resolved = _at_length(resolved, _LENGTH if length is None else length, overrides)
    parts = resolved.objective.parts
    _check_text(text, resolved.data, parts)
    if tokenizer is not None:
        found, origin = load_tokenizer(tokenizer), str(tokenizer)
    else:
        names_one = bool(config) or any(override.startswith("tokenizer.") for override in overrides)
        settings = resolved.tokenizer if names_one else fitting_tokenizer(parts, resolved.model.family)
        found, origin = _tokenizer(settings, resolved, text)
    vocabulary = found.vocabulary
    if resolved.model.family == "encoder_decoder":
        vocabulary = vocabulary.starting(resolved.model.decoder_start)
    objective = resolved.objective.bind(vocabulary)
    drawn = _draw(objective, resolved.data, found, count, resolved.seed)
    return Examples(objective, resolved.model.family, resolved.model.visibility, found, origin, drawn)


def _masks(objective: Any) -> bool:
    return "mask" in objective.needs


def _experiment(text: Path, name: str, config: str, family: str, overrides: Sequence[str]) -> Config:
    """Return the config of an experiment, or for an objective alone, that reads `text`."""
    # So small a share holds no document back.
    data = {"name": "json_lines" if text.suffix == ".jsonl" else "text", "path": str(text), "validation_share": 1e-12}
    if not config:
        return _carried(name, family, data, overrides)
    changes = [f"data.{key}={value}" for key, value in data.items()]
    changes += [f"objective.name={name}"] if name else []
    changes += [f"model.family={family}"] if family else []
    resolved = configs.load(config, [*changes, *overrides])
    if resolved.objective is None:
        raise UserError(f"--config={config}: it has a task, not an objective; there is nothing to show")
    return resolved


def _carried(name: str, family: str, data: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """Return a config of the objective `name`, for the first family and visibility that carry it."""
    if name not in OBJECTIVES:
        said = f"no objective '{name}'{suggest(name, OBJECTIVES)}" if name else "give NAME or --config"
        raise UserError(f"{said}; there are {', '.join(OBJECTIVES)}")
    if family:
        check_choice("--family", family, FAMILIES)
    if name == "mixture" and not any(override.startswith("objective.members=") for override in overrides):
        raise UserError(
            "mixture: it needs members; give --config.objective.members="
            """'[{"name": "span_corruption", "weight": 3}, {"name": "prefix_lm"}]'"""
        )
    kind: Any = OBJECTIVES[name]
    errors: list[UserError] = []
    for carrier, visibility in [
        (one, sees) for one in ([family] if family else kind.families) for sees in _VISIBILITIES[one]
    ]:
        preset = _MASKING_PRESET if carrier == "encoder_decoder" and _masks(OBJECTIVES[name]) else _PRESETS[carrier]
        experiment = {
            "model": {"preset": preset, "visibility": visibility, "max_length": 2**30},  # no row is too long
            "objective": {"name": name},
            "tokenizer": {"name": "byte_bpe"},
            "data": data,
            "optimizer": {"name": "adamw"},
            "training": {"num_steps": 1, "batch_size": 1},
        }
        try:
            return configs.resolve(experiment, overrides, name=name)
        except UserError as error:
            errors.append(error)
    raise errors[0]


def _at_length(config: Config, length: int, overrides: Sequence[str]) -> Config:
    """Return a config whose objective has rows of `length` tokens, where the overrides do not say how long they are."""
    given, objective = {override.partition("=")[0] for override in overrides}, config.objective
    if isinstance(objective, ObjectiveMixture):
        members = [
            _lengths(objective.choices[member["name"]], length) | member if "objective.members" in given
            else member | _lengths(objective.choices[member["name"]], length)
            for member in objective.members
        ]  # fmt: skip
        mixture = ObjectiveMixture(members=tuple(members), choices=objective.choices)
        return dataclasses.replace(config, objective=mixture.for_model(config.model))
    lengths = {
        key: value for key, value in _lengths(type(objective), length).items() if f"objective.{key}" not in given
    }
    return dataclasses.replace(config, objective=dataclasses.replace(objective, **lengths))


def _lengths(kind: Any, length: int) -> dict[str, int]:
    fields = {field.name for field in dataclasses.fields(kind)}
    return {key: length for key in _LENGTHS if key in fields}


def _check_text(text: Path, source: Any, parts: Sequence[Part]) -> None:
    for part in parts:
        if part.objective.fields and text.suffix != ".jsonl":
            fields = " and ".join(part.objective.fields)
            raise UserError(
                f"--text={text}: {part.objective.name} reads pairs; give a .jsonl file with the fields {fields}"
            )
    if not any(True for _ in source.records("train", False)):
        raise UserError(f"--text={text}: there is no text in it")


def fitting_tokenizer(parts: Sequence[Part], family: str) -> Any:
    """Return the settings of a tokenizer that has what these objectives need, of the kind that their papers have."""
    names = {part.objective.name for part in parts}
    if family == "encoder_only":
        return WordPiece()
    if any(_masks(part.objective) for part in parts):
        return ByteBPE(special="bart")
    return ByteBPE() if family == "decoder_only" and names <= {"causal_lm", "prefix_lm"} else Unigram()


def _tokenizer(settings: Any, config: Config, text: Path) -> tuple[Tokenizer, str]:
    """Return the tokenizer of these settings, trained on all that the objectives read, and where it comes from."""
    if not settings.trained:
        return load_tokenizer(settings.path), settings.path
    trained = train_tokenizer(settings, training_texts(config.data, config.objective))
    return trained, f"{type(settings).__name__}, trained on {text.name}"


@dataclasses.dataclass(frozen=True)
class _Traced:
    """Makes a member's example and, with an equal rng, the references that it was written from."""

    member: int
    objective: Any
    transform: Any

    def __call__(self, row: Row, rng: np.random.Generator) -> dict[str, Any]:
        written = self.objective.write(row, copy.deepcopy(rng))
        arrays = self.transform(row, rng)
        inserted = {name: np.zeros(len(arrays[name]), bool) for name in TOKENS if name in arrays}
        for name, places in inserted.items():
            references = np.asarray(written[name])[: len(places)]
            places[: len(references)] = references < 0
        return {"member": self.member, "row": row["number"], "arrays": arrays, "inserted": inserted}


def _draw(objective: Any, source: Any, tokenizer: Tokenizer, count: int, seed: int) -> list[Example]:
    """Return the first `count` examples of training a bound objective on `source`. Nothing is kept on disk."""
    parts = objective.parts
    with tempfile.TemporaryDirectory(prefix="jaxformer-") as folder:
        members = prepare(source, objective, tokenizer, "train", seed=seed, cache=Path(folder))
        traced = [
            member._replace(transform=_Traced(number, parts[number].objective, member.transform))
            for number, member in enumerate(members)  # one for each part, of the one corpus
        ]
        # Numbered through all batches, examples are the same in batches of any size.
        batches = train_batches(traced, seed=seed, batch_size=count)
        try:
            batch: Any = next(batches)
        finally:
            batches.close()
    examples = []
    for place in range(count):
        member = int(batch["member"][place])
        examples.append(
            Example(
                parts[member].objective,
                int(batch["row"][place]),
                len(members[member].rows),
                {name: values[place] for name, values in batch["arrays"].items()},
                {name: values[place] for name, values in batch["inserted"].items()},
            )
        )
    return examples
