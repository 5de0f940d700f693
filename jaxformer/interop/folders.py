"""Folders that come from elsewhere, and folders that are written whole or not at all."""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub

from jaxformer.errors import UserError, disk_errors

# What of a hub's repository is fetched: a config, weights in the safe format, and tokenizer files.
_PATTERNS = ("*.json", "model*.safetensors", "vocab.*", "*.model", "merges.txt", "dict.txt")


def source_folder(source: str, revision: str | None = None) -> Path:
    """Return the local folder of this name, or else the copy of a hub's repository. Raises UserError for neither."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists() or source.count("/") > 1 or source.startswith((".", "/", "~")):
        raise UserError(f"{source} is no folder; give one in Hugging Face format, or a name of its hub")
    try:
        return Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=list(_PATTERNS)))
    except Exception as error:  # no network, no such model, no permission: the library has a class for each
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"there is no folder {source}, and the hub does not give it: {first}") from error


def check_new(folder: Path, option: str) -> None:
    """Raise UserError when something is there already."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise UserError(f"{option}: {folder} exists; choose another, or delete it")


@contextlib.contextmanager
def whole_or_not_at_all(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `folder` if all goes well and is deleted otherwise."""
    temporary = folder.absolute().with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        with disk_errors(folder):
            temporary.mkdir(parents=True)
            yield temporary
            if folder.is_dir():
                folder.rmdir()
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
