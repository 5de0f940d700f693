"""Configs: golden texts, precedence, a file of the user's own, and one line for every mistake, before any device."""

import ast
import dataclasses
import difflib
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxformer import config as configs
from jaxformer.config import SCALARS, SECTIONS, SELECTORS, Config, experiments, flat, load, resolve
from jaxformer.data.sources import SourceMixture
from jaxformer.errors import UserError
from jaxformer.models.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
UPDATE = "JAXFORMER_UPDATE_GOLDEN=1 python -m pytest tests/test_config.py -k golden"
UPDATES = bool(os.environ.get("JAXFORMER_UPDATE_GOLDEN"))


def specs() -> list[str]:
    """Every experiment in every size, its default size also as smoke and small; fine-tuning once per family."""
    found = []
    for name in experiments():
        module = importlib.import_module(f"jaxformer.experiments.{name.replace('/', '.')}")
        if name == "finetune_area":  # another name of finetune/area
            continue
        if hasattr(module, "FAMILIES"):
            args = [f"{family},smoke" for family in module.FAMILIES]
        else:
            args = ["", "smoke", "small", *getattr(module, "SIZES", ())]
        found += [f"{name}:{arg}".removesuffix(":") for arg in args]
    return found


SPECS = specs()


def golden_file(spec: str) -> Path:
    return GOLDEN / f"{re.sub('[:,/]', '-', spec)}.txt"


def test_folders_are_part_of_a_name_and_the_former_name_is_still_known() -> None:
    assert {"bert", "finetune/area"} <= set(experiments()) and not [name for name in experiments() if "common" in name]
    assert text_of(load("finetune_area:gpt,smoke")) == text_of(load("finetune/area:gpt,smoke"))
    with pytest.raises(UserError, match="did you mean 'finetune/area'"):
        load("finetune/aria:bert")


def text_of(config: configs.Config) -> str:
    """Return one `section.key = value` line per field."""
    return "".join(f"{key} = {value!r}\n" for key, value in flat(config.to_dict()).items())


@pytest.mark.parametrize("spec", SPECS)
def test_a_resolved_config_is_the_golden_text(spec: str) -> None:
    text, path = text_of(load(spec)), golden_file(spec)
    if UPDATES:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    golden = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = difflib.unified_diff(golden.splitlines(), text.splitlines(), "golden", "now", lineterm="", n=0)
    assert text == golden, "\n".join([f"{spec} resolves to other values; if that is meant: {UPDATE}", *lines])


def test_no_golden_text_is_left_of_an_experiment_that_has_gone() -> None:
    stale = set(GOLDEN.glob("*.txt")) - {golden_file(spec) for spec in SPECS}
    for path in stale if UPDATES else ():
        path.unlink()
    left = sorted(path.name for path in stale if path.exists())
    assert not left, f"no experiment has these golden texts: {', '.join(left)}; {UPDATE} removes them"


@pytest.mark.parametrize("spec", SPECS)
def test_a_config_survives_json(spec: str) -> None:
    """`config.json` holds the resolved config, and resuming resolves that again."""
    config = load(spec)
    stored = json.loads(json.dumps(config.to_dict()))
    assert resolve(stored, name=spec) == config
    assert flat(stored) == flat(config.to_dict())


def test_a_subset_may_follow_the_seed_of_the_run() -> None:
    assert load("bert:smoke", ["seed=7", "data.subset_seed=-1"]).data.subset_seed == 7
    members = [{"name": "stdlib_docs", "subset_seed": seed} for seed in (-1, 3)]
    mixed = load("bert:smoke", ["seed=7", "data.name=mixture", f"data.members={members}"])
    assert [source.subset_seed for source, _ in mixed.data.sources()] == [7, 3]
    assert load("bert:smoke", ["seed=7"]).data.subset_seed == 0


def test_a_mixture_survives_json() -> None:
    members = "[{'name': 'stdlib_docs', 'weight': 2.0}, {'name': 'text', 'path': 'a,b.txt'}]"
    config = load("gpt:smoke", ["data.name=mixture", f"data.members={members}"])
    assert isinstance(config.data, SourceMixture)
    assert [weight for _, weight in config.data.sources()] == [2.0, 1.0]
    assert resolve(json.loads(json.dumps(config.to_dict())), name=config.name) == config


def test_the_default_size_is_the_papers_main_one() -> None:
    for spec, named in {
        "transformer": "transformer:base",
        "gpt": "gpt:117m",
        "bert": "bert:base",
        "gpt2": "gpt2:1558m",
        "distilbert": "distilbert:base",
        "t5": "t5:base",
        "bart": "bart:large",
        "gpt3": "gpt3:175b",
        "bert:smoke": "bert:smoke,base",
    }.items():
        assert load(spec).to_dict() == load(named).to_dict()


def test_every_preset_of_the_family_is_a_size_somewhere() -> None:
    """A preset that no experiment runs is either new or forgotten: it is named here."""
    run = {load(spec).selected["model"] for spec in SPECS}
    # bert:small is a small run, not the released model of that name. The rest are taken by --config.model.preset=….
    named = {"bert_small", "bert_base_cased", "bert_large_cased", "distilbert_base_cased", "t5_2x", "t5_4x"}
    assert set(PRESETS) - run == named


# Who reads what.


def rooms() -> Iterator[tuple[str, type]]:
    for section, room in SECTIONS.items():
        yield from ((section, member) for member in (room.values() if isinstance(room, dict) else [room]))


def receiver_of(node: ast.expr) -> str:
    """Return what a field is read from: `training`, `self.training`, and `config` whatever holds that."""
    dotted = ast.unparse(node).split(".")
    return dotted[-1] if dotted[-1] == "config" else ".".join(dotted[-2:])


class Reads(ast.NodeVisitor):
    """Collects (enclosing class, receiver, field) of every attribute read, and the names that the file mentions.

    What a class's own `__post_init__` reads is left out: checking a value is not using it. So are methods that are
    called, because `text.split()` has nothing to do with a field `split`.
    """

    def __init__(self, source: str) -> None:
        self.reads: set[tuple[str, str, str]] = set()
        self.names: set[str] = set()
        self._class = ""
        self.visit(ast.parse(source))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self._class = self._class, node.name
        self.names.add(node.name)
        self.generic_visit(node)
        self._class = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name != "__post_init__":
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self.names.add(node.id)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute):
            self.visit(node.func.value)
        else:
            self.visit(node.func)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.visit(argument)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self.reads.add((self._class, receiver_of(node.value), node.attr))
        self.generic_visit(node)


def is_read(section: str, room: type, field: str, files: list[Reads]) -> bool:
    """Whether a file reads `field` from the section, from `self` in the class, or from a `config` of that class.

    A `config` counts in files that mention the class, or one that it derives from.
    """
    family = {parent.__name__ for parent in room.__mro__} - {"object"}
    family |= {child.__name__ for child in room.__subclasses__()}
    receivers = {f"config.{section}"} | ({"supervision"} if section in ("objective", "task") else set())
    receivers |= {section, f"self.{section}"} - {"tokenizer"}  # a variable of that name is a live tokenizer
    return any(
        name == field
        and (
            receiver in receivers
            or (receiver == "self" and inside in family)
            or (receiver == "config" and bool(family & file.names))
        )
        for file in files
        for inside, receiver, name in file.reads
    )


def test_no_key_goes_unread() -> None:
    files = [Reads(path.read_text(encoding="utf-8")) for path in (ROOT / "jaxformer").rglob("*.py")]
    unread = {
        f"{section}.{field.name}"
        for section, room in rooms()
        for field in dataclasses.fields(room)
        if field.metadata.get("config", True) and not is_read(section, room, field.name, files)
    }
    assert unread == set(), "keys that nobody reads: the user sets them and nothing happens"
    unread_scalars = {key for key in SCALARS if not any((key in read) for file in files for read in file.reads)}
    assert unread_scalars == set()


def test_the_search_for_readers_tells_a_read_from_a_check() -> None:
    @dataclasses.dataclass
    class Room:
        split: str

    checked = "class Room:\n  def __post_init__(self): print(self.split)\ndef f(text): return text.split(self.split())"
    elsewhere = "def f(config: Other): return config.split"
    used = "def f(config: Room): return config.split"
    assert not is_read("room", Room, "split", [Reads(checked), Reads(elsewhere)])
    assert is_read("room", Room, "split", [Reads(checked), Reads(used)])
    assert is_read("room", Room, "split", [Reads("def f(config): return config.room.split")])


def test_every_section_is_a_field_of_the_config() -> None:
    names = {field.name for field in dataclasses.fields(Config)}
    assert names == {"name", "selected", "defined", *SCALARS, *SECTIONS}


# Mistakes. Each is one line that has all the words beside it; every one is also read where no device can be found.

TYPOS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "experiment": ("brt", (), ("'brt'", "did you mean 'bert'?", "finetune/area, finetune/choice", "FILE.py")),
    "what experiments share": ("common", (), ("no experiment 'common'",)),
    "file": ("nowhere/mine.py:smoke", (), ("no file nowhere/mine.py",)),
    "arg": ("bert:smok", (), ("bert:smok", "'smok'", "tiny, mini, medium, base, large", "smoke, small")),
    "two sizes": ("bert:tiny,base", (), ("'tiny,base'", "at most one")),
    "two scales": ("bert:smoke,small", (), ("'smoke,small'", "at most one of smoke, small")),
    "family": ("finetune/area:brt", (), ("'brt'", "gpt, bert, t5")),
    "arg of the family": ("finetune/area:bert,smok", (), ("'smok'", "smoke, small")),
    "section": ("gpt", ("trainin.num_steps=3",), ("trainin", "did you mean 'training'?")),
    "key": ("gpt", ("training.num_step=3",), ("training.num_step:", "did you mean 'num_steps'?", "batch_size")),
    "key of the chosen": (
        "gpt", ("optimizer.decay_exponent=1",), ("optimizer.decay_exponent", "no such key", "weight_decay"),
    ),
    "preset": ("gpt", ("model.preset=bert_bas",), ("model.preset", "'bert_bas'", "did you mean 'bert_base'?")),
    "name": ("gpt", ("optimizer.name=adamv",), ("optimizer.name", "'adamv'", "did you mean 'adamw'?", "adafactor")),
    "objective": ("gpt", ("objective.name=casual_lm",), ("objective.name", "did you mean 'causal_lm'?")),
    "source": ("gpt", ("data.name=json_line",), ("data.name", "did you mean 'json_lines'?")),
    "slot": ("gpt", ("model.norm=layernorm",), ("model.norm:", "'layernorm'", "did you mean 'layer_norm'?")),
    "choice": ("gpt", ("training.compute_dtype=bfloat",), ("training.compute_dtype", "did you mean 'bfloat16'?")),
    "metric": ("finetune/area:bert", ("task.metrics=acuracy",), ("task.metrics", "did you mean 'accuracy'?")),
    "schedule": ("gpt", ("optimizer.schedule=linaer",), ("optimizer.schedule", "linaer", "linear, ")),
    "split": ("gpt", ("evaluation.split=tset",), ("evaluation.split", "'tset'", "validation, test")),
    "whole number": ("gpt", ("training.num_steps=many",), ("training.num_steps", "'many'", "a whole number")),
    "fraction": ("gpt", ("training.batch_size=1.5",), ("training.batch_size", "'1.5'", "a whole number")),
    "infinity": ("gpt", ("training.num_steps=1e999",), ("training.num_steps", "1e999", "a whole number")),
    "number": ("gpt", ("optimizer.learning_rate=fast",), ("optimizer.learning_rate", "'fast'", "a number")),
    "too large": ("gpt", (f"optimizer.learning_rate=1{'0' * 400}",), ("optimizer.learning_rate", "a number")),
    "truth": ("gpt", ("optimizer.bias_correction=maybe",), ("optimizer.bias_correction", "'maybe'", "true or false")),
    "list": ("gpt", ("training.trainable=[a",), ("training.trainable", "'[a'", "a list")),
    "list of text": ("gpt", ("training.trainable=[1]",), ("training.trainable", "1", "text")),
    "members": ("gpt", ("data.name=mixture", "data.members=x"), ("data.members", "'x'", "keys and values")),
    "seed": ("gpt", ("seed=1.5",), ("seed", "'1.5'", "a whole number")),
    "seed as a section": ("gpt", ("seed.key=1",), ("seed", "--config.seed=value")),
    "whole section": ("gpt", ("training=3",), ("training", "--config.section.key=value")),
    "no value": ("gpt", ("training.num_steps",), ("training.num_steps", "--config.section.key=value")),
    "no key": ("gpt", ("training.=3",), ("training.:", "no such key")),
    "nothing": ("gpt", ("=3",), ("no section ''",)),
    "missing": ("gpt", ("tokenizer.name=file",), ("tokenizer.path", "missing", "--config.tokenizer.path=")),
    "out of range": ("gpt", ("training.num_steps=0",), ("training.num_steps", "0", "at least 1")),
    "two kinds of supervision": ("gpt", ("task.name=classification",), ("task.name", "'objective'", "'task'")),
    "and the other way": ("finetune/area:bert", ("objective.name=masked_lm",), ("objective.name", "'task'")),
    "masked_lm on a decoder": (
        "gpt", ("objective.name=masked_lm",), ("objective.name", "masked_lm", "decoder_only", "both its sides"),
    ),
    "a task of another family": (
        "finetune/area:bert", ("task.name=text_to_text",),
        ("task.name", "encoder_only", "encoder_decoder", "model.preset"),
    ),
    "learned positions": ("gpt", ("model.max_length=128",), ("model.max_length", "128", "512")),
    "positions of a task": ("finetune/area:bert", ("task.sequence_length=513",), ("model.max_length", "512", "513")),
    "segments without types": ("bert", ("model.token_types=0",), ("next_sentence", "model.token_types")),
    "cudnn with dropout": (
        "gpt", ("training.attention=cudnn",), ("training.attention", "'cudnn'", "model.attention_dropout=0"),
    ),
    "xla with dropout": ("bert", ("training.attention=xla",), ("training.attention", "'xla'", "auto")),
    "batch and accumulation": (
        "gpt", ("training.accumulation_steps=7",), ("training.batch_size", "64", "accumulation_steps 7"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", TYPOS)
def test_a_mistake_is_one_line_that_says_what_where_and_how(mistake: str) -> None:
    spec, overrides, words = TYPOS[mistake]
    with pytest.raises(UserError) as caught:
        load(spec, overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert [word for word in words if word not in message] == [], message


def test_no_mistake_is_found_only_after_a_device() -> None:
    """With a platform that does not exist, whatever looks for a device raises a RuntimeError."""
    program = (
        "import json, sys, jax\n"
        "from jaxformer.config import load\n"
        "from jaxformer.errors import UserError\n"
        "for spec, overrides in json.load(sys.stdin):\n"
        "    try:\n"
        "        load(spec, overrides)\n"
        "        print('read', spec)\n"
        "    except UserError:\n"
        "        print('refused', spec, overrides)\n"
        "try:\n"
        "    jax.devices()\n"
        "except RuntimeError:\n"
        "    print('no device')\n"
    )
    cases = [[spec, overrides] for spec, overrides, _ in TYPOS.values()] + [[spec, []] for spec in SPECS]
    environment = {**os.environ, "JAX_PLATFORMS": "nowhere"}
    run = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(cases), env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["refused"] * len(TYPOS) + ["read"] * len(SPECS)
    assert lines[-1] == "no device"


def test_mistakes_of_a_dict_are_named() -> None:
    good = load("gpt:smoke").to_dict()
    cases = {
        "'modle' is not a section of a config; did you mean 'model'?": {"modle": {}},
        "'training' is a section of keys": {"training": 3},
        "a config has either an 'objective' (pretraining) or a 'task'": {"task": {"name": "extract_classification"}},
        "training.num_steps: missing": {"training": {"batch_size": 1}},
        "training.num_steps: missing; set it": {"training": {}},
        "model.preset: missing; `jaxformer models` lists them": {"model": {}},
        "optimizer.name: missing; there are adamw": {"optimizer": {"learning_rate": 1.0}},
        "seed: True is not a whole number": {"seed": True},
        "init_from: 3 is not text": {"init_from": 3},
        "training.log_every: True is not a whole number": {"training": good["training"] | {"log_every": True}},
        "training.trainable: 3 is not a list": {"training": good["training"] | {"trainable": 3}},
        "training.num_steps: inf is not a whole number": {"training": good["training"] | {"num_steps": float("inf")}},
    }
    for words, changes in cases.items():
        with pytest.raises(UserError) as caught:
            resolve(good | changes, name="mine")
        assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1
    without = {key: value for key, value in good.items() if key not in ("objective", "task")}
    with pytest.raises(UserError, match="either an 'objective'"):
        resolve(without, name="mine")


# Precedence.


def test_overrides_win_over_the_experiment_and_that_over_the_preset() -> None:
    preset, experiment, override = PRESETS["gpt"], load("gpt:smoke"), load("gpt:smoke", ["model.num_layers=5"])
    assert preset["num_layers"] == 12 and load("gpt").model.num_layers == 12
    assert experiment.model.num_layers == 2
    assert override.model.num_layers == 5
    # What neither touches is the preset's.
    assert override.model.activation == preset["activation"] == "gelu_tanh"
    # The last of two overrides of one key counts, as everywhere on a command line.
    assert load("gpt", ["seed=1", "seed=2"]).seed == 2


def test_a_later_preset_keeps_what_the_experiment_says() -> None:
    config = load("bert:smoke", ["model.preset=bert_large"])
    assert config.selected["model"] == "bert_large"
    assert (config.model.num_layers, config.model.d_model) == (2, 128)
    assert load("bert", ["model.preset=bert_large"]).model == load("bert:large").model


def test_any_field_can_be_given_whether_or_not_the_experiment_wrote_it() -> None:
    config = load("gpt:smoke", ["training.remat=full", "model.norm_epsilon=1e-3", "footprint.enabled=false"])
    assert (config.training.remat, config.model.norm_epsilon, config.footprint.enabled) == ("full", 1e-3, False)


def test_another_choice_keeps_only_the_keys_that_it_shares() -> None:
    before = load("gpt:smoke")
    config = load("gpt:smoke", ["optimizer.name=adafactor"])
    assert type(config.optimizer) is SECTIONS["optimizer"]["adafactor"]
    # adafactor knows these keys of the experiment, and not its weight decay.
    for key in ("learning_rate", "warmup_steps", "schedule", "clip_norm"):
        assert getattr(config.optimizer, key) == getattr(before.optimizer, key), key
    assert hasattr(before.optimizer, "weight_decay") and not hasattr(config.optimizer, "weight_decay")
    assert load("gpt:smoke", ["optimizer.name=adamw"]) == before


@pytest.mark.parametrize("order", [1, -1], ids=["choice first", "choice last"])
def test_overrides_count_wherever_the_choice_stands(order: int) -> None:
    overrides = ["optimizer.name=adafactor", "optimizer.learning_rate=0.5"][::order]
    assert load("gpt:smoke", overrides).optimizer.learning_rate == 0.5
    # A key that the new choice lacks is an error in both orders, and never dropped in silence.
    with pytest.raises(UserError, match="optimizer.weight_decay: no such key"):
        load("gpt:smoke", ["optimizer.name=adafactor", "optimizer.weight_decay=0.5"][::order])


def test_values_of_the_command_line_are_read_by_type() -> None:
    overrides = {
        "training.num_steps=1e3": 1000,
        "training.batch_size=32.0": 32,
        "optimizer.learning_rate=1": 1.0,
        "optimizer.bias_correction=TRUE": True,
        "optimizer.decay_exclude=a/.*,b": ("a/.*", "b"),
        "optimizer.decay_exclude=['a,b']": ("a,b",),
        "optimizer.decay_exclude=('a', 'b')": ("a", "b"),
        "optimizer.decay_exclude=(.*/)?bias,.*norm/.*": ("(.*/)?bias", ".*norm/.*"),
        "optimizer.decay_exclude=": (),
        "checkpoint.best_metric=eval/accuracy=1": "eval/accuracy=1",
        "init_from=a:b=c": "a:b=c",
    }
    for override, expected in overrides.items():
        value = flat(load("gpt:smoke", [override]).to_dict())[override.partition("=")[0]]
        assert value == expected and type(value) is type(expected), override


def test_loading_changes_nothing_for_the_next() -> None:
    before = load("gpt:smoke").to_dict()
    load("gpt:smoke", ["model.num_layers=7", "optimizer.name=adafactor", "data.name=text", "data.path=x"])
    assert load("gpt:smoke").to_dict() == before


def test_the_text_has_one_line_for_every_field() -> None:
    config = load("gpt:smoke")
    lines = text_of(config).splitlines()
    assert len(lines) == len(flat(config.to_dict())) == len({line.partition(" = ")[0] for line in lines})
    absent = ("task", "distillation")
    fields = sum(len(configs._fields(type(getattr(config, section)))) for section in SECTIONS if section not in absent)
    assert len(lines) == len(SCALARS) + fields + len(SELECTORS) - 1
    assert "model.num_layers = 2" in lines and "init_from = ''" in lines


# The user's own file.

MINE = '''"""Mine."""
from jaxformer.experiments import gpt

def get_config(arg=""):
    config = gpt.get_config("smoke")
    config.model.num_layers = int(arg or 3)
    return config
'''


def test_a_file_of_the_users_own_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my folder").mkdir()
    path = tmp_path / "my folder" / "mine.py"
    path.write_text(MINE)
    config = load(str(path))
    assert (config.model.num_layers, config.model.d_model, config.name) == (3, 128, str(path))
    assert load(f"{path}:5", ["seed=4"]).model.num_layers == 5
    monkeypatch.chdir(path.parent)
    assert load("mine.py:7").model.num_layers == 7
    assert "mine" not in sys.modules


def test_a_plain_dict_will_do(tmp_path: Path) -> None:
    path = tmp_path / "plain.py"
    path.write_text(MINE.replace("return config", "return config.to_dict()"))
    assert load(f"{path}:4").model.num_layers == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(MINE + "\n1 / 0\n", ("does not load", "ZeroDivisionError", "division", "mine.py:9"), id="raises"),
        pytest.param("def get_config(:\n", ("does not load", "SyntaxError", "mine.py, line 1"), id="syntax"),
        pytest.param("import nothing_of_this_name\n", ("does not load", "ModuleNotFoundError"), id="import"),
        pytest.param("raise ValueError('a\\nb')", ("does not load", "ValueError: a"), id="two lines"),
        pytest.param("x = 1\n", ("has no function get_config(arg)",), id="no function"),
        pytest.param("def get_config(arg):\n    return y\n", ("get_config('')", "NameError", "mine.py:2"), id="inside"),
        pytest.param("def get_config():\n    return {}\n", ("get_config('')", "TypeError"), id="no argument"),
        pytest.param("def get_config(arg):\n    pass\n", ("NoneType", "ConfigDict"), id="returns nothing"),
        pytest.param(MINE.replace("num_layers", "num_layer"), ("model.num_layer", "'num_layers'"), id="typo"),
    ],
)
def test_a_broken_file_of_the_users_is_one_line(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(str(path))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert [word for word in (*words, "mine.py" if "model." not in message else "") if word not in message] == []


def test_a_bad_arg_of_the_users_file_is_theirs_to_word(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    with pytest.raises(UserError, match="mine.py:many: invalid literal for int"):
        load(f"{path}:many")
