"""The house rules that a machine can check: imports run downward, each library stays in its room, nothing leaks in."""

import ast
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from rooms import (
    FILES,
    LIST,
    ORDER,
    PACKAGE,
    PICTURE,
    PLACE,
    ROOT,
    drawn,
    imports,
    listed,
    parse,
    room_of,
    rooms_read,
    sources,
)

EXPERIMENTS = ROOT / "experiments"

# What makes runs, and what needs it: reports are made where nothing can train.
MAKES_RUNS = set(ORDER[: PLACE["checkpoint"] + 1])
WITHOUT_JAX = {"objectives", "tasks", "tokenizers", "data", "report", "footprint", "launch", "tables"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
NEVER = {"tensorflow", "torch", "transformers", "keras"}


def libraries(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, full name) of what a file imports: `from jax import numpy` is `jax.numpy`."""
    for line, module, names in imports(parse(path)):
        yield line, module
        yield from ((line, f"{module}.{name}") for name in names)


def offences(found: Iterator[tuple[Path, int, str]]) -> list[str]:
    return sorted({f"{path.relative_to(ROOT)}:{line} {what}" for path, line, what in found})


def test_every_room_has_its_place_and_says_what_it_is() -> None:
    assert {room_of(path) for path in FILES} == set(ORDER) and len(ORDER) == len(PLACE)
    for folder in {path.parent for path in FILES} - {PACKAGE, ROOT / "launch"}:
        said = ast.get_docstring(parse(folder / "__init__.py")) or ""
        assert len(said.splitlines()) >= 3 and "What must not" in said, folder.name


def test_imports_run_strictly_downward() -> None:
    upward = (
        (path, line, f"{room_of(path)} imports {read}")
        for path in FILES
        for line, read in rooms_read(path)
        if read != room_of(path) and PLACE[read] <= PLACE[room_of(path)]
    )
    assert offences(upward) == []


def test_readers_are_shown_the_rooms_as_they_are() -> None:
    hint = "python tests/rooms.py draws and lists them anew"
    for name in ("README.md", "CONTRIBUTING.md"):
        assert LIST.findall((ROOT / name).read_text(encoding="utf-8")) == [listed()], f"{name}: {hint}"
    assert PICTURE.read_text(encoding="utf-8") == drawn(), hint


def test_report_imports_nothing_that_makes_runs() -> None:
    makers = (
        (path, line, f"report imports {read}")
        for path in sources(PACKAGE / "report")
        for line, read in rooms_read(path)
        if read != "report" and read in MAKES_RUNS
    )
    assert offences(makers) == []


def test_imports_inside_the_package_are_absolute() -> None:
    relative = (
        (path, node.lineno, "relative import")
        for path in FILES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ImportFrom) and node.level
    )
    assert offences(relative) == []


def test_only_models_import_flax_linen() -> None:
    linen = (
        (path, line, name)
        for path in FILES
        for line, name in libraries(path)
        if name.startswith("flax.linen") and room_of(path) != "models"
    )
    assert offences(linen) == []


def test_data_and_reports_do_without_jax() -> None:
    jax = (
        (path, line, name)
        for path in FILES
        for line, name in libraries(path)
        if room_of(path) in WITHOUT_JAX and name.split(".")[0] in JAX
    )
    assert offences(jax) == []


def test_other_frameworks_are_absent() -> None:
    other = (
        (path, line, name)
        for path in [*FILES, *sources(EXPERIMENTS)]
        for line, name in libraries(path)
        if name.split(".")[0] in NEVER
    )
    assert offences(other) == []


def test_experiments_are_data() -> None:
    """Experiments import ml_collections and their siblings, by relative imports."""
    names = {".".join(path.relative_to(EXPERIMENTS).with_suffix("").parts) for path in sources(EXPERIMENTS)}
    for path in sources(EXPERIMENTS):
        here = path.relative_to(EXPERIMENTS).parts[:-1]
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Import):
                modules = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level:
                start = (*here[: len(here) + 1 - node.level], *filter(None, [node.module]))
                modules = {".".join(start)} if node.module else {".".join((*start, alias.name)) for alias in node.names}
                assert node.level <= len(here) + 1 and modules <= names, f"{path.name}:{node.lineno}"
                continue
            elif isinstance(node, ast.ImportFrom):
                modules = {str(node.module)}
            else:
                continue
            assert modules <= {"ml_collections"}, f"{path.name}:{node.lineno} imports {sorted(modules)}"


def test_one_module_imports_by_name() -> None:
    """Loading a config is the only import of a module whose name is computed."""
    dynamic = re.compile(r"\b(import_module|spec_from_file_location|__import__|run_path|run_module)\(")
    assert {path.name for path in FILES if dynamic.search(path.read_text(encoding="utf-8"))} == {"config.py"}


def test_nothing_asks_whether_it_has_an_objective_or_a_task() -> None:
    """Both meet one protocol, objectives/supervision.py: what one of them has, the other has."""
    asked = re.compile(r"\b(supervision|objective|task|part|settings|OBJECTIVES|TASKS|TOKENIZERS)\b")
    asking = (
        (path, node.lineno, ast.unparse(node))
        for path in FILES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3)
        if asked.search(ast.unparse(node.args[0]))
    )
    assert offences(asking) == []


def test_there_is_no_utils_module() -> None:
    assert [path for path in FILES if path.stem in {"utils", "util", "helpers", "misc"}] == []


def test_files_stay_readable() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in long.items() if lines > 420} == {}


def test_what_a_run_does_reads_like_a_story() -> None:
    """Functions of `runs` fit on a screen and are told what they need in a few values."""
    functions = [
        (path, node)
        for path in sources(PACKAGE / "runs")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef)
    ]
    long = ((path, node.lineno, node.name) for path, node in functions if node.end_lineno - node.lineno >= 60)
    assert offences(long) == []
    many = (
        (path, node.lineno, node.name)
        for path, node in functions
        if len([arg for arg in (*node.args.args, *node.args.kwonlyargs) if arg.arg != "self"]) > 6
    )
    assert offences(many) == []


def test_every_package_is_installed() -> None:
    """The list of packages in pyproject.toml is written by hand: a new folder must be on it, and so must its data."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    rooms = {f"jaxformer.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")}
    outside = {
        ".".join(("jaxformer", *path.parent.relative_to(ROOT).parts))
        for folder in (EXPERIMENTS, ROOT / "launch")
        for path in folder.rglob("__init__.py")
    }
    assert set(build["packages"]) == {"jaxformer"} | rooms | outside
    data = {
        path.relative_to(root)
        for root in (PACKAGE, ROOT)
        for path in (PACKAGE if root == PACKAGE else ROOT / "launch").rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    listed = {Path(*package.split(".")[1:], name) for package, names in build["package-data"].items() for name in names}
    assert data == listed


def test_experiments_are_found_where_the_wheel_has_them() -> None:
    spec = importlib.util.find_spec("jaxformer.experiments")
    assert spec is not None and spec.submodule_search_locations
    found = Path(next(iter(spec.submodule_search_locations)))
    assert {path.relative_to(found) for path in found.rglob("*.py")} == {
        path.relative_to(EXPERIMENTS) for path in EXPERIMENTS.rglob("*.py")
    }


BINARY = {".pyc", ".png", ".npz", ".safetensors"}
TEXTS = [
    path
    for pattern in (
        "*.md",
        "*.toml",
        "Makefile",
        "docs/*.md",
        "jaxformer/**/*",
        "experiments/**/*",
        "launch/*",
        "tests/**/*",
        "constraints/*",
    )
    for path in sorted(ROOT.glob(pattern))
    if path.is_file() and path.suffix not in BINARY and path != Path(__file__).resolve()
]


@pytest.mark.parametrize(
    "leak",
    [
        pytest.param(r"(?<![\w.~}])/(home|Users|root|work|opt|mnt|scratch)/\w", id="a folder of one machine"),
        pytest.param(r"\b(design|anchors|pitfalls|papers|performance|launchers|contract)\.md\b", id="notes nobody has"),
    ],
)
def test_files_name_nothing_that_readers_lack(leak: str) -> None:
    found = (
        (path, number, match.group())
        for path in TEXTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in re.finditer(leak, line)
    )
    assert offences(found) == []
