"""Where text comes from: local files, datasets of TFDS and of Hugging Face, the built-in corpus, mixtures of these.

A source gives documents (text to pretrain on) and, where it has labels, examples. Without a held-out split of its own,
each document or example goes to validation by a hash of its number.
"""

import contextlib
import dataclasses
import functools
import io
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from jaxformer.checks import check_choice, check_kind, check_range, read_members
from jaxformer.data.columns import CSV, CoNLL
from jaxformer.data.fields import with_names
from jaxformer.data.files import JSONLines, Parquet, Text
from jaxformer.data.huggingface import HuggingFace
from jaxformer.data.parallel import Parallel
from jaxformer.data.reading import has_read
from jaxformer.data.records import RUN_SEED, Contents, NamedSplits, Record, Source, digest, first_line
from jaxformer.data.sealed import Damaged, Note, seal, told, unsealed
from jaxformer.data.squad import SQuAD
from jaxformer.errors import UserError
from jaxformer.storage import cache_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDS(NamedSplits):
    """A TFDS dataset already prepared as ArrayRecord (`dataset`: NAME[/CONFIG][:VERSION]), read without TensorFlow."""

    data_dir: str = ""

    def stored(self, part: str, labelled: bool) -> Iterator[tuple[str, Record]]:
        builder = self._builder()
        name = self.named_split(part, builder.info.splits)
        for number, record in enumerate(_rows(builder, name)):
            yield f"{self.dataset} {name}[{number}]", with_names(record, builder.info.features)

    def amount(self, split: str) -> int:
        splits = self._builder().info.splits
        return int(splits[self.named_split(self.part_of(split), splits)].num_examples)

    def fingerprint(self, split: str) -> str:
        return digest(type(self).__name__, _sizes(self._builder()), dataclasses.asdict(self), split)

    def contents(self) -> Contents:
        return {"dataset": _sizes(self._builder())}

    def _builder(self) -> Any:
        with _quiet():
            import tensorflow_datasets as tfds

            try:
                builder = tfds.builder(self.dataset, data_dir=self.data_dir or None)
                builder.as_data_source(split=next(iter(builder.info.splits), "train"))
            except Exception as error:  # whichever of TFDS's own errors says that it is not there or not readable
                folder = self.data_dir or "~/tensorflow_datasets"
                raise UserError(
                    f"data.dataset: {self.dataset} is not prepared as ArrayRecord in {folder}; with TensorFlow "
                    f"run `tfds build {self.dataset} --file_format=array_record` and copy the folder there "
                    f"({first_line(error)})"
                ) from error
        return builder


@dataclasses.dataclass(frozen=True, kw_only=True)
class StdlibDocs(Source):
    """The built-in corpus: documentation of the Python that runs. Labels: the area of the library."""

    label_field: str = "area"

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", "test")

    def stored(self, part: str, labelled: bool) -> Iterator[tuple[str, Record]]:
        builder = self._builder("docstrings" if labelled else "documents")
        for number, record in enumerate(_rows(builder, part)):
            yield f"stdlib_docs {part}[{number}]", with_names(record, builder.info.features)

    def label_names(self, kind: str = "class") -> tuple[str, ...]:
        from jaxformer.data.stdlib_docs import AREAS

        return tuple(sorted(AREAS)) if kind == "class" and self.label_field == "area" else super().label_names(kind)

    def label_notes(self, kind: str = "class") -> list[str]:
        return []

    def fingerprint(self, split: str) -> str:
        return digest(type(self).__name__, _sizes(self._builder("documents")), dataclasses.asdict(self), split)

    def contents(self) -> Contents:
        return {"name": _sizes(self._builder("documents"))}

    def mend(self, note: Note | None) -> None:
        for kind in ("documents", "docstrings"):
            folder = _corpus_folder(kind)
            try:
                unsealed(folder / SEAL)
            except Damaged as error:
                told(error, "the built-in corpus", note)
                shutil.rmtree(folder)

    def _builder(self, kind: str) -> Any:
        with _quiet():
            from jaxformer.data import stdlib_docs

            builder = stdlib_docs.StdlibDocs(data_dir=cache_folder() / "tfds", config=f"{kind}_{stdlib_docs.PYTHON}")
            builder.download_and_prepare(file_format="array_record")
        folder = _corpus_folder(kind)
        if not (folder / SEAL).exists():
            seal(folder / SEAL, [file.name for file in folder.iterdir() if file.name[0] != "."], {})
        return builder


SEAL = ".sealed.json"  # TFDS takes no notice of it


def _corpus_folder(kind: str) -> Path:
    from jaxformer.data import stdlib_docs

    version = str(stdlib_docs.StdlibDocs.VERSION)
    return cache_folder() / "tfds" / "stdlib_docs" / f"{kind}_{stdlib_docs.PYTHON}" / version


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS's progress bars and announcements off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()):
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
        yield


def _rows(builder: Any, split: str) -> Iterator[Record]:
    source = builder.as_data_source(split=split)
    for number in range(len(source)):
        try:
            record = source[number]
        except RuntimeError as error:  # what ArrayRecord raises where its checksums do not fit
            raise UserError(
                f"{builder.data_dir}: damaged ({first_line(error)}); prepare or copy {builder.info.full_name} anew"
            ) from error
        has_read(1)
        yield record


def _sizes(builder: Any) -> dict[str, str]:
    """Return how large the splits of a data set are, by its name with the version and theirs."""
    info = builder.info
    return {
        f"{info.full_name} {name}": f"{part.num_examples} rows, {part.num_bytes} bytes"
        for name, part in sorted(info.splits.items())
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceMixture(Source):
    """Several sources at once: `members` are {"name": …, "weight": …, the source's own keys}.

    `mixing` "weights" draws members by their weights (GPT-3, table 2.2). "proportional" draws them by weight x their
    number of rows, of which no more than `cap` count (0: all do; a member may have a `cap` of its own). Either rate is
    raised to the power 1 / `temperature` (T5, section 3.5.2: examples-proportional mixing with a limit, and
    temperature-scaled mixing).
    """

    members: tuple[dict, ...]
    mixing: str = "weights"
    cap: int = 0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        own = {"workers", "members", "mixing", "cap", "temperature"}
        for field in dataclasses.fields(Source):
            if field.name not in own and getattr(self, field.name) != field.default:
                raise UserError(f"data.{field.name}: a mixture has no such key of its own; set it in data.members")
        check_choice("data.mixing", self.mixing, MIXINGS)
        check_range("data.cap", self.cap, at_least=0)
        check_range("data.temperature", self.temperature, above=0)
        for number, (_, _, options) in enumerate(self._read):
            check_kind(f"data.members[{number}].cap", options["cap"], int)
            check_range(f"data.members[{number}].cap", options["cap"], at_least=0)

    def seeded(self, seed: int) -> Self:
        its = {"subset_seed": seed}
        members = (member | its if member.get("subset_seed") == RUN_SEED else member for member in self.members)
        return dataclasses.replace(self, members=tuple(members))

    @functools.cached_property
    def _read(self) -> list[tuple[Source, float, dict[str, Any]]]:
        choices = {name: source for name, source in SOURCES.items() if source is not SourceMixture}
        return read_members("data", self.members, choices, {"cap": 0})

    def sources(self) -> list[tuple[Source, float]]:
        """Return the members and their weights. Raises UserError for a bad member."""
        return [(source, weight) for source, weight, _ in self._read]

    def contents(self) -> Contents:
        return {
            f"members[{number}].{key}": found
            for number, (member, _) in enumerate(self.sources())
            for key, found in member.contents().items()
        }

    def rates(self, sizes: Sequence[int]) -> list[float]:
        """Return each member's share of the examples, given their numbers of rows."""
        rates = []
        for size, (_, weight, options) in zip(sizes, self._read, strict=True):
            cap = options["cap"] or self.cap or size
            rates.append(weight * (min(size, cap) if self.mixing == "proportional" else 1))
        # Of the largest: no power of a share overflows.
        scaled = [(rate / max(rates)) ** (1 / self.temperature) for rate in rates]
        return [rate / sum(scaled) for rate in scaled]


MIXINGS = ("weights", "proportional")

SOURCES: dict[str, type[Source]] = {
    "stdlib_docs": StdlibDocs,
    "tfds": TFDS,
    "text": Text,
    "json_lines": JSONLines,
    "parquet": Parquet,
    "csv": CSV,
    "squad": SQuAD,
    "conll": CoNLL,
    "parallel": Parallel,
    "huggingface": HuggingFace,
    "mixture": SourceMixture,
}
