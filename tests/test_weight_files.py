"""Files of tensors: what is written, and PyTorch's files, read without running them."""

import os
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import changed, params_of
from safetensors.numpy import load_file

from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.interop import import_run
from jaxformer.interop.weights import TensorWriter, stored_tensors


class Storage:
    def __init__(self, kind: str, key: str, count: int) -> None:
        self.kind, self.key, self.count = kind, key, count


def torch_modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stand in for torch while a pickle is written: only names go into the file."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*args: Any) -> None:
        raise AssertionError("nothing of a file is called")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    torch._utils = utils
    for name in ("FloatStorage", "BFloat16Storage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch


def save_bin(path: Path, tensors: dict[str, np.ndarray], torch: Any, extra: Any = None, layout: Any = None) -> None:
    """Write what torch.save writes: a zip of a pickle and one file for each storage."""

    class Tensor:
        def __init__(self, storage: Storage, shape: tuple, stride: tuple) -> None:
            self.parts = (storage, *(layout or (0, shape, stride)), False, {})

        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, self.parts

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, Storage):
                return ("storage", getattr(torch, value.kind), value.key, "cpu", value.count)
            return None

    table: dict[str, Any] = {}
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, array) in enumerate(tensors.items()):
            kind = "FloatStorage" if array.dtype == np.float32 else "BFloat16Storage"
            archive.writestr(f"archive/data/{number}", array.tobytes())
            stride = tuple(step // array.itemsize for step in array.strides)
            table[name] = Tensor(Storage(kind, str(number), array.size), array.shape, stride)
            if isinstance(extra, list):
                extra.append(table[name])
        with archive.open("archive/data.pkl", "w") as file:
            Pickler(file, protocol=2).dump(({"extra": extra} if extra is not None else {}) | table)


def test_pytorch_files_are_read_without_torch(exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out, _ = exported("gpt2")
    folder = changed(out, tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    tensors = load_file(out / "model.safetensors")
    with monkeypatch.context() as patch:
        save_bin(folder / "pytorch_model.bin", tensors, torch_modules(patch))
    assert "torch" not in sys.modules
    import_run(str(folder), tmp_path / "run")
    ours, theirs = params_of(run), params_of(tmp_path / "run")
    assert all(np.array_equal(ours[path], theirs[path]) for path in ours)


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


def test_a_hostile_pickle_runs_nothing(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    _, out, _ = exported("gpt2")
    folder = changed(out, tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    with monkeypatch.context() as patch:
        save_bin(folder / "pytorch_model.bin", {}, torch_modules(patch), extra=Hostile())
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(folder), f"--workdir={tmp_path / 'run'}"]) == 2
    assert "asks for posix.system" in capsys.readouterr().err.replace("nt.system", "posix.system")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def rewritten(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """Put other data into the storage of a file that `save_bin` wrote."""
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("archive/data.pkl")
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data/0", data)
        archive.writestr("archive/data.pkl", pickled)


@pytest.fixture
def torch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that writes a file of one tensor "a" of four numbers, with another shape or stride."""

    def make(shape: Any = (4,), stride: Any = (1,), offset: Any = 0) -> Path:
        with monkeypatch.context() as patch:
            torch = torch_modules(patch)
            path = tmp_path / "pytorch_model.bin"
            save_bin(path, {"a": np.arange(4, dtype=np.float32)}, torch, layout=(offset, shape, stride))
        return path

    return make


@pytest.mark.parametrize(
    "layout",
    [
        {"shape": (5,)}, {"shape": (4,), "stride": (2,)}, {"shape": (4,), "stride": (-1,), "offset": 3},
        {"shape": (200_000, 200_000), "stride": (0, 0)}, {"shape": (4,), "offset": 1}, {"shape": (2,), "offset": -1},
        {"shape": (3, 2), "stride": (1, 1)}, {"shape": (-1,)},
        {"shape": (2, 2), "stride": (1,)}, {"shape": ("x",)}, {"shape": 4}, {"stride": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_tensor_beyond_its_storage_is_refused(layout: dict, torch_file: Any, tmp_path: Path) -> None:
    torch_file(**layout)
    with pytest.raises(UserError, match="damaged or unfinished"):
        stored_tensors(tmp_path)


def test_a_storage_that_is_not_what_it_says_is_refused(torch_file: Any, tmp_path: Path) -> None:
    whole = np.arange(4, dtype=np.float32).tobytes()
    assert stored_tensors(torch_file().parent)["a"].read().tolist() == [0, 1, 2, 3]
    rewritten(torch_file(), whole[:8])
    with pytest.raises(UserError, match="reaches beyond its storage"):
        stored_tensors(tmp_path)
    rewritten(torch_file(), bytes(2**16), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="is packed, which torch.save never does"):
        stored_tensors(tmp_path)
    # The directory at the end of the file claims more than the entry holds.
    path = torch_file()
    content = path.read_bytes()
    place = content.index(b"PK\x01\x02")
    longer = struct.pack("<II", 1 << 20, 1 << 20)
    path.write_bytes(content[: place + 20] + longer + content[place + 28 :])
    with pytest.raises(UserError, match="damaged or unfinished"):
        for tensor in stored_tensors(tmp_path).values():
            tensor.read()


def test_shapes_are_taken_when_they_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle may go on filling a list that it has handed over as a shape and as strides."""
    grows: list[Any] = []
    with monkeypatch.context() as patch:
        save_bin(tmp_path / "pytorch_model.bin", {"a": np.ones(4, np.float32)}, torch_modules(patch), grows,
                 layout=(0, grows, grows))  # fmt: skip
    assert len(grows) == 1  # the tensor itself, once it was made
    tensor = stored_tensors(tmp_path)["a"]
    assert tensor.shape == () and tensor.read() == 1.0


def test_the_writer_writes_what_the_library_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"b": rng.normal(size=(3, 5)), "a": rng.normal(size=(7,)), "empty": np.zeros((0, 4)), "c": np.array(2.0)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    writer = TensorWriter(tmp_path, {name: array.shape for name, array in arrays.items()})
    writer.write(reversed(arrays.items()))
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array) and found[name].shape == array.shape
