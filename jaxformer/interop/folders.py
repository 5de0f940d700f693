"""Folders that come from elsewhere, and folders that are written whole or not at all."""

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub

from jaxformer.errors import UserError, disk_errors
from jaxformer.storage import files_below, is_remote, location, upload

# What of a hub's repository is fetched: a config, weights, and tokenizer files. PyTorch's files only where there are no
# others.
_PATTERNS = ("*.json", "model*.safetensors", "vocab.*", "*.model", "merges.txt", "dict.txt")
_PYTORCH = ("pytorch_model*.bin",)


def source_folder(source: str, revision: str | None = None) -> Path:
    """Return the local folder of this name, or else the copy of a hub's repository. Raises UserError for neither."""
    path = location(source)
    if is_remote(path):
        raise UserError(f"{source}: copy the folder here first, and give the copy")
    if path.is_dir():
        if revision:
            raise UserError(f"--revision: {source} is a folder that is here, not a name of the hub")
        return path
    if path.exists() or source.count("/") > 1 or source.startswith((".", "/", "~")):
        raise UserError(f"{source} is no folder; give one in Hugging Face format, or a name of its hub")
    try:
        folder = Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=list(_PATTERNS)))
        if not any(folder.glob("model*.safetensors")):
            huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=list(_PYTORCH))
        return folder
    except Exception as error:  # no network, no such model, no permission: the library has a class for each
        name, first = type(error).__name__, next(iter(str(error).strip().splitlines()), "")
        raise UserError(f"there is no folder {source}, and the hub does not give it: {name}: {first}") from error


def check_new(folder: Path, option: str) -> None:
    """Raise UserError when something is there already, or nothing can be."""
    if is_remote(location(folder)):
        if files_below(folder):
            raise UserError(f"{option}: {folder} exists; choose another, or delete it")
        return
    try:
        if folder.is_dir() and not any(folder.iterdir()):
            return
        if folder.exists() or folder.is_symlink():
            raise UserError(f"{option}: {folder} exists; choose another, or delete it")
    except OSError as error:
        raise UserError(f"{option}: {folder}: {error.strerror}; choose another") from error
    for parent in folder.absolute().parents:
        if parent.exists() and not parent.is_dir():
            raise UserError(f"{option}: {parent} is a file; choose another folder")


@contextlib.contextmanager
def whole_or_not_at_all(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `folder` if all goes well and is deleted otherwise."""
    if is_remote(folder):
        with tempfile.TemporaryDirectory(prefix="jaxformer-") as here:
            yield Path(here)
            upload(Path(here), folder)
        return
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    new = [parent for parent in folder.parents if not parent.exists()]
    try:
        with disk_errors(folder):
            temporary.mkdir(parents=True)
            yield temporary
            try:
                if folder.is_dir():
                    folder.rmdir()
                temporary.rename(folder)
            except OSError as error:
                raise UserError(f"{folder} cannot be put in place: {error.strerror}; choose another") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in new:  # nothing stays of what did not work out
            with contextlib.suppress(OSError):
                parent.rmdir()
