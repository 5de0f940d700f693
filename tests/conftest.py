"""What every test finds: eight fake CPU devices, exact arithmetic, a cache of its own, and the command line."""

import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from compiling import xla_flags

if TYPE_CHECKING:
    import clouds

# JAX reads these when it is imported; set any later they would silently do nothing.
if "jax" in sys.modules:
    raise RuntimeError("JAX was imported before tests/conftest.py could configure it")

ROOT = Path(__file__).resolve().parents[1]
# Compiled code is kept from one run of the tests to the next, per Python because the versions of JAX differ.
COMPILED = ROOT / ".pytest_cache" / f"jax-{sys.version_info.major}.{sys.version_info.minor}"

os.environ.update(
    {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(8),
        "JAX_COMPILATION_CACHE_DIR": str(COMPILED),
        # A second, of JAX's own, is too long: at this level of optimisation it leaves out most of what tests compile.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "MPLBACKEND": "Agg",
    }
)

# What depends on versions of Python and of the libraries, which `make test-second` runs with another Python: a file is
# here if what it compares is computed (JAX, Flax, Optax, NumPy), stored (checkpoints, weights, configs) or tokenized
# (tokenizers, SentencePiece) by a library, or comes from Python itself (the documentation of its standard library, the
# command line), and no other file here asks the same of the library: exports are weight files, and distillation is a
# step. Of whole runs those in phases are enough.
VERSIONS = (
    "models", "reference", "step", "optimizers", "strategies", "sharding", "generation", "phases", "checkpoint",
    "weight_files", "config", "trees", "tokenizers", "released_tokenizers", "sources", "cli",
)  # fmt: skip
# Files that take longest, the longest first: each process begins with its share, so that none ends with a long one.
LONG = (
    "readme", "experiments", "processes", "storage", "docs", "slurm", "install", "newcomer", "demo", "runs",
    "launch_preemption", "models", "strategies", "memory", "interop", "reference", "launch_tpu_vm", "compatibility",
    "distillation", "checkpoint",
)  # fmt: skip

# Tests press Ctrl-C. A shell lets what it starts in the background ignore that, and so would all that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@functools.cache
def may_be_slow(path: Path) -> bool:
    """Whether a file says of any of its tests that they are slow."""
    return bool(re.search("mark.slow|sampled", path.read_text(encoding="utf-8")))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave files alone that `make test-second` or `make test-slow` runs nothing of: importing them takes each process
    seconds."""
    name, wanted = collection_path.stem, config.option.markexpr
    if not name.startswith("test_"):
        return None
    unread = "versions" in wanted and name.removeprefix("test_") not in VERSIONS
    return True if unread or (wanted.startswith("slow") and not may_be_slow(collection_path)) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what depends on versions, and deal the long files to the processes, each of which begins with an equal part
    of the list (pytest-xdist's worksteal)."""
    count = getattr(config, "workerinput", {}).get("workercount", 1)
    hands: list[list[pytest.Item]] = [[] for _ in range(count)]
    others = []
    for item in items:
        name = item.path.stem.removeprefix("test_")
        if name in VERSIONS:
            item.add_marker("versions")
        if item.get_closest_marker("slow") and not may_be_slow(item.path):
            raise pytest.UsageError(f"{item.path}: `make test-slow` does not see that it has slow tests (may_be_slow)")
        if name in LONG:
            hands[LONG.index(name) % count].append(item)
        else:
            others.append(item)
    size = -(-len(items) // count)
    for hand in hands:
        hand.sort(key=lambda item: LONG.index(item.path.stem.removeprefix("test_")))
        rest = max(size - len(hand), 0)
        hand.extend(others[:rest])
        del others[:rest]
    items[:] = [item for hand in hands for item in hand] + others


@pytest.fixture(scope="session", autouse=True)
def jaxformer_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give all tests, and the processes they start, one empty JAXFORMER_CACHE; return its path."""
    folder = tmp_path_factory.mktemp("jaxformer-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXFORMER_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def few_resamples() -> Iterator[None]:
    """Judge with 50 resamples, where this process does: 1000 take longer than the rest of a small evaluation. Their
    number matters to test_metrics.py alone, which asks the function below for it."""
    from jaxformer.evaluation import held_out  # imports JAX, which needs the settings above

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "intervals", functools.partial(held_out.intervals, resamples=50))
        yield


@pytest.fixture
def run_cli(tmp_path: Path) -> Command:
    """Return a function that runs `python -m jaxformer ARGS...` as users do: own process, one device, own folder.

    `env` adds to the environment; output is text. A command that outlives `timeout` seconds raises TimeoutExpired.
    """

    def run(
        *args: str | os.PathLike[str], cwd: Path = tmp_path, env: Mapping[str, str] | None = None, timeout: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {"XLA_FLAGS": xla_flags(1)} | dict(env or {})
        command = [sys.executable, "-m", "jaxformer", *map(str, args)]
        return subprocess.run(command, cwd=cwd, env=environment, timeout=timeout, capture_output=True, text=True)

    return run


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command line in this process and gives its exit code and what it printed."""
    from jaxformer.cli.main import main

    def run(*words: str | Path) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Return the folder that JAXFORMER_REFERENCE_DATA names; skip the test where it is not set."""
    folder = os.environ.get("JAXFORMER_REFERENCE_DATA")
    if not folder:
        pytest.skip("JAXFORMER_REFERENCE_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[str], tuple[Path, Path, str]]":
    """Return a function that gives (run, export of it, class) of a case of tests/runs.py, made once."""
    from runs import make_run  # imports JAX, which needs the settings above

    from jaxformer.interop import export_run

    root, made = tmp_path_factory.mktemp("interop"), {}

    def get(name: str) -> "tuple[Path, Path, str]":
        if name not in made:
            run, out = make_run(name, root / name / "run"), root / name / "hf"
            made[name] = run, out, export_run(run, out)
        return made[name]

    return get


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[clouds.Cloud]":
    """A make-believe cloud, which the launchers of the test talk to."""
    import clouds

    with clouds.install(tmp_path / "cloud") as cloud:
        kept = [name for name in os.environ if name.startswith("JAX_") or name == "JAXFORMER_CACHE"]
        cloud.worker_environment.update({name: os.environ[name] for name in kept} | {"XLA_FLAGS": xla_flags(1)})
        monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "launcher"))  # not that of the workers
        cloud.environment["JAXFORMER_CACHE"] = str(tmp_path / "launcher")
        yield cloud


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What is sent to the workers: a repository with files that git knows, does not know yet, and ignores."""
    folder = tmp_path / "a project"
    folder.mkdir()
    for name, text in {"known.txt": "1", "new.txt": "2", "ignored.txt": "3", ".gitignore": "ignored.txt"}.items():
        (folder / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    subprocess.run(["git", "-C", folder, "add", "known.txt"], check=True)
    return folder


@pytest.fixture
def launch(cloud: "clouds.Cloud", project: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Return a function that starts `jaxformer launch …` beside the test."""
    from launching import SECRET

    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> "subprocess.Popen[str]":
        environment = {**cloud.environment, "HF_TOKEN": SECRET, "XLA_FLAGS": xla_flags(1)}
        command = [sys.executable, "-m", "jaxformer", "launch", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, cwd=project, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
