"""Files of tensors: safetensors, one or sharded, read and written; PyTorch's own files read without running them.

A file is another's: nothing in it is executed, and no number in it is trusted before it is compared with the file.
"""

import collections
import contextlib
import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from jaxformer.errors import UserError, disk_errors
from jaxformer.interop.configs import read_json

SHARD_BYTES = 5_000_000_000
_FLOATS = ("F32", "F16", "BF16", "F64")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file that has not been read yet."""

    file: Path
    shape: Shape
    dtype: str
    read: Callable[[], np.ndarray]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a folder by name; nothing but headers is read.

    Raises UserError for a folder without weights, a missing shard, and damaged or hostile files.
    """
    for stem, suffix, open_file in (("model", ".safetensors", _safetensors), ("pytorch_model", ".bin", _pytorch)):
        index, single = folder / f"{stem}{suffix}.index.json", folder / f"{stem}{suffix}"
        if index.exists():
            return _sharded(index, open_file)
        if single.exists():
            return open_file(single)
    other = sorted(path.name for path in folder.glob("*") if path.suffix in (".h5", ".msgpack", ".ckpt", ".onnx"))
    hint = f"; {other[0]} cannot be read, save it as safetensors" if other else ""
    raise UserError(f"{folder} has no model.safetensors{hint}")


def _sharded(index: Path, open_file: Callable[[Path], dict[str, StoredTensor]]) -> dict[str, StoredTensor]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index} is damaged: it has no weight_map")
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(names.values())):
        if Path(file).name != file or not file.endswith(index.name.partition(".")[2].partition(".")[0]):
            raise UserError(f"{index}: '{file}' is no file of weights in this folder")
        if not (index.parent / file).is_file():
            raise UserError(f"{index.parent} lacks {file}, which {index.name} names; get the missing file")
        held = open_file(index.parent / file)
        wanted = [name for name, place in names.items() if place == file]
        absent = [name for name in wanted if name not in held]
        if absent:
            raise UserError(f"{index}: {file} holds no {listed(absent)}")
        # A file may hold more than the index takes from it.
        tensors |= {name: held[name] for name in wanted}
    return tensors


def listed(names: list[str], shown: int = 3) -> str:
    """Return the first names, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _safetensors(path: Path) -> dict[str, StoredTensor]:
    def read(name: str) -> np.ndarray:
        # Opened anew for each: a mapping that stays would count all pages read as the process's memory.
        with _damaged(path), safe_open(path, "numpy") as file:
            return file.get_tensor(name)

    tensors = {}
    with _damaged(path), safe_open(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            entry = file.get_slice(name)
            shape, dtype = tuple(entry.get_shape()), entry.get_dtype()
            tensors[name] = StoredTensor(path, shape, dtype, lambda name=name: read(name))
    return tensors


@contextlib.contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # what a file of nonsense makes pickle, zipfile and safetensors raise has no end
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} is damaged or unfinished: {first}; get it again") from error


_STORAGES = {
    "FloatStorage": ("F32", np.float32),
    "HalfStorage": ("F16", np.float16),
    "BFloat16Storage": ("BF16", ml_dtypes.bfloat16),
    "DoubleStorage": ("F64", np.float64),
    "LongStorage": ("I64", np.int64),
    "IntStorage": ("I32", np.int32),
    "ByteStorage": ("U8", np.uint8),
    "BoolStorage": ("BOOL", np.bool_),
}


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str


class _Unpickler(pickle.Unpickler):
    """Builds tensors out of numbers, and refuses to import or call anything else."""

    def __init__(self, file: Any, tensor: Callable[..., Any]) -> None:
        super().__init__(file)
        self._tensor = tensor

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of weights needs")
        return allowed[module, name]

    def persistent_load(self, saved: Any) -> _Storage:
        kind, storage, key = saved[0], saved[1], saved[2]
        if kind != "storage" or storage not in _STORAGES:
            raise pickle.UnpicklingError("a storage of an unknown kind")
        return _Storage(storage, str(key))


def _pytorch(path: Path) -> dict[str, StoredTensor]:
    """Read the table of a file that torch.save wrote (zip format, since PyTorch 1.6)."""
    with _damaged(path):
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is no PyTorch file that can be read safely; save the model as safetensors")
        with zipfile.ZipFile(path) as archive:
            entries = {name.partition("/")[2]: name for name in archive.namelist()}
            if archive.namelist() and "data.pkl" not in entries:
                raise UserError(f"{path} holds no weights (data.pkl)")

            def tensor(storage: _Storage, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
                name, dtype = _STORAGES[storage.kind]
                entry = entries[f"data/{storage.key}"]
                info = archive.getinfo(entry)
                if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                    raise pickle.UnpicklingError(f"{entry} is packed, which torch.save never does")
                # Numbers of our own from here on: the pickle may still change the objects it gave.
                start, shape, steps = int(offset), tuple(map(int, size)), tuple(map(int, stride))
                places = list(zip(shape, steps, strict=True))
                last = start + sum((n - 1) * step for n, step in places)
                count = info.file_size // np.dtype(dtype).itemsize
                fits = start >= 0 and all(n >= 0 and (step > 0 or n < 2) for n, step in places)
                if not fits or (0 not in shape and (last >= count or math.prod(shape) > count)):
                    raise pickle.UnpicklingError(f"a tensor reaches beyond its storage {entry}")

                def read() -> np.ndarray:
                    with _damaged(path), zipfile.ZipFile(path) as again:
                        values = np.frombuffer(again.read(entry), dtype)
                        if 0 in shape:
                            return np.zeros(shape, dtype)
                        if len(values) <= last:
                            raise pickle.UnpicklingError(f"a tensor reaches beyond its storage {entry}")
                        strides = [step * values.itemsize for step in steps]
                        return np.lib.stride_tricks.as_strided(values[start:], shape, strides, writeable=False)

                return StoredTensor(path, shape, name, read)

            with archive.open(entries["data.pkl"]) as file:
                table = _Unpickler(file, tensor).load()
    table = table.get("state_dict", table) if isinstance(table, dict) else table
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise UserError(f"{path} holds no table of weights")
    return {name: value for name, value in table.items() if isinstance(value, StoredTensor)}


def check_dtype(name: str, tensor: StoredTensor) -> None:
    """Raise UserError when a tensor does not hold floating-point numbers."""
    if tensor.dtype not in _FLOATS:
        raise UserError(f"{tensor.file}: {name} has dtype {tensor.dtype}; weights are {', '.join(_FLOATS)}")


def as_float32(name: str, tensor: StoredTensor) -> np.ndarray:
    """Read a tensor. Raises UserError when it does not hold floating-point numbers."""
    check_dtype(name, tensor)
    return np.asarray(tensor.read(), np.float32)


class TensorWriter:
    """safetensors of known names and shapes, float32, written piece by piece in any order.

    The library's own writer wants all tensors in memory at once. One file is `model.safetensors`; above `shard_bytes`
    there are several, and an index.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, Shape], shard_bytes: int = SHARD_BYTES) -> None:
        self._places: dict[str, tuple[Path, int]] = {}
        shards: list[dict[str, Shape]] = [{}]
        filled = 0
        for name, shape in shapes.items():
            size = 4 * math.prod(shape)
            if shards[-1] and filled + size > shard_bytes:
                shards.append({})
                filled = 0
            shards[-1][name] = shape
            filled += size
        total = len(shards)
        for number, shard in enumerate(shards, 1):
            file = "model.safetensors" if total == 1 else f"model-{number:05d}-of-{total:05d}.safetensors"
            self._start(folder / file, shard)
        if total > 1:
            weight_map = {name: path.name for name, (path, _) in self._places.items()}
            size = sum(4 * math.prod(shape) for shape in shapes.values())
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")

    def _start(self, path: Path, shapes: Mapping[str, Shape]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in shapes.items():
            start, end = end, end + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with disk_errors(path), path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
            if hasattr(os, "posix_fallocate") and end:
                os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)  # a full disk is met now, not at the end
        for name in shapes:
            self._places[name] = (path, 8 + len(text) + header[name]["data_offsets"][0])

    def write(self, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
        """Write tensors by name, in any order."""
        for name, array in tensors:
            path, offset = self._places[name]
            with disk_errors(path), path.open("r+b") as file:
                file.seek(offset)
                file.write(np.ascontiguousarray(array, np.float32).data)
