"""Where run directories lie, in local folders or on gs:// (Google Cloud Storage), and their files.

The store is reached through gcsfs and `etils.epath`, whose paths most code takes for local ones. They differ in this: a
folder is no more than the beginning of its objects' names, so it cannot be renamed, and objects are written whole,
never appended to. And nobody but `location` may turn a string into a path: `Path(path)`, `path.absolute()` and
`path.resolve()` silently make a local path of one on gs://.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import math
import os
import re
import shutil
import sys
import time
import urllib.parse
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

from jaxformer.errors import UserError, disk_errors

_GS = "gs://"
_REQUESTS = 16  # at a time
_PIECE_BYTES = 8 << 20
_CLOCK_NANOSECONDS = 2 * 10**9  # the coarsest that file systems have

# epath prefers TensorFlow, where it happens to be installed; it decides when it is first used.
os.environ.setdefault("EPATH_USE_TF", "false")


def cache_folder() -> Path:
    """Return where stores, tokenizers, compiled code and what is known of jobs are kept: $JAXFORMER_CACHE or
    ~/.cache/jaxformer."""
    return Path(os.environ.get("JAXFORMER_CACHE") or Path.home() / ".cache" / "jaxformer")


def location(text: str | os.PathLike[str]) -> Path:
    """Return the path of what a person, or a config, names: a local folder or file, or one on gs://.

    Raises UserError for other stores, for gs:// without gcsfs, and for a gs:/ that is half typed.
    """
    name = os.path.expanduser(os.fspath(text))
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+", name)  # one letter is a drive of Windows
    if scheme is None:
        return Path(name)
    bucket, _, key = name.removeprefix(_GS).partition("/")
    if scheme[1].lower() != "gs":
        raise UserError(
            f"{name}: runs lie in local folders or on gs://; mount this store and give the path where it is mounted"
        )
    if not name.startswith(_GS) or not bucket or not key.strip("/"):
        raise UserError(f"{name}: write gs://BUCKET/FOLDER, as a string: pathlib.Path takes one slash away")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{name}: gs:// needs gcsfs, which is not installed: pip install 'jaxformer[gcs]'")
    _prepare()
    from etils import epath

    return epath.Path(name)


def local_path(text: str | os.PathLike[str], option: str) -> Path:
    """Return the local path of what is given as `option`. Raises UserError for a store."""
    path = location(text)
    if is_remote(path):
        raise UserError(f"{option}: {path} must be a local path")
    return path


def is_remote(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path).startswith(_GS)


def absolute(path: Path) -> Path:
    """Return the path from the root; one on gs:// always is, and its own `absolute` would put a local folder before."""
    return path if is_remote(path) else path.absolute()


def pure(path: Path) -> PurePath:
    """Return an absolute path to compare with those of other places: gs://bucket/run is /gs:/bucket/run."""
    return PurePath("/", os.fspath(path)) if is_remote(path) else path.resolve()


@functools.cache
def _prepare() -> None:
    import fsspec

    # Runs are plain objects: what kind the bucket is need not be asked, for which one needs a further permission.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # Other processes write there, too: a listing from before is no use.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback with each error that it raises


@functools.cache
def filesystem() -> Any:
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)  # the very one that epath uses


def files_below(folder: Path) -> dict[str, int]:
    """Return {path in the folder: bytes} of all files in and below it, in order; none where there is no folder."""
    if not is_remote(folder):
        found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        return {name: found[name].stat().st_size for name in sorted(found)}
    start = os.fspath(folder).removeprefix(_GS) + "/"
    objects = filesystem().find(os.fspath(folder), detail=True)
    # Google's console marks folders by empty objects whose names end with a slash.
    names = [name for name in sorted(objects) if name.startswith(start) and not name.endswith("/")]
    return {name.removeprefix(start): objects[name]["size"] for name in names}


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, by name; none where there is no folder. No other failure passes for that."""
    if not is_remote(folder):
        return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    try:
        entries = filesystem().ls(os.fspath(folder), detail=True)
    except FileNotFoundError:
        check_bucket(folder)
        return []
    names = [entry["name"].rstrip("/") for entry in entries if entry["type"] == "directory"]
    return [folder / PurePath(name).name for name in names if name != os.fspath(folder).removeprefix(_GS)]


def read_pieces(path: Path, size: int) -> Iterator[bytes]:
    """Yield the content of an object of `size` bytes, with one request each."""
    for start in range(0, size, _PIECE_BYTES):
        yield filesystem().cat_file(os.fspath(path), start=start, end=min(start + _PIECE_BYTES, size))


def threads(path: Path) -> int:
    """Return how many threads read files at `path` fast: of a store one waits for answers, not for processors."""
    return max(os.cpu_count() or 1, _REQUESTS if is_remote(path) else 1)


def move_tree(folder: Path, target: Path, first: str) -> None:
    """Rename a folder. On gs:// its objects are copied, which moves no bytes here, and deleted, `first` first."""
    if not is_remote(folder):
        folder.rename(target)
        return
    with ThreadPoolExecutor(_REQUESTS) as pool:
        list(pool.map(lambda name: filesystem().cp_file(str(folder / name), str(target / name)), files_below(folder)))
    delete_tree(folder, first)


def delete_tree(folder: Path, first: str | None = None) -> None:
    """Delete a folder with all that is in it, on gs:// the object `first` before the others."""
    if not is_remote(folder):
        shutil.rmtree(folder)
        return
    if first is not None:
        (folder / first).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        filesystem().rm(os.fspath(folder), recursive=True)


def upload(folder: Path, target: Path) -> None:
    """Copy a local folder to gs://, its config.json last: a run is one only then."""
    names = sorted(files_below(folder), key=lambda name: (name == "config.json", name))
    with ThreadPoolExecutor(_REQUESTS) as pool:
        list(pool.map(lambda name: filesystem().put_file(str(folder / name), str(target / name)), names[:-1]))
    filesystem().put_file(str(folder / names[-1]), str(target / names[-1]))


def check_bucket(path: Path) -> None:
    """Raise FileNotFoundError, of which `store_errors` makes a UserError, where a path on gs:// is in no bucket."""
    if not is_remote(path):
        return
    bucket, _, key = os.fspath(path).removeprefix(_GS).partition("/")
    filesystem().call("GET", "b/{}/o", bucket, prefix=key, maxResults=1, json_out=True)


def read_object(path: Path) -> tuple[bytes, int]:
    """Return the content of an object on gs:// and the number of its generation; b"" and 0 where there is none."""
    bucket, _, key = os.fspath(path).removeprefix(_GS).partition("/")
    try:
        headers, content = filesystem().call("GET", "b/{}/o/{}", bucket, key, alt="media")
    except FileNotFoundError:
        return b"", 0
    return bytes(content), int(headers["x-goog-generation"])


def replace_object(path: Path, content: bytes, generation: int) -> int | None:
    """Write an object on gs:// if its generation is this one (0: if there is none); return the new generation, or None
    where it is another one by now."""
    bucket, _, key = os.fspath(path).removeprefix(_GS).partition("/")
    place = filesystem().base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o"
    given = {"uploadType": "media", "name": key, "ifGenerationMatch": str(generation)}
    try:
        written = filesystem().call("POST", place, bucket, **given, data=content, json_out=True)
    except FileExistsError:
        return None
    return int(written["generation"])


def delete_object(path: Path, generation: int) -> None:
    """Delete an object on gs:// of this generation. Raises the store's error where there is none, or another one."""
    bucket, _, key = os.fspath(path).removeprefix(_GS).partition("/")
    filesystem().call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=str(generation))


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a local file's content, in hexadecimal digits.

    It is computed once per file and remembered in the cache by path, size and times. Raises OSError for a file that
    cannot be read.
    """
    path = path.resolve()
    seen = path.stat()
    known_by = [os.fspath(path), seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    memory = cache_folder() / "digests" / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        remembered = json.loads(memory.read_text())
        if remembered["file"] == known_by:
            return str(remembered["sha256"])
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    # What changed a moment ago may change again within the clock's resolution, with equal size and times.
    if time.time_ns() - max(seen.st_mtime_ns, seen.st_ctime_ns) > _CLOCK_NANOSECONDS:
        with contextlib.suppress(UserError, OSError):  # a cache that cannot be written costs time, nothing else
            write_json(memory, {"file": known_by, "sha256": found})
    return found


# The files of a run directory.


def read_record(workdir: Path, needed: Collection[str] = ("name", "config", "labels")) -> dict[str, Any]:
    """Return a run's `config.json`, in which nothing of what is `needed` is missing.

    Raises UserError when the folder is no run or the file is damaged.
    """
    path = workdir / "config.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        check_bucket(workdir)
        raise UserError(f"{workdir} is not a run: it has no config.json; give a folder that `train` wrote") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or do without this run") from error
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); mend that, or do without this run") from error
    if isinstance(record, dict) and "model_type" in record:
        raise UserError(f"{workdir} is a folder in Hugging Face format; `jaxformer import` makes a run of it")
    is_record = isinstance(record, dict) and isinstance(record.get("config"), dict)
    if not is_record or not record.keys() >= set(needed):
        raise UserError(f"{path} does not describe a run; give a folder that `train` wrote")
    return record


def is_run(workdir: Path) -> bool:
    return (workdir / "config.json").exists()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the entries of `metrics.jsonl`; a line that a crash tore is left out."""
    path = workdir / "metrics.jsonl"
    entries = []
    for line in path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict)]


def finite(content: Any) -> Any:
    """Return what JSON can hold: it knows no NaN and no infinite numbers, which become null."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path, content: Any) -> None:
    """Write JSON; see `finite`, and `write_lines`."""
    write_lines(path, [json.dumps(finite(content), indent=1)])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of text so that a crash leaves the old file or the new one, never half of one."""
    text = "".join(f"{line}\n" for line in lines)
    if is_remote(path):
        path.write_text(text)
        return
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(path)


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn what gs:// answers, when it cannot be used as asked, into a UserError. Also a decorator of functions."""
    try:
        yield
    except Exception as error:
        reason = _reason(error) if "gcsfs" in sys.modules and not isinstance(error, UserError) else None
        if reason is None:
            raise
        raise UserError(reason) from error


# What gcsfs, the libraries below it and TensorStore say, and what that means.
_UNREACHABLE = "{bucket} cannot be reached ({said}); run the same command again"
_ANSWERS = {
    r", 401\b|code='401'|UNAUTHENTICATED|RefreshError|DefaultCredentialsError": "{bucket} does not accept the "
    "credentials that are used here ({said}); run `gcloud auth application-default login`, or name a service account's "
    "key in GOOGLE_APPLICATION_CREDENTIALS",
    r"^Forbidden: |PERMISSION_DENIED": "no permission for {bucket} ({said}); give the account that is used here the "
    "role Storage Object User on the bucket",
    r"\bb/[^/\s]+/o$|bucket does not exist": "there is no bucket {bucket}; create it, or correct its name",
    r"UNAVAILABLE|DEADLINE_EXCEEDED": _UNREACHABLE,
}
_CLIENTS = ("gcsfs", "google", "aiohttp", "requests")


def _reason(error: Exception) -> str | None:
    """Return what a person can do about an error, or None for one that no store has raised."""
    text = urllib.parse.unquote(str(error))
    bucket = re.search(r"gs://([^/\s'\"]+)|(?:^|^Forbidden: |/storage/v1/)b/([^/\s]+)", text)
    is_clients = type(error).__module__.partition(".")[0] in _CLIENTS
    if not is_clients and bucket is None:
        return None
    text += f" {type(error).__name__}" if is_clients else ""
    answer = next((answer for sign, answer in _ANSWERS.items() if re.search(sign, text)), _UNREACHABLE * is_clients)
    last = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
    name = _GS + (bucket[1] or bucket[2] if bucket else "")
    return answer.format(bucket=name, said=last.partition(" [")[0].strip()) or None


def said(error: Exception) -> str:
    return _reason(error) or f"{type(error).__name__}: {error}"
