"""The catalogue: counts that follow from the models, the order of publication, the table, and the picture."""

import datetime
import json
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox
from rich.console import Console

from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.explain import catalog
from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.model import Model, count_parameters
from jaxformer.models.presets import PRESETS, SYSTEMS
from jaxformer.report.plots import STYLE

# Published or recomputed counts: encoder-only with pooler, no vocabulary head.
COUNTS = {
    "gpt": 116_534_784,
    "bert_tiny": 4_385_920,
    "bert_mini": 11_170_560,
    "bert_small": 28_763_648,
    "bert_medium": 41_373_184,
    "bert_base": 109_482_240,
    "bert_large": 335_141_888,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "t5_2x": 502_746_112,
    "t5_4x": 972_590_080,
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
    "transformer_base": 63_082_496,
    "transformer_big": 214_245_376,
    "bert_base_cased": 108_310_272,
    "bert_large_cased": 333_579_264,
    "gpt2_124m": 124_439_808,
    "gpt2_355m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1558m": 1_557_611_200,
    "distilbert_base": 66_362_880,
    "distilbert_base_cased": 65_190_912,
    "bart_base": 139_420_416,
    "bart_large": 406_291_456,
    "gpt3_125m": 125_226_240,
    "gpt3_350m": 355_871_744,
    "gpt3_760m": 760_300_032,
    "gpt3_1.3b": 1_315_723_264,
    "gpt3_2.7b": 2_651_553_280,
    "gpt3_6.7b": 6_658_404_352,
    "gpt3_13b": 12_853_386_240,
    "gpt3_175b": 174_604_259_328,
}
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def entries() -> list[catalog.Entry]:
    return catalog.entries()


@pytest.fixture
def models(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the verb in this process: (exit code, stdout, stderr)."""

    def command(*words: str) -> tuple[int, str, str]:
        try:
            code = main(["models", *words])
        except SystemExit as stop:  # argparse's own
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return command


# What is listed.


def test_every_preset_is_listed_once_in_the_order_of_publication(entries: list[catalog.Entry]) -> None:
    names = [entry["name"] for entry in entries]
    assert sorted(names) == sorted(PRESETS)
    assert [entry["published"] for entry in entries] == sorted(entry["published"] for entry in entries)
    systems = list(dict.fromkeys(entry["system"] for entry in entries))
    assert systems == ["Transformer", "GPT", "BERT", "GPT-2", "DistilBERT", "T5", "BART", "GPT-3"]
    for system in SYSTEMS:
        assert [entry["name"] for entry in entries if entry["system"] == system.title] == list(system.presets)


def test_every_preset_has_its_papers_parameter_count(entries: list[catalog.Entry]) -> None:
    assert {entry["name"]: entry["parameters"] for entry in entries} == COUNTS


def _counted_with_heads(name: str) -> int:
    config, scanned = TransformerConfig(**PRESETS[name]), Execution(unroll=1)
    if config.family != "encoder_only":
        return count_parameters(Model(config, scanned))
    if name.startswith("distilbert"):
        return count_parameters(Model(config, scanned, predicts_tokens=False))
    with_head = count_parameters(Model(config, scanned, heads=(("label", 2, "row"),), predicts_tokens=False))
    return with_head - config.d_model * 2 - 2


@pytest.mark.parametrize("name", ["bert_tiny", "distilbert_base", "t5_1_1_small"])
def test_counts_are_those_of_the_models(entries: list[catalog.Entry], name: str) -> None:
    (listed,) = [entry["parameters"] for entry in entries if entry["name"] == name]
    assert listed == _counted_with_heads(name)


# What the verb prints.


def test_json(models: Command, entries: list[catalog.Entry]) -> None:
    code, out, err = models("--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == entries
    assert json.loads(out)[0] == {
        "name": "transformer_base",
        "system": "Transformer",
        "family": "encoder_decoder",
        "num_layers": 6,
        "d_model": 512,
        "num_heads": 8,
        "head_dim": 64,
        "d_ff": 2048,
        "vocab_size": 37_000,
        "context": 512,
        "parameters": 63_082_496,
        "paper": "Vaswani et al. 2017, arXiv:1706.03762",
        "published": "2017-06-12",
    }


def test_the_piped_table_is_plain_and_whole(models: Command, entries: list[catalog.Entry]) -> None:
    code, out, err = models()
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    assert rows["gpt3_175b"] == ["96", "12,288", "96", "49,152", "174,604,259,328", "2,048"]
    assert set(PRESETS) <= set(rows)
    lines = out.splitlines()
    for system in SYSTEMS:
        family = next(iter(system.presets.values()))["family"]
        assert f"{system.title} · {family} · {system.published} · {system.paper}" in lines
    assert catalog.COUNTED in lines


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_table_fits_a_terminal(entries: list[catalog.Entry], width: int) -> None:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as shown:
        catalog.print_table(entries, console)
    text = shown.get()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text and all(f"{entry['parameters']:,}" in text for entry in entries)


def test_help_has_an_example(models: Command) -> None:
    code, out, _ = models("--help")
    assert code == 0 and "example: jaxformer models --plot=models.png" in out


# The picture.


def test_labels_overlap_nothing_and_lie_inside(entries: list[catalog.Entry]) -> None:
    with matplotlib.rc_context(STYLE):
        figure = catalog.draw(entries)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    (panel,) = figure.axes
    legend = panel.get_legend()
    assert legend is not None
    renderer = canvas.get_renderer()
    inside = {text.get_text(): text.get_window_extent(renderer) for text in panel.texts}
    assert len(inside) == len(panel.texts)
    assert {system.title for system in SYSTEMS} < set(inside)
    assert {"63.1M", "1.56B", "175B", "66.4M"} < set(inside)
    inside["legend"] = legend.get_window_extent(renderer)
    # Matplotlib keeps ticks beyond the ends of an axis, and does not draw them.
    ticks = [
        tick.label1
        for axis in (panel.xaxis, panel.yaxis)
        for tick in axis.get_major_ticks()
        if min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    ]
    outside = {text.get_text(): text.get_window_extent(renderer) for text in [*figure.texts, *ticks]}
    assert {"Jul 2017", "100M", "100B"} < set(outside)
    for name, box in inside.items():
        assert _is_within(box, panel.bbox), name
    for name, box in outside.items():
        assert _is_within(box, figure.bbox), name
    overlapping = [
        (one, other)
        for (one, box), (other, second) in combinations((inside | outside).items(), 2)
        if box.overlaps(second)
    ]
    assert overlapping == []
    # Nor does a label lie on a column: its dots, and the line through them.
    radius = 5.5 * figure.dpi / 72
    for line in panel.get_lines():
        points = panel.transData.transform(line.get_xydata())
        column = Bbox([points.min(axis=0) - radius, points.max(axis=0) + radius])
        assert [name for name, box in inside.items() if box.overlaps(column)] == []
    assert sum(len(line.get_xydata()) for line in panel.get_lines()) == len(PRESETS)
    # Nor one column on its neighbour.
    middles = [panel.transData.transform(line.get_xydata())[0, 0] for line in panel.get_lines()]
    assert all(second - first >= 2 * radius for first, second in pairwise(middles))


def _is_within(box: Bbox, outer: Bbox) -> bool:
    return outer.x0 <= box.x0 and outer.y0 <= box.y0 and box.x1 <= outer.x1 and box.y1 <= outer.y1


def test_columns_keep_apart_and_near_their_day(entries: list[catalog.Entry]) -> None:
    days = [datetime.date.fromisoformat(system.published).toordinal() for system in SYSTEMS]
    moved = catalog.apart(days, 19)
    assert all(second - first >= 19 - 1e-9 for first, second in pairwise(moved))
    shifts = [abs(place - day) for place, day in zip(moved, days, strict=True)]
    assert max(shifts) <= 8 and shifts[:4] == [0, 0, 0, 0] and shifts[-1] == 0
    assert catalog.apart([0, 0, 0], 2) == [-2, 0, 2]


def test_families_look_different(entries: list[catalog.Entry]) -> None:
    (panel,) = catalog.draw(entries).axes
    looks = {(line.get_color(), line.get_marker()) for line in panel.get_lines()}
    assert len(looks) == len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 3


@pytest.mark.parametrize(("ending", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_the_ending_names_the_format(tmp_path: Path, entries: list[catalog.Entry], ending: str, start: bytes) -> None:
    first, second = tmp_path / "new" / f"first{ending}", tmp_path / f"second{ending}"
    catalog.plot(entries, first)
    catalog.plot(entries, second)
    assert first.read_bytes().startswith(start)
    assert first.read_bytes() == second.read_bytes()


def test_the_verb_draws(models: Command, tmp_path: Path) -> None:
    path = tmp_path / "models.png"
    assert models("--plot", str(path)) == (0, f"plot: {path}\n", "")
    width, height = (int.from_bytes(path.read_bytes()[start : start + 4]) for start in (16, 20))
    assert (width, height) == (1920, 1080)
    code, out, _ = models("--json", "--plot", str(path))
    assert code == 0 and len(json.loads(out)) == len(PRESETS)


@pytest.mark.parametrize("name", ["models.gif", "models", "", "png"])
def test_another_ending_is_refused_before_anything_is_counted(
    models: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalog, "entries", lambda: pytest.fail("counted"))
    code, out, err = models(f"--plot={name}")
    assert (code, out) == (2, "")
    assert err.endswith("the file must end in .png, .svg or .pdf\n") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_one_line(
    models: Command, monkeypatch: pytest.MonkeyPatch, entries: list[catalog.Entry], tmp_path: Path
) -> None:
    monkeypatch.setattr(catalog, "entries", lambda: entries[:3])
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("folder.png", "file/models.png"):
        code, out, err = models(f"--plot={tmp_path / name}")
        assert (code, out) == (2, "")
        assert err.startswith(f"jaxformer models: cannot write {tmp_path / name}: ") and err.count("\n") == 1


def test_a_full_disk_is_the_users_to_mend(
    monkeypatch: pytest.MonkeyPatch, entries: list[catalog.Entry], tmp_path: Path
) -> None:
    def full(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(UserError, match="the disk is full"):
        catalog.plot(entries, tmp_path / "models.png")
