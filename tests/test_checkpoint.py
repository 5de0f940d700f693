import io
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import xla_flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from states import assert_equal, make_params, make_state, restore_named, save_all, shapes

import jaxformer.checkpoint.digest as digest
import jaxformer.checkpoint.manager as manager
from jaxformer.checkpoint import CheckpointConfig, Checkpoints, restore_params, stored_shapes
from jaxformer.errors import UserError


def restore(directory: Path) -> tuple[int, Any] | None:
    return Checkpoints(directory, CheckpointConfig()).restore_latest(shapes(make_state(0)))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(autouse=True)
def _threads_end() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name in ("checkpoint", "async_save")]


def test_round_trip_is_bit_exact_with_the_optimizer_and_after_donation(tmp_path: Path) -> None:
    state, expected = make_state(7), make_state(7)
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig())
    overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0)
    checkpoints.save(7, state)
    overwrite(state)
    checkpoints.close()
    found = restore(tmp_path / "checkpoints")
    assert found is not None and found[0] == 7
    assert_equal(found[1], expected)
    step, named = restore_named(tmp_path / "checkpoints" / "7", shapes(expected))
    assert step == 7
    assert_equal(named, expected)
    assert_equal(restore_named(tmp_path, shapes(expected))[1], expected)  # a run directory
    digest = json.loads((tmp_path / "checkpoints/7/digest.json").read_text())
    assert digest["step"] == 7 and digest["arrays"]["params/head/kernel"] == [[8, 2], "float32"]


def test_large_states_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "_PACK_FROM_BYTES", 0)
    save_all(tmp_path, {3: None})
    assert (tmp_path / "3" / "manifest.ocdbt").exists()
    found = restore(tmp_path)
    assert found is not None
    assert_equal(found[1], make_state(3))


def test_an_empty_or_missing_directory_is_a_fresh_start(tmp_path: Path) -> None:
    assert restore(tmp_path) is None
    assert restore(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (dict(keep_last=2), ["20", "40", "50"]),
        (dict(keep_last=1), ["20", "50"]),
        (dict(keep_last=2, keep_best=False), ["40", "50"]),
        (dict(keep_last=1, best_mode="max"), ["30", "50"]),
        (dict(keep_last=1, best_metric="eval/accuracy"), ["50"]),
        (dict(keep_last=0), ["10", "20", "30", "40", "50"]),
    ],
)
def test_which_checkpoints_are_kept(tmp_path: Path, fields: dict[str, Any], expected: list[str]) -> None:
    save_all(tmp_path, {10: 3.0, 20: 1.0, 30: 5.0, 40: float("nan"), 50: None}, **fields)
    assert names(tmp_path) == expected


def test_a_step_is_saved_only_once(tmp_path: Path) -> None:
    save_all(tmp_path, {5: None})
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    assert checkpoints.restore_latest(shapes(make_state(0))) is not None
    written = (tmp_path / "5" / "digest.json").stat().st_mtime_ns
    checkpoints.save(5, make_state(5))
    checkpoints.save(6, make_state(6))
    checkpoints.save(6, make_state(6))
    checkpoints.close()
    assert names(tmp_path) == ["5", "6"] and (tmp_path / "5" / "digest.json").stat().st_mtime_ns == written


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "flipped":
        data[len(data) // 2] ^= 0x41
    path.write_bytes(data if how == "flipped" else data[:-1])


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_damage_in_any_file_is_found_and_set_aside(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    save_all(tmp_path, {1: None, 2: None})
    files = sorted(path for path in (tmp_path / "2").rglob("*") if path.is_file())
    assert len(files) > 15
    for path in files:
        original = path.read_bytes()
        damage(path, how)
        caplog.clear()
        # Reading all arrays of step 1 each time would be slow, and is not the point here.
        assert Checkpoints(tmp_path, CheckpointConfig())._choose() == 1, path
        assert names(tmp_path) == ["1", "2.damaged-1"] and "is damaged" in caplog.text
        assert path.name in caplog.text or path.name == "digest.json"
        (tmp_path / "2.damaged-1").rename(tmp_path / "2")
        path.write_bytes(original)
    found = restore(tmp_path)
    assert found is not None and found[0] == 2


def test_walks_back_over_damaged_checkpoints(tmp_path: Path) -> None:
    save_all(tmp_path, {1: None, 2: None, 3: None}, keep_last=0)
    damage(tmp_path / "3" / "step" / "0", "flipped")
    damage(tmp_path / "2" / "params.head.kernel" / "0.0", "truncated")
    (tmp_path / "3.damaged-1").mkdir()
    (tmp_path / "17").mkdir()  # hand-made and empty
    found = restore(tmp_path)
    assert found is not None and found[0] == 1
    assert_equal(found[1], make_state(1))
    assert names(tmp_path) == ["1", "2.damaged-1", "3.damaged-1", "3.damaged-2"]


def test_with_no_sound_checkpoint_left_it_never_starts_afresh(tmp_path: Path) -> None:
    save_all(tmp_path, {1: None, 2: None})
    damage(tmp_path / "1" / "_METADATA", "flipped")
    damage(tmp_path / "2" / "digest.json", "missing")
    for _ in range(2):
        with pytest.raises(UserError, match=r"no sound checkpoint.*2 \(digest.json is missing\), 1 \(_METADATA"):
            restore(tmp_path)
        assert names(tmp_path) == ["1", "2"]
    for step in "12":
        (tmp_path / step).rename(tmp_path / f"{step}.damaged-1")
    with pytest.raises(UserError, match="no sound checkpoint is left"):
        restore(tmp_path)


def test_a_changed_number_in_the_digest_is_found(tmp_path: Path) -> None:
    save_all(tmp_path, {1: 0.125})
    digest = tmp_path / "1" / "digest.json"
    digest.write_text(digest.read_text().replace("0.125", "0.025"))
    with pytest.raises(UserError, match="digest.json does not agree with its own hash"):
        restore_named(tmp_path, shapes(make_state(0)))


def test_on_the_cpu_a_donation_does_not_wait_for_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class Writer:
        def save(self, folder: Path, args: Any, force: bool) -> None:
            given.append(args.item)
            folder.mkdir()

        def wait_until_finished(self) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr(manager, "_make_orbax", lambda state: Writer())
    state = make_state(1)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, state)
    checkpoints.close()
    for held, own in zip(jax.tree.leaves(given[0]), jax.tree.leaves(state), strict=True):
        assert held.unsafe_buffer_pointer() != own.unsafe_buffer_pointer()


def test_what_a_kill_leaves_is_cleared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("8.unfinished", "9.unfinished.orbax-checkpoint-tmp", "5.deleted", "3"):
        (tmp_path / name / "d").mkdir(parents=True)
    (tmp_path / "8.unfinished" / "d" / "0").write_text("x")
    assert restore(tmp_path) is None
    assert names(tmp_path) == [] and caplog.text.count("deleting") == 4


def test_a_named_damaged_checkpoint_is_an_error_and_stays(tmp_path: Path) -> None:
    save_all(tmp_path / "checkpoints", {1: None, 2: None})
    damage(tmp_path / "checkpoints" / "2" / "step" / "0", "flipped")
    target = shapes(make_state(0))
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "2"):
        with pytest.raises(UserError, match="step/0 does not agree with its hash; name another one; .* also has 1"):
            restore_named(path, target)
        with pytest.raises(UserError, match="is damaged"):
            restore_params(path, target.params)
    assert restore_named(tmp_path / "checkpoints" / "1", target)[0] == 1
    assert names(tmp_path / "checkpoints") == ["1", "2"]
    damage(tmp_path / "checkpoints" / "2" / "digest.json", "truncated")
    with pytest.raises(UserError, match="is damaged: digest.json"):
        stored_shapes(tmp_path)
    damage(tmp_path / "checkpoints" / "2" / "digest.json", "missing")
    with pytest.raises(UserError, match="digest.json is missing"):
        restore_named(tmp_path / "checkpoints" / "2", target)


def test_no_checkpoint_to_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder does not exist"):
        restore_params(tmp_path / "none", make_params())
    with pytest.raises(UserError, match="no checkpoint in"):
        restore_params(tmp_path, make_params())


def test_a_state_of_another_config_is_refused(tmp_path: Path) -> None:
    save_all(tmp_path, {1: None})
    other = make_state(1)._replace(opt_state=())
    with pytest.raises(UserError, match=r"does not fit this model and optimizer[\s\S]*opt_state/1/count \[\]"):
        Checkpoints(tmp_path, CheckpointConfig()).restore_latest(shapes(other))


@pytest.mark.parametrize(("stored", "wanted"), [(7, 8), (8, 7), (5, 8)])
def test_rows_behind_the_vocabulary_are_left_out_or_filled_up(tmp_path: Path, stored: int, wanted: int) -> None:
    """Five ids, in tables of other lengths: a run of one `model.vocab_multiple` starts from one of another."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("tensor",))
    saved = {
        "embedding": {"tokens": jnp.arange(3.0 * stored).reshape(stored, 3)},
        "vocabulary": {"kernel": jnp.arange(2.0 * stored).reshape(2, stored), "bias": jnp.ones(stored)},
    }
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, {"params": saved})
    checkpoints.close()

    def leaf(shape: tuple[int, ...], *split: str | None) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(*split) if wanted % 2 == 0 else PartitionSpec()
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    target = {
        "embedding": {"tokens": leaf((wanted, 3), "tensor")},
        "vocabulary": {"kernel": leaf((2, wanted), None, "tensor"), "bias": leaf((wanted,), "tensor")},
    }
    params, table = restore_params(tmp_path, target, vocab_size=5)
    both = min(stored, wanted)
    for path, axis in (("embedding/tokens", 0), ("vocabulary/kernel", 1), ("vocabulary/bias", 0)):
        stack, name = path.split("/")
        found, expected = (np.moveaxis(np.asarray(tree[stack][name]), axis, 0) for tree in (params, saved))
        np.testing.assert_array_equal(found[:both], expected[:both])
        assert len(found) == wanted and not found[both:].any()
        assert params[stack][name].sharding == target[stack][name].sharding
        assert table.restored[path] == target[stack][name].shape
    for size in (0, 9):  # no rows are padding, or fewer are stored than there are ids
        with pytest.raises(UserError, match="are not the model's"):
            restore_params(tmp_path, target, vocab_size=size)


def test_sharded_saves_restore_on_one_device_and_back(tmp_path: Path) -> None:
    devices = np.array(jax.devices())
    if len(devices) < 8:
        pytest.skip("needs eight devices")
    mesh = Mesh(devices[:8].reshape(4, 2), ("data", "fsdp"))
    sharding = {"kernel": NamedSharding(mesh, PartitionSpec("fsdp", "data"))}
    expected = {"kernel": jnp.arange(64.0).reshape(8, 8)}
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(1, {"params": jax.device_put(expected, sharding)})
    checkpoints.close()
    for target in (jax.sharding.SingleDeviceSharding(devices[0]), NamedSharding(mesh, PartitionSpec(None, "fsdp"))):
        params, _ = restore_params(tmp_path, {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=target)})
        assert params["kernel"].sharding == target
        assert_equal(params, expected)
    params, _ = restore_params(tmp_path, {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.bfloat16)})
    assert params["kernel"].dtype == jnp.bfloat16 and np.array_equal(params["kernel"], expected["kernel"])
    assert params["kernel"].devices() == {devices[0]}


class TestRestoreParams:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        save_all(tmp_path / "checkpoints", {1: None, 2: None})
        return tmp_path

    def test_stored_shapes(self, run: Path) -> None:
        assert stored_shapes(run) == {
            "embedding/tokens": ((11, 8), "float32"),
            "decoder/layers/query/kernel": ((4, 8, 16), "float32"),
            "decoder/norm/scale": ((8,), "bfloat16"),
            "head/kernel": ((8, 2), "float32"),
        }

    def test_everything(self, run: Path) -> None:
        params, table = restore_params(run, jax.eval_shape(make_params))
        assert_equal(params, make_params(2))
        assert table.step == 2 and len(table.restored) == 4 and not table.skipped and not table.new

    def test_a_new_head(self, run: Path) -> None:
        target = make_params(99)
        target["label"] = {"kernel": jnp.full((8, 5), 3.0)}
        del target["head"]
        params, table = restore_params(run, target, skip=("head/.*",), new=("label/.*",))
        assert_equal(params["decoder"], make_params(2)["decoder"])
        assert_equal(params["label"], target["label"])
        assert table.skipped == {"head/kernel": (8, 2)} and table.new == {"label/kernel": (8, 5)}
        console = Console(width=300, record=True, file=io.StringIO())
        console.print(table)
        text = console.export_text()
        assert "608 restored, 16 skipped, 40 new" in text and "8 x 5" in text and "label/kernel" in text

    def test_what_is_not_named_is_shown_in_two_columns(self, run: Path) -> None:
        target = make_params(99)
        target["label"] = {"kernel": jnp.ones((8, 5))}
        target["head"] = {"kernel": jnp.ones((8, 3))}
        del target["embedding"]
        with pytest.raises(UserError) as error:
            restore_params(run, target)
        assert str(error.value).splitlines()[1:] == [
            "  only in the checkpoint    only in the model",
            "  head/kernel [8, 2]        head/kernel [8, 3]",
            "  embedding/tokens [11, 8]  label/kernel [8, 5]",
        ]
        with pytest.raises(UserError, match=r"head/kernel \[8, 2\]"):
            restore_params(run, target, skip=("embedding/.*",), new=("head/.*", "label/.*"))
        params, _ = restore_params(run, target, skip=("embedding/.*", "head/.*"), new=("head/.*", "label/.*"))
        assert_equal(params["head"], target["head"])

    def test_a_name_that_is_not_there_is_an_error(self, run: Path) -> None:
        with pytest.raises(UserError, match=r"checkpoint\.init_skip: pattern 'heads/.\*'.*nearest: head/kernel"):
            restore_params(run, make_params(), skip=("heads/.*",))
        with pytest.raises(UserError, match=r"checkpoint\.init_new: pattern 'hed'"):
            restore_params(run, make_params(), new=("hed",))

    def test_long_differences_are_cut(self, run: Path) -> None:
        target = make_params() | {"extra": {f"array{i}": jnp.ones(2) for i in range(50)}}
        with pytest.raises(UserError, match="… and 20 more") as error:
            restore_params(run, target)
        assert len(str(error.value).splitlines()) == 33

    def test_layers_are_matched_in_order(self, run: Path) -> None:
        kernel = make_params(2)["decoder"]["layers"]["query"]["kernel"]
        target = make_params(99, num_layers=2)
        params, table = restore_params(run, target, skip=("decoder/layers[1::2]/.*",))
        assert_equal(params["decoder"]["layers"]["query"]["kernel"], kernel[::2])
        assert table.skipped == {"decoder/layers/query/kernel": (2, 8, 16)}
        target = make_params(99, num_layers=6)
        params, _ = restore_params(run, target, new=("decoder/layers[:2]/.*",))
        fresh = target["decoder"]["layers"]["query"]["kernel"]
        assert_equal(params["decoder"]["layers"]["query"]["kernel"], jnp.concatenate([fresh[:2], kernel]))
        with pytest.raises(UserError, match=r"\[4, 8, 16\] +decoder/layers/query/kernel \[6, 8, 16\]"):
            restore_params(run, target)
        params, _ = restore_params(run, make_params(99), skip=("decoder/layers[0]/.*",), new=("decoder/layers[3]/.*",))
        expected = jnp.concatenate([kernel[1:], make_params(99)["decoder"]["layers"]["query"]["kernel"][3:]])
        assert_equal(params["decoder"]["layers"]["query"]["kernel"], expected)

    def test_a_parameter_in_both_that_only_one_side_names_is_refused(self, run: Path) -> None:
        with pytest.raises(UserError, match="only in the checkpoint"):
            restore_params(run, make_params(), new=("head/.*",))
        target = make_params(99)
        params, _ = restore_params(run, target, skip=("head/.*",), new=("head/.*",))
        assert_equal(params["head"], target["head"])


@pytest.mark.parametrize("fields", [dict(every=-1), dict(keep_last=-1), dict(best_mode="lowest")])
def test_bad_values_are_user_errors(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"checkpoint.{next(iter(fields))}"):
        CheckpointConfig(**fields)


PROGRAM = """
    import os, resource, sys, time
    from pathlib import Path
    import jax, jax.numpy as jnp
    from jaxformer.checkpoint import CheckpointConfig, Checkpoints
    from jaxformer.errors import UserError
    directory, mode = Path(sys.argv[1]), sys.argv[2]
    def state(step, size=10): return {"params": {"kernel": jnp.full(size, float(step))}, "step": jnp.int32(step)}
    checkpoints = Checkpoints(directory, CheckpointConfig(keep_last=2))
"""


def start(tmp_path: Path, mode: str, body: str) -> subprocess.Popen[str]:
    program = textwrap.dedent(PROGRAM) + textwrap.dedent(body)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(1)}
    command = [sys.executable, "-c", program, str(tmp_path), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_kill_at_any_moment_leaves_a_sound_checkpoint(tmp_path: Path) -> None:
    body = """
        checkpoints.save(1, state(1, 100_000)); checkpoints.wait()
        print("saving", flush=True)
        for step in range(2, 100_000):
            checkpoints.save(step, state(step, 100_000))
    """
    for delay in (0.0, 0.2):
        directory = tmp_path / str(delay)
        process = start(directory, "loop", body)
        assert process.stdout is not None and process.stdout.readline() == "saving\n"
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        target = {"params": {"kernel": jax.ShapeDtypeStruct((100_000,), jnp.float32)}, "step": jnp.int32(0)}
        found = Checkpoints(directory, CheckpointConfig()).restore_latest(target)
        assert found is not None and found[0] >= 1
        assert int(found[1]["step"]) == found[0] and np.all(np.asarray(found[1]["params"]["kernel"]) == found[0])
        assert not [name for name in names(directory) if not name.isdecimal()]


@pytest.mark.parametrize("mode", ["disk", "permission"])
def test_a_full_disk_or_a_missing_permission_is_one_line_and_keeps_the_old(tmp_path: Path, mode: str) -> None:
    """A file size limit stands for the full disk; the kernel reports both in the same way."""
    process = start(
        tmp_path,
        mode,
        """
        checkpoints.save(1, state(1), {"eval/loss": 1.0})
        checkpoints.wait()
        if mode == "disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        else:
            os.chmod(directory, 0o555)
            if os.geteuid() == 0: os.seteuid(65534)
        try:
            checkpoints.save(2, state(2, 1_000_000))
            checkpoints.wait()
        except UserError as error:
            print(error)
            if mode == "disk": assert os.listdir(directory) == ["1"]
        if mode == "disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            checkpoints.save(2, state(2))
        checkpoints.close()
        """,
    )
    out, err = process.communicate(timeout=100)
    os.chmod(tmp_path, 0o755)
    assert process.returncode == 0, err
    assert err == "" and len(out.splitlines()) == 1 and out.startswith(f"cannot write {tmp_path}")
    assert ("size limit" if mode == "disk" else "no permission") in out
    assert names(tmp_path) == (["1", "2"] if mode == "disk" else ["1"])


def test_orbax_keeps_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    save_all(tmp_path, {1: None})
    assert restore(tmp_path) is not None
    assert caplog.text == ""


_MEMORY = """
import sys
import jax, jax.numpy as jnp
from pathlib import Path
import jaxformer.checkpoint.manager as manager
from jaxformer.checkpoint import CheckpointConfig, Checkpoints

def peak():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

if sys.argv[2] == "packed":
    manager._PACK_FROM_BYTES = 0
state = {name: jnp.full((2**22,), float(number)) for number, name in enumerate("abcdefghijkl")}  # 16 MiB each
checkpoints = Checkpoints(Path(sys.argv[1]), CheckpointConfig(keep_last=1))
for step in (1, 2):
    jax.block_until_ready(state)
    Path("/proc/self/clear_refs").write_text("5")  # the highest begins anew
    before = peak()
    checkpoints.save(step, state)
    checkpoints.wait()
    print((peak() - before) / sum(leaf.nbytes for leaf in state.values()))
checkpoints.close()
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's record of memory")
@pytest.mark.parametrize("layout", ["files", pytest.param("packed", marks=pytest.mark.slow)])
def test_a_save_adds_little_more_than_what_it_writes(tmp_path: Path, layout: str) -> None:
    environment = os.environ | {"XLA_FLAGS": xla_flags(1)}
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(tmp_path), layout], env=environment, capture_output=True, text=True,
        check=True, timeout=120,
    )  # fmt: skip
    assert max(float(line) for line in done.stdout.split()) <= 1.25


def test_one_checkpoint_is_kept_for_every_so_many_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(3600 * np.array([100.0, 100.9, 101.0, 102.5, 102.9, 103.4, 103.6]))
    monkeypatch.setattr(digest, "time", types.SimpleNamespace(time=lambda: float(next(clock))))
    save_all(tmp_path, dict.fromkeys(range(1, 8)), keep_last=1, keep_every_hours=1.0)
    assert names(tmp_path) == ["1", "3", "4", "7"]  # 7 is the last, and no hour after 4's 102.5 has passed with 6
