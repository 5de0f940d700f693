"""The user's code on a machine that has nothing: which files are sent, and how they are installed."""

import shlex
from pathlib import Path

from jaxformer.errors import UserError

PYTHON = ".venv/bin/python"
CONSTRAINT = "constraints/python3.12.txt"
# The user's project, which is jaxformer or needs it, beside JAX for its accelerator and what reads gs://.
SETUP = (
    "python3 -m pip install --user --quiet uv && ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 .venv && "
    "~/.local/bin/uv pip install --quiet --python .venv{constraint} --editable . '{jax}' gcsfs"
)


def setup_of(code: str, jax: str) -> str:
    """Return shell that installs the project in the current folder, with the versions that it pins if any."""
    pinned = (Path(code) / CONSTRAINT).is_file()
    return SETUP.format(constraint=f" --constraint {CONSTRAINT}" if pinned else "", jax=jax)


def require_project(code: str) -> None:
    """Raise UserError for a folder that nobody can install."""
    if not (Path(code) / "pyproject.toml").is_file():
        raise UserError(
            f"--code: {code} has no pyproject.toml; give the folder of a project that is jaxformer or depends on it, "
            "or say how it is installed with --setup"
        )


def pack(code: str, archive: Path) -> str:
    """Return shell that packs what git knows of the code, and what it does not ignore."""
    folder = shlex.quote(code)
    return (
        f"git -C {folder} ls-files -z --cached --others --exclude-standard | tar --create --gzip "
        f"--file={shlex.quote(str(archive))} --directory={folder} --ignore-failed-read --null --files-from=-"
    )


def unpack(archive: str, setup: str) -> str:
    """Return shell that makes the folder `code` anew of the archive beside it, but for .venv, and installs it."""
    clean = "find code -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +"
    return f"mkdir -p code && {clean} && tar -xzf {archive} -C code && cd code && {setup}"
