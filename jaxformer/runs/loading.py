"""Reading a run: its model, tokenizer and config, and with the parameters of a checkpoint what one needs to use it."""

import dataclasses
import functools
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxformer import config as configs
from jaxformer.checkpoint import Source, Which, named, restore_params, source_of
from jaxformer.checks import several
from jaxformer.config import Config
from jaxformer.devices import activations_mesh, connect, param_shardings, placed, prepare_process
from jaxformer.errors import UserError
from jaxformer.generation import GenerationConfig, decoding_weights
from jaxformer.models import Model, Params
from jaxformer.objectives import Supervision
from jaxformer.runs import scoring
from jaxformer.runs.devices_here import mesh_here
from jaxformer.runs.documents import document, document_answers, window_of
from jaxformer.runs.embedding import vectors
from jaxformer.runs.filling import Asking, blank, chosen, filled
from jaxformer.runs.fingerprints import check_tokenizer
from jaxformer.runs.generating import answered, check_streams, checked_prompt, prompt_rows, streamed, writing
from jaxformer.runs.predicting import Input, predicted, task_of
from jaxformer.storage import read_record, store_errors
from jaxformer.tasks import defined_by
from jaxformer.tokenizers import Tokenizer, load_tokenizer
from jaxformer.training import execution


def bind(config: Config, tokenizer: Tokenizer, labels: Sequence[str]) -> Supervision:
    """Return the config's objective or task with the tokenizer's ids, the labels and their texts.

    Raises UserError when the tokenizer has more ids than the model's table, or lacks one that is needed.
    """
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"model.vocab_size: {config.model.vocab_size}, but the tokenizer has {tokenizer.vocab_size} ids; "
            "use the tokenizer that belongs to the model, or a larger vocab_size"
        )
    vocabulary = tokenizer.vocabulary
    if config.model.family == "encoder_decoder":
        vocabulary = vocabulary.starting(config.model.decoder_start)
    return config.supervision.bind(vocabulary, labels, tokenizer.encode, tokenizer.decode)


def build_model(config: Config, supervision: Supervision, mesh: Mesh | None = None) -> Model:
    """Return the model of a config with the heads that its objective or task asks for, its activations split over a
    mesh where one is given."""
    return _shared(
        Model(
            config.model,
            execution(config.training, config.model, mesh, packed=config.packed),
            heads=tuple((name, head.size, head.reads) for name, head in supervision.heads.items()),
            head_dropout=supervision.head_dropout,
            predicts_tokens=supervision.predicts_tokens,
        )
    )


@functools.lru_cache(maxsize=8)
def _shared(model: Model) -> Model:
    """Return the first of equal models, which knows its shapes already."""
    return model


class StoredRun(NamedTuple):
    """What a run directory says of its model, parameters apart."""

    model: Model
    tokenizer: Tokenizer
    config: Config
    labels: tuple[str, ...]


def own_tokenizer(workdir: Path, allow_change: bool = False) -> Tokenizer:
    """Read a run's tokenizer. Raises UserError where it is missing, or, unless `allow_change`, is another than the run
    was trained with."""
    tokenizer = load_tokenizer(workdir / "tokenizer.json")
    check_tokenizer(workdir, read_record(workdir, needed=()), tokenizer, allow_change)
    return tokenizer


@store_errors()
def stored_run(workdir: str | Path, allow_change: bool = False) -> StoredRun:
    """Read the config and tokenizer of a run (or of the run that RUN@STEP names). Raises UserError for anything
    missing, and, unless `allow_change`, for another tokenizer than the run was trained with."""
    workdir, _ = named(workdir)
    record = read_record(workdir)
    prepare_process()
    config = configs.resolve(record["config"], name=record["name"], defined=defined_by(record.get("defined"), workdir))
    tokenizer = own_tokenizer(workdir, allow_change)
    labels = tuple(record["labels"])
    return StoredRun(build_model(config, bind(config, tokenizer, labels)), tokenizer, config, labels)


def overridden(config: Config, overrides: str | Sequence[str]) -> Config:
    """Return a trained run's config with other keys. Raises UserError for a key that there is not, and for another
    model."""
    found = configs.resolve(config.to_dict(), overrides, name=config.name, stored=True, defined=config.defined)
    if found.model != config.model:
        raise UserError("--config.model: a trained model cannot be changed; leave these overrides out")
    return found


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained model, ready to use: `model.apply(params, batch)`, `generate(texts)`."""

    model: Model
    params: Params
    tokenizer: Tokenizer
    config: Config
    labels: tuple[str, ...]
    step: int
    source: Source  # of the parameters

    @functools.cached_property
    def weights(self) -> Params:
        """The parameters as decoding reads them."""
        return decoding_weights(self.model, self.params)

    def generate(
        self, prompts: str | Sequence[str], generation: GenerationConfig | None = None, **changes: Any
    ) -> list[Any]:
        """Return the text that the model writes after each prompt (or, an encoder-decoder, in answer to it): a list
        also of one prompt, given as a string, and a list of texts for each where `num_answers` is above 1.

        Answers are written as the run's config says, or `generation`, with `changes` of its fields:
        `run.generate("Once", temperature=0.8)`. Raises UserError for what cannot be written.
        """
        config = writing(self, generation, changes)
        found = [[each["text"] for each in each_of] for each_of in self.answers(prompts, config)]
        return found if config.num_answers > 1 else [texts[0] if texts else "" for texts in found]

    def answers(
        self, prompts: str | Sequence[str], generation: GenerationConfig | None = None, *, batch_size: int = 0,
        **changes: Any,
    ) -> list[list[dict[str, Any]]]:  # fmt: skip
        """Return the answers to each prompt (see `generate`): "text", "score" (the logarithm of its probability, after
        beams with the penalty of its length), "tokens" (how many were written) and whether it "ended" by itself.

        What is drawn for a prompt follows from the seed and its number, from 0, alone.
        """
        config = writing(self, generation, changes)
        rows = prompt_rows(self, config, several(prompts))
        return answered(self, config, rows, range(len(rows)), batch_size or self.config.evaluation_rows)

    def stream(
        self, prompt: str, generation: GenerationConfig | None = None, *, number: int = 0, **changes: Any
    ) -> Generator[str, None, dict[str, Any]]:
        """Yield the text that the model writes after a prompt (see `generate`), piece by piece as it comes: whole
        characters, and nothing that a stop string takes back.

        The generator returns the answer, as `answers` gives it; `number` is the prompt's. Raises UserError for
        beams, and for several answers.
        """
        config = writing(self, generation, changes)
        check_streams(config)
        return streamed(self, config, checked_prompt(self, config, prompt), number)

    def prompt_ids(self, prompt: str) -> np.ndarray:
        """Return what the model reads of a prompt, int32."""
        reads = self.model.config.family == "encoder_decoder"
        # What an encoder reads has the tokens around it that it had in training, and masks if it learnt to fill them.
        found = "mask" if reads and self.config.supervision.fills_masks else ""
        row = self.tokenizer.encode(prompt, special=reads, reads=found)
        if not reads and self.config.supervision.delimited:
            # A single stack that learnt to read one text and write another: this token ended what it read.
            row = np.append(row, self.tokenizer.vocabulary.id("end")).astype(np.int32)
        return row

    def continuation(self, row: np.ndarray, ids: np.ndarray) -> str:
        """Return the text of ids behind a row's: whether a space stands between the two, only both together tell."""
        before, both = self.tokenizer.decode(row), self.tokenizer.decode(np.append(row, ids))
        return both[len(before) :] if both.startswith(before) else self.tokenizer.decode(ids)

    def overridden(self, overrides: str | Sequence[str]) -> "LoadedRun":
        """Return the run with other keys of its config, `section.key=value`: what it reads and how, not what it is.

        Raises UserError for a key that there is not, and for another model.
        """
        return dataclasses.replace(self, config=overridden(self.config, overrides))

    @functools.cached_property
    def supervision(self) -> Supervision:
        """The objective or the task that the run has learnt, bound."""
        return bind(self.config, self.tokenizer, self.labels)

    def predict(self, inputs: Input | Iterable[Input], task: str = "", batch_size: int = 0) -> list[dict[str, Any]]:
        """Return the task's answer to each input, as JSON holds it: docs/predicting.md lists them.

        An input is a text or, where the task reads several fields, a dict with these or a tuple of their texts; one
        that is given alone is one. `task` is the title of one of several that the run has learnt. Raises UserError for
        a run that has learnt no task, and for an input that cannot be read.
        """
        given = [inputs] if isinstance(inputs, str | Mapping | tuple) else inputs
        chosen = task_of(self, task)
        return list(predicted(self, chosen, given, batch_size or self.config.evaluation_rows))

    def embed(
        self, texts: str | Sequence[str], pooling: str = "mean", layer: int = -1, batch_size: int = 0
    ) -> np.ndarray:
        """Return a vector of each text, float32 [N, D]: the mean of the hidden states of its tokens, those around it
        included, or that of its "first" or "last" one.

        `layer` counts from 0, what the first layer reads, to num_layers, and -1 is the last, after the final norm; of
        an encoder-decoder they are the encoder's. A text is cut to model.max_length tokens. Raises UserError for a
        layer that there is not, and for the first token of a model whose tokens see only those before them.
        """
        found = [found for found, _, _ in vectors(self, several(texts), pooling, layer, batch_size)]
        return np.concatenate([np.zeros((0, self.model.config.d_model), np.float32), *found])

    def fill(
        self, texts: str | Sequence[str], top: int | None = None, *, targets: str | Sequence[str] = (),
        one_by_one: bool = False, batch_size: int = 0,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Return what fills the masks of each text ("The [MASK] sat"), as JSON holds it: a list also of one text.

        An answer is {"prompt": the text, "text": it with the likeliest token at each mask, "masks": [candidates]}; each
        mask has the `top` (5) likeliest tokens, or those of `targets`, words that are one token: {"score": probability
        among the whole vocabulary, "token": id, "token_str", "sequence": the text with this mask filled}. Each mask is
        filled as if the others stayed masks, or, `one_by_one`, given those filled before it, the most certain first.
        Raises UserError for a run that fills no masks, and for a text without one or longer than the model reads.
        """
        asking = Asking(top, tuple(several(targets)), one_by_one)
        choice = chosen(self, asking)
        blanks = [blank(self, text, f"text {number}") for number, text in enumerate(several(texts))]
        return filled(self, blanks, asking, choice, batch_size)

    def score(
        self, texts: str | Sequence[str], continuations: str | Sequence[str] | None = None, *, end: bool = False,
        per_token: bool = False, batch_size: int = 0,
    ) -> Any:  # fmt: skip
        """Return how likely the model finds a text, or a continuation behind a text, as a dict of numbers; of lists, a
        list of dicts. One context may have several continuations, and several contexts one.

        `log_likelihood` (natural logarithm), `tokens`, `bytes`, `perplexity` (per token) and `bits_per_byte` are those
        of the text, or of the continuation alone; `greedy` says whether it is what the model would write. With `end`
        the end token behind it counts as one of its tokens, and with `per_token` they are told one by one. A masked
        model gives `pseudo_log_likelihood` and `pseudo_perplexity`, each token masked in turn. How context and
        continuation are tokenised: `scoring.item`; all else: docs/scoring.md. Raises UserError for what cannot be
        scored.
        """
        alone = isinstance(texts, str) and (continuations is None or isinstance(continuations, str))
        given = scoring.paired(texts, continuations)
        items = [scoring.item(self, pair, f"text {number}", end) for number, pair in enumerate(given)]
        scores = scoring.scores_of(self, items, batch_size)
        answers = [scoring.answer(self, each, found, per_token) for each, found in zip(items, scores, strict=True)]
        return answers[0] if alone else answers

    def choose(
        self, contexts: str | Sequence[str], candidates: Sequence[str] | Sequence[Sequence[str]],
        normalization: str = "tokens", unconditional: str = "Answer: ", *, end: bool = False, batch_size: int = 0,
    ) -> Any:  # fmt: skip
        """Return which candidate the model finds likeliest behind a context, as a dict; of a list of contexts, with
        candidates of its own each or the same for all, a list of dicts.

        `choice` counts from 0, `text` is the candidate, `probability` its share; `probabilities`, `scores`,
        `log_likelihoods` and `tokens` are those of all. A score is the log-likelihood as it is ("none"), of each of a
        candidate's "tokens" (GPT-3, section 2.4), "bytes" or "characters", or "unconditional": log P(candidate |
        context) - log P(candidate | `unconditional`). Raises UserError for fewer than two candidates.
        """
        asking = scoring.Asking(end=end, normalization=normalization, unconditional=unconditional)
        asked = several(contexts)
        shared = isinstance(candidates, str) or any(isinstance(each, str) for each in candidates)
        of_each: Any = [candidates] * len(asked) if shared else candidates
        answers = scoring.choices_of(self, asked, of_each, asking, batch_size)
        return answers[0] if isinstance(contexts, str) else answers

    def score_document(self, text: str, stride: int = 0, length: int = 0, batch_size: int = 0) -> dict[str, Any]:
        """Return how well the model predicts a document of any length, as a dict of numbers: docs/scoring.md.

        Windows of `length` tokens (0: as many as the model reads) run over it; each but the first predicts the next
        `stride` tokens (0: `length`, so that windows do not overlap). Raises UserError for a model that does not read
        from left to right.
        """
        window = window_of(self, stride, length)
        (answer,) = document_answers(self, [document(self, text, "document")], window, batch_size)
        return answer


@store_errors()
def load(
    run: str | Path, step: str | int = "", overrides: str | Sequence[str] = (), *, average: int = 1,
    parameters: str = "", allow_change: bool = False,
) -> LoadedRun:  # fmt: skip
    """Load a run directory: a checkpoint, the tokenizer and the config.

    `step` is "latest" (if nothing else is said), "best" or a number; RUN@best and the like say it too. `overrides` are
    those of `LoadedRun.overridden`; where one is of `sharding`, as "sharding.data=0", the run lives on all devices (see
    `load_spread`), else on the first one. `average` is of how many checkpoints, that one and those before it, the mean
    is taken. `parameters` are those that were "trained" or "ema", their moving average ("": evaluation.parameters of
    the run's config). Raises UserError for anything missing or damaged, and, unless `allow_change`, for a tokenizer
    that is not the one that the run was trained with.
    """
    which = Which(step, average, parameters)
    if any(override.startswith("sharding.") for override in several(overrides)):
        return load_spread(run, which, overrides, allow_change)
    stored = stored_run(run, allow_change)
    return with_parameters(stored._replace(config=overridden(stored.config, overrides)), run, which)


@store_errors()
def load_spread(
    run: str | Path, which: Which, overrides: str | Sequence[str] = (), allow_change: bool = False
) -> LoadedRun:
    """Load a run (see `load`) onto all devices of all processes, as `mesh_here` finds them; all must call it."""
    connect()
    stored, given = stored_run(run, allow_change), several(overrides)
    config, mesh = mesh_here(overridden(stored.config, given), given, lambda note: None)
    return with_parameters(stored._replace(config=config), run, which, mesh if mesh.size > 1 else None)


def with_parameters(run: StoredRun, where: str | Path, which: Which, mesh: Mesh | None = None) -> LoadedRun:
    """Return a run with the parameters that are meant, read where they live: on the first device or, split as its
    config says, on a mesh."""
    model, config = run.model, run.config
    source = source_of(where, which._replace(parameters=which.parameters or config.evaluation.parameters))
    target = model.shapes
    if mesh is not None:
        supervision = bind(config, run.tokenizer, run.labels)
        model = build_model(config, supervision, activations_mesh(config.sharding, mesh))
        target = placed(target, param_shardings(mesh, target, model.config.head_dim))
    params, table = restore_params(source, target)
    return LoadedRun(model, params, run.tokenizer, config, run.labels, table.step, table.source)
