"""Datasets of the Hugging Face library as sources: saved on disk, or by name where the hub can be reached."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxformer.data.fields import with_names
from jaxformer.data.reading import has_read
from jaxformer.data.records import Contents, NamedSplits, Record, digest, first_line
from jaxformer.errors import UserError
from jaxformer.storage import content_digest


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFace(NamedSplits):
    """A dataset of the `datasets` library: `dataset` is a folder that its `save_to_disk` wrote, or a name of the hub,
    of which `config` chooses a variant. Classes are called by their names."""

    config: str = ""

    def stored(self, part: str, labelled: bool) -> Iterator[tuple[str, Record]]:
        name, rows = self._part(part)
        number = 0
        try:
            for number, record in enumerate(rows):
                has_read(1)
                yield f"{self.dataset} {name}[{number}]", with_names(record, rows.features)
        except (OSError, ValueError) as error:  # what Arrow raises for a file that is cut or changed
            raise UserError(f"{self.dataset} {name}: damaged after row {number} ({first_line(error)})") from error

    def amount(self, split: str) -> int:
        return len(self._part(split)[1])

    def fingerprint(self, split: str) -> str:
        return digest(type(self).__name__, self._sizes(split), dataclasses.asdict(self), split)

    def contents(self) -> Contents:
        return {"dataset": {key: found for part in self.parts for key, found in self._sizes(part).items()}}

    def _sizes(self, split: str) -> dict[str, str]:
        """Return what names the content of a split, by its name."""
        name, rows = self._part(split)
        files = [content_digest(Path(file["filename"])) for file in rows.cache_files]
        return {name: f"{len(rows)} rows, {digest(*files)}"}

    def _part(self, part: str) -> tuple[str, Any]:
        name = self.named_split(self.part_of(part), self._loaded)
        return name, self._loaded[name]

    @functools.cached_property
    def _loaded(self) -> dict[str, Any]:
        try:
            import datasets
        except ImportError as error:
            raise UserError(
                "data.name=huggingface: the package `datasets` is not installed; "
                "pip install 'jaxformer[huggingface]' installs it"
            ) from error
        folder = Path(self.dataset).expanduser()
        saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
        if not saved and (folder.exists() or self.dataset.startswith(("/", ".", "~"))):
            raise UserError(
                f"data.dataset: {self.dataset} is no folder that `save_to_disk` of the library `datasets` wrote; "
                "data.name=json_lines, csv and parquet read files"
            )
        with _quiet(datasets):
            try:
                found = datasets.load_from_disk(str(folder)) if saved else self._load(datasets)
            except Exception as error:  # whichever of the library's own errors says that it is not there
                what = "cannot be read" if saved else "is not saved on disk, and could not be loaded by that name"
                raise UserError(f"data.dataset: {self.dataset} {what} ({first_line(error)})") from error
        return dict(found) if isinstance(found, dict) else {self.train_split: found}

    def _load(self, datasets: Any) -> Any:
        return datasets.load_dataset(self.dataset, self.config or None)


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Keep the library's progress bars and warnings off the terminal."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels, bars = [logger.level for logger in loggers], datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
