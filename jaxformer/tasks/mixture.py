"""Several text-to-text tasks in one run (T5, section 3.5.2)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from jaxformer.errors import UserError
from jaxformer.objectives import Decode, Encode, ObjectiveMixture, Part
from jaxformer.tasks.text_to_text import TextToText
from jaxformer.tokenizers import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskMixture(ObjectiveMixture):
    """Draw each example's task: `members` are {"name": "text_to_text", "title": …, "corpora": […], its own keys}.

    `corpora`, a list of numbers in data.members, says which corpora a member reads (all, where it is not given). How
    often each is drawn is the data's to say (data.mixing, data.cap, data.temperature: rates in proportion to the sizes,
    up to a limit), times the member's `weight`. Each has its own input, words and metrics, and is judged by itself,
    under its `title`; their arrays are filled up to the longest of theirs.
    """

    section: ClassVar[str] = "task"
    families: ClassVar[tuple[str, ...]] = TextToText.families
    labelled: ClassVar[bool] = True
    decodes: ClassVar[bool] = True
    delimited: ClassVar[bool] = True

    def _kinds(self) -> dict[str, Any]:
        return {TextToText.name: TextToText}

    def bind(
        self, vocabulary: Vocabulary, labels: Sequence[Any] = (), encode: Encode | None = None,
        decode: Decode | None = None,
    ) -> Self:  # fmt: skip
        """Return a copy whose members know ids and labels, of which `labels` has those of each member."""
        each, bound = labels or [()] * len(self.bound), []
        for number, (member, names) in enumerate(zip(self.bound, each, strict=True)):
            try:
                bound.append(member.bind(vocabulary, names, encode, decode))
            except UserError as error:
                raise UserError(str(error).replace("task.", f"task.members[{number}].", 1)) from error
        return dataclasses.replace(self, bound=tuple(bound))

    @property
    def labels(self) -> tuple[Any, ...]:  # type: ignore[override]
        """The labels of each member."""
        return tuple(member.labels for member in self.bound)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The members with their weights, each with a title."""
        return tuple(
            part._replace(title=part.title or f"{part.objective.name}{number}")
            for number, part in enumerate(super().parts)
        )
