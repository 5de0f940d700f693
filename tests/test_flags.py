"""XLA's flags per platform: that the installed XLA knows them, that the user's stay, and where they are kept."""

import os
import subprocess
import sys

import jax
import pytest
from compiling import xla_flags

from jaxformer.config import load
from jaxformer.devices import flags, flags_in_force
from jaxformer.runs import record

GPU = " ".join(flag.text for flag in flags.FLAGS["gpu"] if flag.variable == "XLA_FLAGS")
TPU = " ".join(flag.text for flag in flags.FLAGS["tpu"])


def test_the_installed_xla_knows_the_flags() -> None:
    """XLA ends a process whose XLA_FLAGS has a name that it does not know: a release may drop one."""
    command = [sys.executable, "-c", "import jax; jax.devices()"]

    def started_with(added: str) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {"XLA_FLAGS": f"{xla_flags(1)} {added}"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    assert (done := started_with(GPU)).returncode == 0, done.stderr
    assert "Unknown flag" in started_with("--xla_gpu_no_such_flag=true").stderr


def test_each_flag_says_why_and_where_it_is_from() -> None:
    for platform, settings in flags.FLAGS.items():
        assert all(flag.why and flag.source and flag.value for flag in settings), platform
        assert len({(flag.variable, flag.name) for flag in settings}) == len(settings)
    assert flags.FLAGS["cpu"] == ()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("XLA_FLAGS", "--xla_gpu_enable_latency_hiding_scheduler=false"),
        ("XLA_FLAGS", "-xla_gpu_enable_latency_hiding_scheduler"),
        ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5"),
        ("XLA_CLIENT_MEM_FRACTION", "0.5"),
    ],
)
def test_what_the_user_has_set_stays(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "platform_here", lambda asked: "gpu")
    monkeypatch.setattr(flags.xla_bridge, "backends_are_initialized", lambda: False)
    environment = {variable: value}
    flags.set_flags(environment)
    assert environment[variable].split()[0] == value
    ours = [flag for flag in flags.FLAGS["gpu"] if flag.text in environment.get(flag.variable, "").split()]
    assert len(ours) == len(flags.FLAGS["gpu"]) - 1  # all but the user's
    again = dict(environment)
    flags.set_flags(again)
    assert again == environment


def test_a_backend_that_has_started_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "platform_here", lambda asked: "tpu")
    jax.devices()
    environment: dict[str, str] = {}
    flags.set_flags(environment)
    assert environment == {}
    monkeypatch.setattr(flags.xla_bridge, "backends_are_initialized", lambda: False)
    flags.set_flags(environment)
    assert environment == {"LIBTPU_INIT_ARGS": TPU} == flags_in_force("tpu", environment)


def test_the_platform_is_found_without_starting_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"cpu": "cpu", "cuda,cpu": "gpu", "gpu": "gpu", "tpu,cpu": "tpu", "rocm": ""}
    assert {name: flags.platform_here(name) for name in asked} == asked
    installed: set[str] = set()
    there: set[str] = set()
    monkeypatch.setattr(flags, "_installed", installed.__contains__)
    monkeypatch.setattr(flags.os.path, "exists", there.__contains__)
    assert flags.platform_here(None) == "cpu"
    installed.add("jax_cuda13_plugin")
    assert flags.platform_here("") == "cpu"  # what drives GPUs, and none is there
    there.add("/dev/nvidia0")
    assert flags.platform_here("") == "gpu"
    installed.add("libtpu")
    there.add("/dev/vfio/0")
    assert flags.platform_here(None) == "tpu"


def test_a_run_keeps_the_flags_of_its_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("gpt:smoke")
    assert "flags" not in record._described(config, (), 0, None)["device"]
    monkeypatch.setenv("XLA_FLAGS", GPU)
    monkeypatch.setattr(record.jax, "default_backend", lambda: "gpu")
    assert record._described(config, (), 0, None)["device"]["flags"]["XLA_FLAGS"] == GPU
