"""The digest of a checkpoint: what it holds, and the size and hash of each of its files.

Orbax restores a file with a flipped byte without complaint, and counts an empty directory as a checkpoint. So each of
our checkpoints carries `digest.json`, written last: a directory without it is no finished checkpoint, and every restore
compares the files with it first. It also lists every array, so that a checkpoint can be read without the code that
wrote it, and the metrics that the checkpoint was saved with.
"""

import concurrent.futures
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxformer.errors import UserError
from jaxformer.storage import absolute, files_below, folders_in, is_remote, location, read_pieces, threads

DIGEST = "digest.json"
PARAMS = "params/"
UNKNOWN = -1  # the step that a digest from before does not name

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Digest:
    """`arrays`: path in the state -> (shape, dtype); `files`: path in the directory -> (bytes, SHA-256); `saved`: when,
    in seconds of the epoch."""

    step: int
    saved: float
    arrays: dict[str, tuple[Shape, str]]
    metrics: dict[str, float]
    files: dict[str, tuple[int, str]]


class DamagedDigest(Exception):
    """The digest itself cannot be read or does not agree with its own hash."""


def array_paths(state: Any) -> dict[str, Any]:
    """Return {path: leaf} of any tree; paths join the keys, field names and indices with "/"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def write_digest(
    folder: Path, step: int, arrays: Mapping[str, tuple[Shape, str]], metrics: Mapping[str, float]
) -> None:
    """Hash all files below `folder` and write its digest, whole or not at all.

    Raises:
      OSError: the disk is full, no permission, …
    """
    sizes = files_below(folder)
    with concurrent.futures.ThreadPoolExecutor(threads(folder)) as pool:
        hashes = pool.map(lambda name: _hash(folder / name, sizes[name]), sizes)
        files = {name: [size, digest] for (name, size), digest in zip(sizes.items(), hashes, strict=True)}
    content = {"step": step, "saved": time.time(), "metrics": dict(metrics), "arrays": dict(arrays), "files": files}
    text = json.dumps(content | {"sha256": _hash_content(content)}, indent=1)
    if is_remote(folder):
        (folder / DIGEST).write_text(text)
        return
    temporary = folder / f"{DIGEST}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / DIGEST)


def read_digest(folder: Path) -> Digest:
    """Read the digest of the checkpoint in `folder`.

    Raises:
      FileNotFoundError: there is none, so this is not a finished checkpoint.
      DamagedDigest: it is not what was written.
    """
    try:
        content = json.loads((folder / DIGEST).read_text(encoding="utf-8"))
        claimed = content.pop("sha256")
        if claimed != _hash_content(content):
            raise DamagedDigest(f"{DIGEST} does not agree with its own hash")
        return Digest(
            step=content.get("step", UNKNOWN),
            saved=content.get("saved", 0.0),
            arrays={path: (tuple(shape), dtype) for path, (shape, dtype) in content["arrays"].items()},
            metrics=content["metrics"],
            files={name: (size, digest) for name, (size, digest) in content["files"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedDigest(f"{DIGEST} is not readable") from error


def find_damage(folder: Path) -> str | None:
    """Compare every file with the digest; return what is wrong, or None for a sound checkpoint."""
    try:
        digest = read_digest(folder)
    except FileNotFoundError:
        return f"{DIGEST} is missing"
    except (DamagedDigest, OSError) as error:
        return str(error)
    if folder.name.isdecimal() and digest.step not in (UNKNOWN, int(folder.name)):
        return f"its {DIGEST} names step {digest.step}, so it was copied or renamed"
    sizes = files_below(folder)
    for name, (size, _) in digest.files.items():
        if name not in sizes:
            return f"{name} is missing"
        if sizes[name] != size:
            return f"{name} has {sizes[name]:,} bytes instead of {size:,}"
    with concurrent.futures.ThreadPoolExecutor(threads(folder)) as pool:
        found = pool.map(lambda name: _hash_or_reason(folder / name, sizes[name]), digest.files)
        for (name, (_, expected)), actual in zip(digest.files.items(), found, strict=True):
            if actual != expected:
                return f"{name} does not agree with its hash"
    return None


def finished_steps(directory: Path) -> list[int]:
    """Return the steps of the finished checkpoints in `directory`, ascending; damage is not looked for."""
    return [step for step in step_folders(directory) if (directory / str(step) / DIGEST).is_file()]


def step_folders(directory: Path) -> list[int]:
    """Return the steps, ascending, that have a folder of their name in `directory`, whatever is in it."""
    names = [path.name for path in folders_in(directory)]
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def best_step(directory: Path, metric: str, mode: str) -> int | None:
    """Return the step whose checkpoint has the lowest (mode "min") or highest ("max") finite value of a metric.

    Of equal ones the earliest; None if no checkpoint was saved with that metric.
    """
    values: dict[int, float] = {}
    for step in finished_steps(directory):
        try:
            digest = read_digest(directory / str(step))
        except (DamagedDigest, OSError):
            continue
        value = digest.metrics.get(metric, math.nan)
        if math.isfinite(value) and digest.step in (UNKNOWN, step):
            values[step] = value
    sign = 1 if mode == "min" else -1
    return min(values, key=lambda step: sign * values[step]) if values else None


def spaced_steps(directory: Path, hours: float) -> list[int]:
    """Return the steps of the first finished checkpoint and of each that was saved `hours` or more after the last of
    these."""
    spaced, last = [], -math.inf
    for step in finished_steps(directory):
        try:
            saved = read_digest(directory / str(step)).saved
        except (DamagedDigest, OSError):
            continue
        if saved - last >= hours * 3600:
            spaced.append(step)
            last = saved
    return spaced


def locate(path: Path) -> Path:
    """Return the checkpoint that `path` names: its own directory, or the newest in a run or in its `checkpoints`.

    Nothing is changed on disk, so a run that is still training may be read.

    Raises:
      UserError: there is none.
    """
    path = absolute(location(path))
    if (path / DIGEST).is_file():
        return path
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = finished_steps(directory)
    if steps:
        return directory / str(steps[-1])
    if not path.exists():
        raise UserError(f"no checkpoint at {path}: the folder does not exist; name a run")
    if path.name.isdecimal() or step_folders(directory):
        raise UserError(f"the checkpoint at {path} is damaged or unfinished: {DIGEST} is missing; name another one")
    raise UserError(f"no checkpoint in {path}; name a run that has saved one")


def stored_shapes(path: Path) -> dict[str, tuple[Shape, str]]:
    """Return {path: (shape, dtype)} of the parameters in a checkpoint, or in the newest one of a run.

    Raises:
      UserError: there is no checkpoint, or its digest is damaged.
    """
    folder = locate(path)
    try:
        arrays = read_digest(folder).arrays
    except DamagedDigest as error:
        raise UserError(f"the checkpoint {folder} is damaged: {error}; name another one") from error
    return {name.removeprefix(PARAMS): entry for name, entry in arrays.items() if name.startswith(PARAMS)}


def content_of(path: Path) -> str:
    """Return what names the parameters that `path` leads to, as "step 100, 0123456789abcdef": the same for a copy.

    Raises:
      UserError: there is no checkpoint, or its digest is damaged.
    """
    folder = locate(path)
    try:
        found = read_digest(folder)
    except DamagedDigest as error:
        raise UserError(f"the checkpoint {folder} is damaged: {error}; name another one") from error
    return f"step {found.step}, {_hash_content({name: found.files[name][1] for name in sorted(found.files)})[:16]}"


def _hash(path: Path, size: int) -> str:
    if is_remote(path):
        found = hashlib.sha256()
        for piece in read_pieces(path, size):
            found.update(piece)
        return found.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_or_reason(path: Path, size: int) -> str:
    try:
        return _hash(path, size)
    except OSError as error:
        return str(error)


def _hash_content(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
