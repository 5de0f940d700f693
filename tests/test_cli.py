"""The command line: help, exit codes, one line for every mistake, tokenizer verbs, and what progress looks like."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from compiling import xla_flags
from rich.console import Console

import jaxformer
from jaxformer.cli import main as cli
from jaxformer.cli import verbs
from jaxformer.cli.main import main
from jaxformer.cli.verbs import default_workdir
from jaxformer.errors import UserError
from jaxformer.runs import progress
from jaxformer.runs.progress import Display
from jaxformer.tokenizers import Tokenizer, WordPiece, train_tokenizer

VERBS = [
    "train",
    "sweep",
    "transfer",
    "reproduce",
    "evaluate",
    "generate",
    "fill",
    "predict",
    "embed",
    "score",
    "report",
    "import",
    "export",
    "tokenizer",
    "models",
    "objectives",
    "plan",
    "launch",
    "demo",
]
ACTIONS = {
    "tokenizer": ["train", "encode", "decode", "show"],
    "objectives": ["show"],
    "launch": ["local", "slurm", "tpu_vm", "gke", "skypilot", "status", "logs", "stop", "delete"],
}
OVERRIDDEN = [
    ["train"],
    ["sweep"],
    ["transfer"],
    ["evaluate"],
    ["generate"],
    ["fill"],
    ["predict"],
    ["embed"],
    ["score"],
    ["tokenizer", "train"],
    ["objectives", "show"],
    ["plan"],
]
COMMANDS = [[], *([verb] for verb in VERBS), *([verb, action] for verb in ACTIONS for action in ACTIONS[verb])]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command in this process: (exit code, stdout, stderr)."""

    def command(*words: str | Path) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # argparse's own
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return command


# Help.


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "jaxformer")
def test_every_help_has_an_example_of_that_verb(run: Run, command: list[str]) -> None:
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    (example,) = [line for line in out.splitlines() if line.startswith("example: ")]
    assert example.startswith(" ".join(["example: jaxformer", *command]))
    # The example is one that the parser takes, flags and all.
    words = (
        example.partition("   (")[0].partition(" -- ")[0].removeprefix("example: jaxformer ").replace('"', "").split()
    )
    if command and command not in (["tokenizer"], ["launch"]):
        args = cli._parser().parse_args([word for word in words if not word.startswith(("--config.", "--sweep."))])
        assert args.verb == command[0] and getattr(args, "action", None) == (command[1:] or [None])[0]


def test_every_verb_is_listed_and_tested(run: Run) -> None:
    for command, names in (([], VERBS), *(([verb], names) for verb, names in ACTIONS.items())):
        _, out, _ = run(*command, "--help")
        assert re.findall(r"^    (\w+) *(?:  .*)?$", out, re.MULTILINE) == names


def test_verbs_that_take_overrides_say_so(run: Run) -> None:
    for command in COMMANDS:
        takes = command in OVERRIDDEN
        assert (cli.OVERRIDES in run(*command, "--help")[1]) == takes, command


def test_help_waits_for_nothing_heavy() -> None:
    """All helps and a usage error in one process, which has imported hardly more than argparse at the end."""
    program = (
        "import sys, time\n"
        "before, start = set(sys.modules), time.perf_counter()\n"
        "from jaxformer.cli.main import main\n"
        f"for words in [[*c, '--help'] for c in {COMMANDS}] + [['train'], ['--version']]:\n"
        "    try:\n"
        "        main(words)\n"
        "    except SystemExit:\n"
        "        pass\n"
        "seconds = time.perf_counter() - start\n"
        "roots = {name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names\n"
        "print(seconds, *sorted(roots), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    seconds, *roots = done.stderr.splitlines()[-1].split()
    assert roots == ["jaxformer"]
    # Half a second is the promise, for one help and with the interpreter's start; a busy machine gets more.
    assert float(seconds) < 3.0


def test_the_module_answers_like_the_script(run_cli: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    began = time.perf_counter()
    done = run_cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"jaxformer {jaxformer.__version__}\n", "")
    assert time.perf_counter() - began < 5.0


# Exit codes.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param([], "VERB", id="no verb"),
        pytest.param(["trian"], "'trian'", id="verb"),
        pytest.param(["train"], "--config", id="a missing flag"),
        pytest.param(["train", "--config=nowhere", "--workdr=x"], "--workdr=x", id="flag"),
        pytest.param(["train", "--config=nowhere", "--work=x"], "--work=x", id="abbreviation"),
        pytest.param(["tokenizer"], "ACTION", id="no action"),
        pytest.param(["tokenizer", "encod"], "'encod'", id="action"),
        pytest.param(["tokenizer", "decode", "--tokenizer=x", "a"], "'a'", id="an id that is no number"),
        pytest.param(["evaluate", "--workdir=x", "--split=trian"], "'trian'", id="split"),
        pytest.param(["demo", "--family=brt"], "'brt'", id="family"),
        pytest.param(["generate", "--workdir=x", "--temperature=warm"], "'warm'", id="number"),
        pytest.param(["generate", "--workdir=x", "--num-beam=2"], "--num-beam=2", id="a flag of a section"),
    ],
)
def test_a_mistyped_command_is_the_users_to_mend(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_run", lambda args, overrides: 0)  # a parser that lets it through starts nothing
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["train", "--config=gtp"], "did you mean 'gpt'?", id="experiment"),
        pytest.param(["train", "--config=gpt", "--config.model.num_layer=3"], "'num_layers'", id="key"),
        pytest.param(["train", "--config=mine.py"], "no file mine.py", id="file"),
        pytest.param(["evaluate", "--workdir=nowhere"], "nowhere is not a run", id="evaluate no run"),
        pytest.param(["generate", "--workdir=nowhere", "Hello"], "nowhere is not a run", id="generate no run"),
        pytest.param(["report", "nowhere"], "nowhere", id="report no run"),
        pytest.param(["export", "--workdir=nowhere", "--config.seed=1", "x"], "takes no config keys", id="overrides"),
        pytest.param(
            ["generate", "--workdir=x", "a", "--top-k=4", "--config.generation.top_k=3"],
            "--top-k: --config.generation",
            id="a flag and its key",
        ),
        pytest.param(["generate", "--workdir=x", "a", "--stream", "--json"], "leave out --json", id="a stream of JSON"),
        pytest.param(["tokenizer", "show", "--tokenizer=nowhere.json"], "no tokenizer file nowhere", id="tokenizer"),
    ],
)
def test_what_the_user_can_fix_is_one_line_and_exit_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"jaxformer {words[0]}: ") and said in line
    assert list(tmp_path.iterdir()) == [], "a refused command leaves nothing behind"


def test_a_folder_that_is_no_run_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no run")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text('{"name": ')
    for verb in ("evaluate", "generate"):
        code, _, err = run(verb, f"--workdir={tmp_path}", *(["Hello"] if verb == "generate" else []))
        assert code == 2 and f"{tmp_path} is not a run: it has no config.json" in err
        code, _, err = run(verb, f"--workdir={tmp_path / 'damaged'}")
        assert code == 2 and len(err.splitlines()) == 1 and "damaged" in err


def failing(error: BaseException) -> Callable[..., int]:
    def verb(args: object, overrides: list[str]) -> int:
        raise error

    return verb


def test_an_unexpected_error_is_ours_and_leaves_a_traceback(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs, "evaluate", failing(KeyError("first\nsecond")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = run("evaluate", "--workdir=nowhere")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert (
        err.startswith("jaxformer evaluate: internal error: KeyError: 'first") and "second" not in err.partition("(")[2]
    )
    (log,) = tmp_path.glob("jaxformer-error-*.log")
    assert str(log) in err and "Traceback" in log.read_text() and "in verb" in log.read_text()
    # Into the run where there is one; a second error has a file of its own elsewhere.
    (tmp_path / "run").mkdir()
    _, _, err = run("evaluate", f"--workdir={tmp_path / 'run'}")
    assert str(tmp_path / "run" / "error.log") in err and "Traceback" in (tmp_path / "run" / "error.log").read_text()
    run("evaluate", "--workdir=nowhere")
    assert len(list(tmp_path.glob("jaxformer-error-*.log"))) == 2


def test_tracebacks_can_be_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, expected in ((KeyError("x"), 1), (UserError("mend it"), 2)):
        monkeypatch.setattr(verbs, "evaluate", failing(error))
        code, _, err = run("evaluate", "--workdir=nowhere", "--traceback")
        assert code == expected and "Traceback" in err and "in verb" in err


def test_other_ends_have_their_codes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "evaluate", failing(KeyboardInterrupt()))
    assert run("evaluate", "--workdir=x") == (130, "", "jaxformer evaluate: interrupted\n")
    monkeypatch.setattr(verbs, "evaluate", lambda args, overrides: 75)
    assert run("evaluate", "--workdir=x") == (75, "", "")


@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_has_gone_is_no_error(tokenizer_file: Path, buffered: bool) -> None:
    """`| head` closes the pipe: the command ends without a word, also when what it wrote still stood in its buffer."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "jaxformer", "tokenizer", "show", f"--tokenizer={tokenizer_file}"]
    environment = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


# Where a run goes.


@pytest.mark.parametrize(
    ("spec", "folder"),
    [
        ("gpt", "gpt"),
        ("gpt:", "gpt"),
        ("bert:smoke", "bert-smoke"),
        ("finetune_area:bert,smoke", "finetune_area-bert-smoke"),
        ("finetune/area:bert,smoke", "finetune-area-bert-smoke"),
        ("experiments/gpt.py", "gpt"),
        ("experiments/finetune/area.py:t5", "area-t5"),
        ("some folder/my file.py:tiny,smoke", "my-file-tiny-smoke"),
        ("t5:1.1", "t5-1.1"),
    ],
)
def test_the_default_workdir_is_named_after_the_config(spec: str, folder: str) -> None:
    assert default_workdir(spec) == Path("runs") / folder


# Tokenizer verbs.

CORPUS = "the quick brown fox\n\njumps over the lazy dog\n\nthe dog sleeps\n" * 5


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(WordPiece(vocab_size=80), [CORPUS]).save(path)
    return path


def loaded(path: Path) -> Tokenizer:
    return verbs._tokenizer(str(path))


def test_text_becomes_ids_and_text_again(run: Run, tokenizer_file: Path) -> None:
    flag = f"--tokenizer={tokenizer_file}"
    code, out, _ = run("tokenizer", "encode", flag, "the lazy dog", "fox")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert [list(map(int, line)) for line in lines] == [
        loaded(tokenizer_file).encode(text).tolist() for text in ("the lazy dog", "fox")
    ]
    assert run("tokenizer", "decode", flag, *lines[0]) == (0, "the lazy dog\n", "")
    code, out, _ = run("tokenizer", "encode", flag, "--json", "the lazy dog")
    answer = json.loads(out)
    assert answer == {"ids": list(map(int, lines[0])), "tokens": loaded(tokenizer_file).tokens(answer["ids"])}
    assert json.loads(run("tokenizer", "decode", flag, "--json", *lines[0])[1]) == {"text": "the lazy dog"}


def test_special_tokens_in_a_text_are_read_where_asked(run: Run, tokenizer_file: Path) -> None:
    flag, mask = f"--tokenizer={tokenizer_file}", loaded(tokenizer_file).vocabulary.id("mask")
    counts = []
    for option in ([], ["--special"]):
        code, out, _ = run("tokenizer", "encode", flag, *option, "fox [MASK] [MASK]")
        counts.append((code, out.split().count(str(mask))))
    assert counts == [(0, 0), (0, 2)]


def test_a_run_directory_is_as_good_as_its_tokenizer(run: Run, tokenizer_file: Path) -> None:
    for where in (tokenizer_file, tokenizer_file.parent):
        facts = json.loads(run("tokenizer", "show", f"--tokenizer={where}", "--json")[1])
        assert facts["vocab_size"] == loaded(tokenizer_file).vocab_size <= 80
        assert facts["fingerprint"] == loaded(tokenizer_file).fingerprint
        assert facts["special"]["mask"].split() == [str(loaded(tokenizer_file).vocabulary.id("mask")), "[MASK]"]
    plain = run("tokenizer", "show", f"--tokenizer={tokenizer_file}")[1]
    assert facts["fingerprint"] in plain and "[MASK]" in plain


def test_ids_that_do_not_exist_are_refused(run: Run, tokenizer_file: Path) -> None:
    size = loaded(tokenizer_file).vocab_size
    for number in (size, -1):
        code, out, err = run("tokenizer", "decode", f"--tokenizer={tokenizer_file}", "0", str(number))
        assert (code, out) == (2, "") and f"id {number}: the tokenizer has ids 0 to {size - 1}" in err
    (tokenizer_file.parent / "text.json").write_text("{}")
    code, _, err = run("tokenizer", "show", f"--tokenizer={tokenizer_file.parent / 'text.json'}")
    assert code == 2 and "damaged or no tokenizer.json" in err and len(err.splitlines()) == 1


def test_a_tokenizer_is_trained_on_the_data_of_the_config(run: Run, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(CORPUS)
    output = tmp_path / "made" / "tokenizer.json"
    command = [
        "tokenizer", "train", "--config=bert:smoke", f"--output={output}", "--config.data.name=text",
        f"--config.data.path={tmp_path / 'corpus.txt'}", "--config.tokenizer.vocab_size=60",
    ]  # fmt: skip
    code, out, err = run(*command)
    assert code == 0, err
    trained = loaded(output)
    assert out == f"{output}: {trained.vocab_size} tokens, fingerprint {trained.fingerprint}\n"
    assert trained.decode(trained.encode("The Dog")) == "the dog" and trained.vocab_size <= 60
    # What is shown on the way goes to stderr, and not a blank line beside it.
    assert all(line.strip() for line in err.splitlines())


# Progress.


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, as plain lines see them; tests set the first element."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def display_on(file: io.StringIO, monkeypatch: pytest.MonkeyPatch, **settings: bool | int | None) -> Display:
    monkeypatch.setattr(
        progress, "Console", lambda **given: Console(**given | {"file": file, "stderr": False} | settings)
    )
    return Display()


def test_without_a_terminal_progress_is_plain_lines(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    with display_on(file, monkeypatch, force_terminal=False) as display:
        for second in range(12):
            clock[0] = 100.0 + second
            display.progress("train", second, 20, {"loss": 3.21456, "tokens/s": 12_345.0})
        display.progress("train", 20, 20)
        display.progress("read [data] :key:", 3, 0)
        display.progress("a tokenizer", 0, 0)
        display.note("a note [with] :key: brackets and a name that is longer than any line of a terminal " + "x" * 100)
    assert file.getvalue().splitlines() == [
        "train 0/20  loss 3.21  tokens/s 12.3k",
        "train 5/20  loss 3.21  tokens/s 12.3k  about 15 s left",
        "train 10/20  loss 3.21  tokens/s 12.3k  about 10 s left",
        "train 20/20",
        "read [data] :key: 3",
        "a tokenizer",
        "a note [with] :key: brackets and a name that is longer than any line of a terminal " + "x" * 100,
    ]


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    with display_on(file, monkeypatch, force_terminal=True, force_interactive=None, width=120) as display:
        display.progress("train [0] :key:", 5, 20, {"loss": 3.21456})
        display.bar.refresh()
        display.note("a note")
        shown_so_far = file.getvalue()
        display.progress("train [0] :key:", 20, 20)
        assert not display.bar.tasks
    for words in ("train [0] :key:", "5/20", "loss 3.21", "━", "a note"):
        assert words in shown_so_far, words
    assert "\x1b[" in shown_so_far


def test_a_terminal_that_cannot_draw_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    with display_on(file, monkeypatch, force_terminal=True, width=120) as display:
        display.progress("train", 5, 20)
    assert file.getvalue() == "train 5/20\n"


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(quiet=True) as display:
        display.note("a note")
        display.progress("train", 5, 20)
    assert capsys.readouterr() == ("", "")


def test_output_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display.note("a note")
    assert capsys.readouterr() == ("", "a note\n")


FROM_PYTHON = """
import jax
import jax.numpy as jnp
from jaxformer.devices import prepare_process
prepare_process()
jax.jit(lambda x: jnp.tanh(x) @ x)(jnp.ones((8, 8)))
"""


def test_xla_says_nothing_of_programs_that_it_loads_where_jax_was_imported_first(tmp_path: Path) -> None:
    """XLA of jax 0.10 complains of "prefer-no-gather" with each program that it reads back."""
    environment = os.environ | {"JAXFORMER_CACHE": str(tmp_path), "XLA_FLAGS": xla_flags(1)}
    for name in ("TF_CPP_MIN_LOG_LEVEL", "JAX_COMPILATION_CACHE_DIR"):
        environment.pop(name, None)
    for _ in range(2):
        command = [sys.executable, "-c", FROM_PYTHON]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and done.stderr == ""
    assert list((tmp_path / "compiled").iterdir())
