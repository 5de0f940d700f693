"""Running the platforms' own tools, and saying in one line what went wrong with them."""

import concurrent.futures
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxformer.errors import UserError

# What a tool's message means, in this order, and what the user can do about it.
KINDS = {
    "login": r"not currently have an active account|reauthent|current auth tokens|default credentials|Unauthorized|"
    r"No cloud access",
    "quota": r"quota limit|quota .*exceeded|exceeded.* quota|insufficient.* quota",
    "capacity": r"no more capacity|stockout|insufficient capacity|not enough resources|RESOURCE_(POOL_)?EXHAUSTED",
    "permission": r"PERMISSION_DENIED|does not have permission|Forbidden|required .* permission",
    "exists": r"ALREADY_EXISTS|already exists",
    "missing": r"NOT_FOUND|not ?found",
    "ssh": r"return code \[255\]|Connection (refused|closed|reset|timed out)",
}
HINTS = {
    "login": "log in (gcloud auth login, or kubectl's and sky's own way) and run the same command again",
    "quota": "ask for more quota, or choose another --zone or --accelerator",
    "capacity": "try --spot, another --zone, or wait in the queue with --queued",
    "permission": "ask the project's owner for the role that it names",
    "exists": "choose another --name, or delete what has it",
    "missing": "look at the spelling of what you gave",
    "ssh": "see that your network lets SSH through to the machine",
}


class ToolError(Exception):
    """A tool ended with an error. `kind` is one of KINDS or "", `line` what it said, `code` its exit code."""

    def __init__(self, tool: str, code: int, text: str) -> None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        # gcloud's answers to operations are JSON; then come lines that say of themselves what they are.
        marks = (r'"message":', r"^error", r"error|denied|failed|invalid")
        marked = [line for mark in marks for line in lines if re.search(mark, line, re.IGNORECASE)]
        self.tool, self.code = tool, code
        line = [*marked[:1], *reversed(lines), f"it ended with exit code {code} and said nothing"][0]
        self.line = re.sub(r'^"message": "(.*)",?$', r"\1", line)
        self.kind = next((kind for kind, sign in KINDS.items() if re.search(sign, text, re.IGNORECASE)), "")
        super().__init__(f"{tool}: {self.line}")

    def for_people(self) -> UserError:
        hint = HINTS.get(self.kind, f"the command line of `{self.tool}` has more with its own --help and log")
        return UserError(f"{self.tool} says: {self.line}; {hint}")


def run(words: Sequence[str], stdin: str = "", timeout: float | None = 300.0) -> str:
    """Run a command to its end, or for `timeout` seconds, and return what it printed.

    Raises ToolError; UserError for a tool that is not here.
    """
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, errors="replace", check=False, timeout=timeout
        )
    except FileNotFoundError:
        raise missing_tool(words[0]) from None
    except subprocess.TimeoutExpired:
        raise ToolError(words[0], 1, f"no answer within {timeout:.0f} seconds") from None
    if done.returncode:
        raise ToolError(words[0], done.returncode, done.stderr + done.stdout)
    return done.stdout


def missing_tool(tool: str) -> UserError:
    return UserError(f"{tool} is not on the PATH; install it, or print what it would be told with --dry-run")


def lines_of(words: Sequence[str]) -> Iterator[str]:
    """Run a command and yield its lines; it is ended when the reader stops."""
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except FileNotFoundError:
        raise missing_tool(words[0]) from None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            yield line.rstrip("\n")
    finally:
        process.terminate()
        process.wait()


def run_all(commands: Sequence[Sequence[str]], at_once: int = 16, timeout: float | None = 300.0) -> list[str]:
    """Run commands beside each other; the first error is raised once all have ended."""
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda words: run(words, timeout=timeout), commands))


def script(*parts: Sequence[str] | str) -> str:
    """Return commands (words, which are quoted here) and lines of shell (text) as one script, ready to paste."""
    return "".join(f"{part if isinstance(part, str) else shlex.join(part)}\n" for part in parts)


def here_document(path: Path, text: str) -> str:
    """Return shell that writes a file, whatever stands in it."""
    end = "END"
    while end in text.splitlines():
        end += "_"
    return f"cat > {shlex.quote(str(path))} <<'{end}'\n{text.rstrip()}\n{end}"


def as_lines(variables: Mapping[str, str]) -> str:
    """Return variables as lines NAME=VALUE, for the standard input of whoever must not see them on a command line."""
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def piped(variables: Sequence[str]) -> str:
    """Return shell that prints secrets as `as_lines` does, by their names and never by their values."""
    return "printf '%s\\n' " + " ".join(f'"{name}=${{{name}}}"' for name in variables) + " | "


def as_yaml(content: Mapping[str, Any]) -> str:
    import yaml  # no help needs it

    class Dumper(yaml.SafeDumper):
        """Writes text of several lines as such."""

    def text(dumper: yaml.SafeDumper, text: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, text)
    return yaml.dump(dict(content), Dumper=Dumper, sort_keys=False, width=1000)
