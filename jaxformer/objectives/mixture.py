"""Several objectives in one run, drawn by weight, over the same or over different corpora."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from jaxformer.checks import check_kind, read_members
from jaxformer.errors import UserError
from jaxformer.objectives.arrays import Shapes, padded
from jaxformer.objectives.objective import TOKENS, UNSEEN, Row
from jaxformer.objectives.supervision import Decode, Encode, Head, Part
from jaxformer.tokenizers import Vocabulary

if TYPE_CHECKING:
    from jaxformer.models import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Padded:
    """An objective whose arrays are filled up to the shapes that all members of a mixture emit."""

    objective: Any
    shapes: Shapes

    def __call__(self, row: Row, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return one example of `shapes`; what is filled up is padding, without weight."""
        pad, arrays = self.objective.vocabulary.id("pad"), self.objective(row, rng)
        return {
            name: padded(arrays[name], shape[0], dtype, pad if name in TOKENS else 0) if shape else arrays[name]
            for name, (shape, dtype) in self.shapes.items()
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveMixture:
    """Draw each example's objective by weight: `members` are {"name": …, "weight": …, the objective's own keys}.

    `corpora` of a member, a list of numbers in data.members, says which corpora it reads (all, where it is not given);
    its `title` is its name in results.
    All members emit the same arrays, filled up to the longest of theirs, and share one loss. A mixture of span
    corruptions with other densities and lengths, and prefix_lm, is UL2's (Tay et al. 2022), without its mode tokens.
    """

    name: ClassVar[str] = "mixture"
    section: ClassVar[str] = "objective"  # of the config
    paper: ClassVar[str] = "T5 3.5.2; UL2"
    families: ClassVar[tuple[str, ...]] = ("encoder_decoder", "decoder_only", "encoder_only")
    refusals: ClassVar[dict[str, str]] = {}
    needs: ClassVar[tuple[str, ...]] = ("pad",)  # its members may need more
    labelled: ClassVar[bool] = False
    labels: ClassVar[tuple[str, ...]] = ()
    label_kind: ClassVar[str] = ""
    answering: ClassVar[None] = None
    fields: ClassVar[tuple[str, ...]] = ()  # those of its parts are theirs
    predicts_tokens: ClassVar[bool] = True
    head_dropout: ClassVar[float] = 0.0
    metrics: ClassVar[tuple[str, ...]] = ()
    decodes: ClassVar[bool] = False
    delimited: ClassVar[bool] = False
    new_token_ids: ClassVar[tuple[int, ...]] = ()

    members: tuple[dict, ...]
    bound: tuple[Any, ...] = dataclasses.field(default=(), compare=False, metadata=UNSEEN)
    choices: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False, metadata=UNSEEN)

    def __post_init__(self) -> None:
        if not self.choices:  # those of now: a config file's own are there while its config is resolved
            object.__setattr__(self, "choices", self._kinds())
        if not self.bound:
            object.__setattr__(self, "bound", tuple(objective for objective, _, _ in self._read))

    def _kinds(self) -> dict[str, Any]:
        from jaxformer.objectives import OBJECTIVES  # of which this is one

        return {name: kind for name, kind in OBJECTIVES.items() if kind is not ObjectiveMixture}

    @functools.cached_property
    def _read(self) -> list[tuple[Any, float, dict[str, Any]]]:
        read = read_members(self.section, self.members, self.choices, {"corpora": (), "title": ""})
        for number, (_, _, options) in enumerate(read):
            where, corpora = f"{self.section}.members[{number}]", options["corpora"]
            if not isinstance(corpora, (list, tuple)) or not all(type(corpus) is int for corpus in corpora):
                raise UserError(f"{where}.corpora: {corpora!r} is not a list of numbers")
            if len(set(corpora)) < len(corpora):
                raise UserError(f"{where}.corpora: {corpora!r} names a corpus twice")
            check_kind(f"{where}.title", options["title"], str)
            if options["title"] in [other["title"] for _, _, other in read[:number] if other["title"]]:
                raise UserError(f"{where}.title: another member is '{options['title']}' already; give each its own")
        return read

    def for_model(self, model: "TransformerConfig") -> Self:
        """Return a copy for a model. Raises UserError when it cannot carry one of the members, or members differ in
        their arrays or losses."""
        bound: list[Any] = []
        for number, member in enumerate(self.bound):
            where = f"{self.section}.members[{number}]"
            try:
                bound.append(member.for_model(model))
            except UserError as error:
                raise UserError(str(error).replace(f"{self.section}.", f"{where}.", 1)) from error
            for what in ("label_smoothing", "z_loss", "heads"):
                mine, first = getattr(bound[-1], what), getattr(bound[0], what)
                if mine != first:
                    raise UserError(
                        f"{where}: {what} is {mine!r}, but that of {bound[0].name} {first!r}: a run has one loss"
                    )
            if differing := sorted(bound[-1].shapes.keys() ^ bound[0].shapes.keys()):
                raise UserError(
                    f"{where}: {member.name} does not mix with {bound[0].name}: only one of them emits "
                    f"{', '.join(differing)}"
                )
        return dataclasses.replace(self, bound=tuple(bound))

    def bind(
        self, vocabulary: Vocabulary, labels: Sequence[str] = (), encode: Encode | None = None,
        decode: Decode | None = None,
    ) -> Self:  # fmt: skip
        """Return a copy whose members know the ids. Raises UserError when the tokenizer lacks a token they need."""
        return dataclasses.replace(self, bound=tuple(member.bind(vocabulary) for member in self.bound))

    @property
    def token_smoothing(self) -> float:
        return self.bound[0].token_smoothing

    @property
    def z_loss(self) -> float:
        return self.bound[0].z_loss

    @property
    def fills_masks(self) -> bool:
        return any(member.fills_masks for member in self.bound)

    @property
    def packed(self) -> bool:
        return any(member.packed for member in self.bound)

    @property
    def heads(self) -> dict[str, Head]:
        return self.bound[0].heads

    @property
    def coefficients(self) -> dict[str, float]:
        return self.bound[0].coefficients

    @property
    def shapes(self) -> Shapes:
        every = [member.shapes for member in self.bound]
        return {name: (max(shapes[name][0] for shapes in every), dtype) for name, (_, dtype) in every[0].items()}

    @property
    def parts(self) -> tuple[Part, ...]:
        """The members with their shares of the examples."""
        total = sum(weight for _, weight, _ in self._read)
        return tuple(
            Part(objective, weight / total, tuple(options["corpora"]), options["title"])
            for objective, (_, weight, options) in zip(self.bound, self._read, strict=True)
        )
