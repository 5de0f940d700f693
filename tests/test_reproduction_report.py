"""A reproduction as it is reported: its folder read, its statistics beside scipy's and by hand, its words, its page."""

import io
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import visible_text
from rich.console import Console
from scipy import stats

from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.report import (
    is_reproduction,
    is_sweep,
    is_transfer,
    print_reproduction,
    read_reproduction,
    read_result,
    write_reproduction_report,
)
from jaxformer.report import reproduction_statistics as statistics
from jaxformer.report.reproduction_markdown import result_markdown, results_index, write_result
from jaxformer.report.reproduction_plots import corners, reference, shares
from jaxformer.report.reproduction_tables import costs_table, differences_table, orders_table, values_table
from jaxformer.report.reproduction_words import command, departures, headline, sentences

Result = dict[str, Any]
SST2 = {"stage": "SST-2", "metric": "eval/accuracy", "mode": "max", "scale": 100}
LOSS = {"stage": "pretraining", "metric": "eval/loss", "mode": "min"}


def made_row(paper: dict[str, float], values: dict[str, list[float | None]], **fields: Any) -> Result:
    row: Result = {"paper": paper, "set": {}, "state": "done", "reason": "", "values": values, "size": {}}
    return row | {"costs": {"hours": 1.0, "device_hours": 1.0, "energy_kwh": 0.02, "emissions_kg": 0.01}} | fields


def made(columns: dict[str, Any], rows: dict[str, Result], **fields: Any) -> Result:
    """A result with three seeds, whose base is the first row."""
    result: Result = {
        "kind": "reproduction", "name": "table5", "spec": "table5", "scale": "small", "data": "corpora",
        "question": "What is it worth?",
        "paper": "BERT (Devlin et al. 2018)", "place": "Table 5, page 8", "base": next(iter(rows)),
        "differences": False, "notes": ["Other texts."], "columns": columns, "fits": [],
        "command": "jaxformer reproduce table5 --scale=small --data=/some/where/corpora --seeds=3 --rows 'A,B C'",
        "created": "2026-11-30T08:00:00+00:00", "version": "0.1.0", "git_revision": "0123456789abcdef",
        "packages": {"jax": "0.12.0.1"}, "device": {"platform": "cpu", "kind": "cpu", "count": 1}, "seeds": [0, 1, 2],
        "rows": rows, "costs": {"hours": 3.0, "device_hours": 3.0, "energy_kwh": 0.06, "emissions_kg": 0.03},
        "trials": {"SST-2": {name: [f"{name}{seed}" for seed in range(3)] for name in rows}}, "meaning": [],
    }  # fmt: skip
    return result | fields


def bert() -> Result:
    """Three rows with results, one that cannot be provided and one of another scale."""
    return made(
        {"SST-2": SST2, "MNLI": {"missing": "its files are not in the folder"}},
        {
            "base": made_row({"SST-2": 92.7}, {"SST-2": [80.0, 81.0, 82.0]}),
            "No NSP": made_row({"SST-2": 92.6}, {"SST-2": [80.5, 81.0, 82.4]}),
            "LTR | $x$ <b>": made_row({"SST-2": 92.1}, {"SST-2": [77.0, 78.5, 78.5]}),
            "+ BiLSTM": made_row(
                {"SST-2": 91.6}, {"SST-2": [None] * 3}, state="not provided", reason="the house has no LSTM"
            ),
            "large": made_row({"SST-2": 94.9}, {"SST-2": [None] * 3}, state="not at this scale"),
        },
    )


def ranked(ours: list[float], paper: list[float], mode: str = "max", **column: Any) -> Result:
    rows = {
        f"row {index}": made_row({"paper's": theirs}, {"own": [own - 0.1, own, own + 0.1]})
        for index, (own, theirs) in enumerate(zip(ours, paper, strict=True))
    }
    return made({"own": SST2 | {"mode": mode, "paper": "paper's"} | column}, rows)


# Statistics.


def test_differences_are_paired_by_seed() -> None:
    result = bert()
    found = statistics.difference(result, "SST-2", "LTR | $x$ <b>")
    own, base = np.array([77.0, 78.5, 78.5]), np.array([80.0, 81.0, 82.0])
    theirs = stats.ttest_rel(own, base).confidence_interval(0.95)
    assert found is not None and found.mean == pytest.approx(-3.0) and found.deviation == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert found.shows is True
    assert statistics.difference(result, "SST-2", "base") is None
    assert statistics.difference(result, "SST-2", "+ BiLSTM") is None
    result["rows"]["No NSP"]["values"]["SST-2"] = [None, 81.0, 82.4]
    partial = statistics.difference(result, "SST-2", "No NSP")
    assert partial is not None and (partial.mean, partial.seeds) == (pytest.approx(0.2), 2)
    assert partial.shows is False, "the seed that one of them lacks counts for neither"


@pytest.mark.parametrize("differences", [[0.5], [0.5, 0.5, 0.5], [0.1 + 0.2, 0.3]])
def test_what_does_not_vary_has_no_interval(differences: list[float]) -> None:
    found = statistics.paired_difference(differences)
    assert (found.deviation, found.low, found.high, found.needed, found.shows) == (None,) * 5


@given(st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=8))
def test_an_interval_is_students(differences: list[float]) -> None:
    found = statistics.paired_difference(differences)
    if found.low is None or found.high is None:
        assert np.std(differences) == pytest.approx(0, abs=1e-6)
        return
    theirs = stats.ttest_1samp(differences, 0.0)
    low, high = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)
    if abs(theirs.pvalue - 0.05) > 1e-6:
        assert found.shows is bool(theirs.pvalue < 0.05)


def test_as_many_seeds_as_are_needed_find_a_difference_in_four_of_five_cases() -> None:
    # Effect sizes and numbers of pairs of Cohen's tables, as G*Power gives them: two-sided, 5 %, power 80 %.
    for effect, pairs in ((0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)):
        assert statistics.seeds_needed(effect, 1.0) == statistics.seeds_needed(-3 * effect, 3.0) == pairs
    rng = np.random.default_rng(0)
    drawn = rng.normal(1.5, 1.0, size=(20_000, needed := statistics.seeds_needed(1.5, 1.0) or 0))
    assert np.mean(stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05) >= 0.79
    fewer = stats.ttest_1samp(drawn[:, : needed - 1], 0.0, axis=1).pvalue
    assert np.mean(fewer < 0.05) < 0.8
    assert statistics.seeds_needed(0.0, 1.0) is None and statistics.seeds_needed(1.0, 0.0) is None
    assert statistics.seeds_needed(1e6, 1.0) == 2
    assert statistics.seeds_needed(1e-3, 1.0) == pytest.approx(7.85e6, rel=1e-3)


@given(st.floats(0.01, 500), st.floats(1.0, 3.0))
def test_a_larger_difference_needs_no_more_seeds(effect: float, times: float) -> None:
    needed, fewer = statistics.seeds_needed(effect, 1.0), statistics.seeds_needed(effect * times, 1.0)
    assert needed is not None and fewer is not None and 2 <= fewer <= needed


@pytest.mark.parametrize("effect", [0.5, 2.0, 5.0625, 9.0, 40.0])
@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_power_is_that_of_all_deviations_that_seeds_may_show(effect: float, seeds: int) -> None:
    """By definition: over estimates of the deviation, the chance that the mean is far enough from zero."""
    chances = (np.arange(20_000) + 0.5) / 20_000
    seen = np.sqrt(stats.chi2.ppf(chances, seeds - 1) / (seeds - 1))
    edge, away = stats.t.ppf(0.975, seeds - 1) * seen, effect * math.sqrt(seeds)
    expected = np.mean(stats.norm.sf(edge - away) + stats.norm.cdf(-edge - away))
    assert statistics.power_of(effect, seeds) == pytest.approx(expected, abs=1e-3)


def test_power_goes_on_smoothly_where_scipy_leaves_off() -> None:
    for seeds in (2, 3, 5):
        edge = 30 / math.sqrt(seeds)
        before, after = statistics.power_of(edge * 0.999, seeds), statistics.power_of(edge * 1.001, seeds)
        assert before == pytest.approx(after, abs=0.005)


def test_the_order_of_rows_is_compared_with_all_orders() -> None:
    found = statistics.order_of("abcd", [1.0, 2.0, 4.0, 3.0], [10.0, 20.0, 30.0, 40.0])
    assert found is not None and found.spearman == pytest.approx(0.8) and found.kendall == pytest.approx(4 / 6)
    every = [stats.spearmanr(order, range(4)).statistic for order in itertools.permutations(range(4))]
    assert found.chance == sum(each >= 0.8 - 1e-9 for each in every) / 24 == 4 / 24
    assert found.reverse == sum(each <= 0.8 + 1e-9 for each in every) / 24
    assert found.best == 1 / 24 and found.can_show and not found.agrees and not found.contradicts
    perfect = statistics.order_of("abcd", [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
    assert perfect is not None and perfect.agrees and perfect.chance == 1 / 24
    three = statistics.order_of("abc", [1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert three is not None and three.chance == three.best == 1 / 6 and not three.can_show
    tied = statistics.order_of("abcd", [1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 2.0, 2.0])
    assert tied is not None and tied.chance == tied.best == 4 / 24, "ties are ordered in any way"
    assert statistics.order_of("a", [1.0], [1.0]) is None
    assert statistics.order_of("ab", [1.0, 1.0], [1.0, 2.0]) is None, "what is all equal has no order"


@given(st.integers(2, 6).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 5), min_size=n, max_size=n)] * 2)))
def test_correlations_are_scipys_and_shares_are_shares(both: tuple[list[int], list[int]]) -> None:
    ours, paper = ([float(value) for value in each] for each in both)
    found = statistics.order_of([str(index) for index in range(len(ours))], ours, paper)
    if len({*ours}) == 1 or len({*paper}) == 1:
        assert found is None
        return
    assert found is not None and found.spearman == pytest.approx(stats.spearmanr(ours, paper).statistic)
    assert found.kendall == pytest.approx(stats.kendalltau(ours, paper).statistic)
    assert 0 < found.best <= found.chance <= 1 and found.chance + found.reverse > 1
    assert -1 - 1e-9 <= found.low <= found.high <= 1 + 1e-9
    mirrored = statistics.order_of(found.rows, ours, [-value for value in paper])
    assert mirrored is not None and mirrored.chance == found.reverse


def test_many_rows_are_compared_with_orders_that_are_drawn() -> None:
    rng = np.random.default_rng(3)
    ours, paper = rng.normal(size=12), np.arange(12.0)
    found = statistics.order_of([str(index) for index in range(12)], [*ours], [*paper])
    again = statistics.order_of([str(index) for index in range(12)], [*ours], [*paper])
    assert found == again and found is not None
    exact = stats.spearmanr(ours, paper, alternative="greater").pvalue
    assert found.chance == pytest.approx(exact, abs=0.02)
    perfect = statistics.order_of([str(index) for index in range(12)], [*paper], [*paper])
    assert perfect is not None and perfect.chance == 1 / 100_001, "what was found is one of the orders"


def test_both_go_the_same_way() -> None:
    paper, ours = [1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 4.0, 3.0, 2.0, 1.0]
    against, along = (statistics.order(ranked(ours, other, "min"), "own") for other in (paper, ours))
    assert against is not None and against.spearman == pytest.approx(-1) and against.contradicts
    assert along is not None and along.spearman == pytest.approx(1) and along.agrees
    assert {sign.same for sign in statistics.signs(ranked(ours, paper, "min"))} == {False}
    assert {sign.same for sign in statistics.signs(ranked(ours, ours, "min"))} == {True}
    assert statistics.better(ranked(ours, paper, "min"), "own") == -statistics.better(ranked(ours, paper), "own") == -1


def test_rows_are_ordered_by_the_seeds_that_all_have() -> None:
    result = ranked([1.0, 2.0], [1.0, 2.0])
    result["rows"]["row 0"]["values"]["own"], result["rows"]["row 1"]["values"]["own"] = [1.0, 9.0], [2.0, None]
    found = statistics.order(result, "own")
    assert found is not None and found.spearman == pytest.approx(1)


def test_papers_differences_are_those_that_it_printed() -> None:
    result = ranked([3.0, 1.0, 2.0], [0.0, -1.5, 0.4]) | {"differences": True}
    del result["rows"]["row 0"]["paper"]["paper's"]
    assert [statistics.paper_difference(result, "own", row) for row in result["rows"]] == [0.0, -1.5, 0.4]
    found = statistics.order(result, "own")
    assert found is not None and found.rows == ("row 0", "row 1", "row 2"), "the base is 0"
    assert [sign.same for sign in statistics.signs(result)] == [True, False]
    assert [row[2] for row in values_table(result)[1]] == ["–", "-1.5", "+0.4"]


def law(exponent: float, noise: float, sizes: tuple[float, ...] = (1e5, 1e6, 1e7, 1e8), **fields: Any) -> Result:
    rng = np.random.default_rng(1)
    rows = {
        f"{size:g}": made_row(
            {},
            {"loss": [10 * size**exponent * math.exp(noise * rng.normal()) for _ in range(3)]},
            size={"parameters": size, "tokens": 1.0, "flops": 6 * size},
        )
        for size in sizes
    }
    fit = {"x": "parameters", "column": "loss", "rows": list(rows), "paper": 0.076, "name": "L(N)"} | fields
    return made({"loss": LOSS}, rows, fits=[fit])


def test_a_power_law_is_found_again() -> None:
    (exact,) = statistics.fits(law(-0.07, 0.0))
    assert (exact.slope, exact.factor) == (pytest.approx(-0.07), pytest.approx(10))
    assert (exact.low, exact.high) == (pytest.approx(-0.07), pytest.approx(-0.07))
    assert exact.holds_paper is False and exact.slope_of(0.076) == -0.076
    (noisy,) = statistics.fits(law(-0.076, 0.05))
    ys = [statistics.mean(statistics.values_of(law(-0.076, 0.05), "loss", row)) for row in noisy.rows]
    assert noisy.slope == pytest.approx(stats.linregress(np.log(noisy.xs), np.log(ys)).slope)
    assert noisy.low is not None and noisy.high is not None and noisy.low < noisy.slope < noisy.high
    assert noisy.holds_paper is True and noisy.high - noisy.low < 0.05
    (two,) = statistics.fits(law(-0.07, 0.05, sizes=(1e5, 1e6)))
    assert (two.low, two.holds_paper) == (None, None)
    assert statistics.fits(law(-0.07, 0.0, sizes=(1e5,))) == []
    assert statistics.fits(law(-0.07, 0.0, x="tokens")) == [], "all rows have the same"


@pytest.mark.parametrize(("mode", "paper", "slope"), [("min", 0.05, -0.05), ("min", -0.05, -0.05), ("max", 0.7, 0.7)])
def test_papers_tell_the_exponent_of_a_loss_without_its_sign(mode: str, paper: float, slope: float) -> None:
    result = law(-0.05, 0.0, paper=paper)
    result["columns"]["loss"] = LOSS | {"mode": mode}
    assert statistics.fits(result)[0].slope_of(paper) == slope


# Words.


def test_three_rows_show_no_agreement_whatever_their_order() -> None:
    result = bert()
    result["rows"]["No NSP"]["values"]["SST-2"] = [79.5, 80.6, 81.4]  # as in the paper
    assert statistics.order(result, "SST-2").spearman == pytest.approx(1)  # type: ignore[union-attr]
    said = headline(result)
    assert "no agreement with the paper's order of rows is shown in the column SST-2" in said
    assert "chance alone orders 3 rows at least as well in 17 % of cases; so few rows cannot show one" in said
    assert orders_table(result)[1] == [
        ["SST-2", "3", "1.00", "1.00", "-1.00 to 1.00", "17 %", "too few rows to show one"]
    ]


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (
            [1, 2, 3, 4, 5],
            "our order of the 5 rows agrees with the paper's in the column own (a rank correlation of 1.00",
        ),
        ([5, 4, 3, 2, 1], "our order of the 5 rows contradicts the paper's in the column own"),
        (
            [2, 5, 1, 4, 3],
            "no agreement with the paper's order of rows is shown in the column own (chance alone orders 5",
        ),
    ],
)
def test_a_headline_says_what_the_order_shows(ours: list[float], said: str) -> None:
    assert said in headline(ranked([float(each) for each in ours], [1.0, 2.0, 3.0, 4.0, 5.0]))


def test_a_headline_of_several_columns_counts_what_chance_would_give() -> None:
    result = ranked([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
    result["columns"]["other"] = result["columns"]["own"]
    for row, value in zip(result["rows"].values(), (4.0, 1.0, 3.0, 2.0), strict=True):
        row["values"]["other"] = [value, None, None]
    assert "agrees with the paper's in 1 of 2 columns (own); chance alone brings about 0.1" in headline(result)
    result["columns"]["both"] = {"mean_of": ["own", "other"], "mode": "max", "paper": "paper's"}
    for row in result["rows"].values():
        row["values"]["both"] = [row["values"]["own"][0], None, None]
    assert "agrees with the paper's in the column both" in headline(result), "a mean stands for all"


def test_words_do_not_claim_what_was_not_measured() -> None:
    result = bert()
    assert "nothing about the question" in headline(result | {"scale": "smoke"})
    single = bert()
    for row in single["rows"].values():
        row["values"]["SST-2"] = [row["values"]["SST-2"][0], None, None]
    assert "With a single seed no difference can be told from noise" in headline(single)
    assert any("With a single seed none can be told from noise" in text for text in sentences(single))
    for row in result["rows"].values():
        row["paper"] = {}
    result["rows"]["No NSP"]["values"]["SST-2"] = [79.0, 80.1, 80.9]
    assert headline(result).startswith("2 of 2 differences to base stand out from the noise between seeds; no two rows")
    for row in result["rows"].values():
        row["values"]["SST-2"] = [None] * 3
    assert headline(result) == "Nothing has been measured yet." and sentences(result) == []


def test_what_may_still_change_is_said() -> None:
    result = bert()
    assert not headline(result).endswith("yet.")
    result["rows"]["No NSP"]["state"], result["rows"]["base"]["state"] = "running", "waiting"
    assert headline(result).endswith(". 2 of 3 rows are not done yet.")


def test_signs_and_seeds_are_told() -> None:
    result = bert()
    assert headline(result).startswith("The only difference to base that stands out from the noise between seeds, LTR")
    signs, noise = sentences(result)
    assert signs.startswith("Of 2 differences to base that the paper has, too, 1 has the paper's direction; tossing a")
    assert "1 of them stands out from the noise between seeds" in signs
    needed = statistics.difference(result, "SST-2", "No NSP").needed  # type: ignore[union-attr]
    assert (
        f"One difference, that of No NSP in SST-2, does not show. If it is as large as it seems, about {needed}"
        in noise
    )


def test_power_laws_are_told_beside_the_papers() -> None:
    beside = "L(N): loss falls as the number of parameters to the power -0.0700 (95 % band -0.0700 to -0.0700"
    assert headline(law(-0.07, 0.0)) == f"{beside}; the paper's -0.076 lies outside)."
    assert headline(law(-0.076, 0.05)).endswith("; the paper's -0.076 lies inside).")
    assert headline(law(-0.07, 0.0, paper=None)) == f"{beside})."
    assert "(2 rows do not tell how far off that may be; the paper's -0.076" in headline(law(-0.07, 0.0, (1e5, 1e6)))


def test_the_command_names_no_place_of_ours() -> None:
    assert command(bert()) == "jaxformer reproduce table5 --scale=small --data=corpora --seeds=3 '--rows=A,B C'"


# Tables, pages and files.


def test_every_row_of_the_paper_stands_in_the_table() -> None:
    headings, rows = values_table(bert())
    assert headings == ["Row", "SST-2", "paper", "State"]
    assert rows == [
        ["base (base)", "81.0 ± 1.0", "92.7", ""],
        ["No NSP", "81.3 ± 1.0", "92.6", ""],
        ["LTR | $x$ <b>", "78.0 ± 0.9", "92.1", ""],
        ["+ BiLSTM", "–", "91.6", "not provided: the house has no LSTM"],
        ["large", "–", "94.9", "not at this scale"],
    ]
    headings, rows = differences_table(bert())
    assert headings == ["Row", "SST-2", "shows?", "paper"]
    assert rows[1] == ["LTR | $x$ <b>", "-3.0 (-4.2 to -1.8)", "yes", "-0.6"]
    assert rows[0][0] == "No NSP" and rows[0][2].startswith("no; ") and len(rows) == 2
    sized = bert()
    sized["rows"]["base"]["size"] = {"parameters": 11.2e6, "tokens": 3e5, "flops": 2e13}
    headings, rows = costs_table(sized)
    assert headings == ["Row", "Parameters", "Tokens", "FLOPs", "Hours", "Energy (Wh)"]
    assert rows[:2] == [["base", "11.2 M", "300 k", "20.0 T", "1", "20.0"], ["No NSP", "–", "–", "–", "1", "20.0"]]
    assert departures(bert())[1].startswith("The paper's column MNLI has no counterpart at this scale: its files")


@pytest.mark.parametrize("width", [60, 200])
def test_the_terminal_shows_rows_reasons_and_cost(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    print_reproduction(bert(), console)
    shown = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    for words in ("81.0 ± 1.0", "not provided: the house has no LSTM", "large: not at this scale", "60.0 Wh", "50 %"):
        assert words in shown


def test_a_page_stands_by_itself_and_its_files_beside_it(tmp_path: Path) -> None:
    result = bert()
    page = write_reproduction_report(result, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "table5.json", "table5.md", "table5.png"]
    text = visible_text(page)
    for words in ("What is it worth?", headline(result), "LTR | $x$ <b>", "the house has no LSTM", "60.0 Wh"):
        assert words in text
    html = page.read_text(encoding="utf-8")
    assert "<svg" in html and not re.search(r'(src|href)="(?!#)', html), "nothing is fetched from elsewhere"
    # The command is told without the paths of the machine on which it was given.
    told = "jaxformer reproduce table5 --scale=small --data=corpora --seeds=3 '--rows=A,B C'"
    assert read_result(tmp_path / "table5.json") == result | {"command": told}
    assert "Runs" not in re.findall(r"<h2>(.*?)</h2>", html)


def test_what_a_person_wrote_is_kept(tmp_path: Path) -> None:
    write_reproduction_report(bert(), tmp_path)
    written = json.loads((tmp_path / "table5.json").read_text()) | {"meaning": ["It means a lot."]}
    (tmp_path / "table5.json").write_text(json.dumps(written))
    page = write_reproduction_report(bert(), tmp_path)
    assert read_result(tmp_path / "table5.json")["meaning"] == ["It means a lot."]
    assert "It means a lot." in (tmp_path / "table5.md").read_text() and "It means a lot." in visible_text(page)
    write_reproduction_report(bert() | {"meaning": ["Less."]}, tmp_path)
    assert read_result(tmp_path / "table5.json")["meaning"] == ["Less."]


def test_markdown_is_made_of_the_file_alone(tmp_path: Path) -> None:
    write_reproduction_report(bert(), tmp_path)
    text = (tmp_path / "table5.md").read_text()
    assert text == result_markdown(read_result(tmp_path / "table5.json"), "table5.png")
    assert "![BERT (Devlin et al. 2018), Table 5, page 8: ours beside the paper](table5.png)" in text
    assert "jaxformer reproduce check docs/results/table5.json --data=corpora" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(cells) == 1, "a bar in a row's name is none of the table's"
    assert "/some/where" not in text and "![" not in result_markdown(bert())


def test_the_list_of_results_has_a_finding_and_a_picture_of_each() -> None:
    results = [bert(), law(-0.07, 0.0) | {"name": "laws"}]
    text = results_index(results, {"table5.png"}, {"bert-small": "A sweep: bert-small"})
    assert "[BERT (Devlin et al. 2018), Table 5, page 8](table5.md)" in text and headline(bert()) in text
    assert text.count("<img") == 1 and "(laws.md)" in text
    assert "* [A sweep: bert-small](bert-small.md)" in text


def test_pages_and_the_list_are_written_of_the_files_in_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(bert(), tmp_path)
    for made in (tmp_path / "table5.md", tmp_path / "table5.png"):
        made.unlink()
    (tmp_path / "bert-small.json").write_text('{"date": "2026-11-30"}')
    (tmp_path / "bert-small.md").write_text("# A sweep: bert-small\n\nMore.\n")
    for _ in range(2):
        assert main(["reproduce", "pages", str(tmp_path)]) == 0
        assert capsys.readouterr().out.split() == [str(tmp_path / "table5.md"), str(tmp_path / "README.md")]
        expected = results_index([bert()], {"table5.png"}, {"bert-small": "A sweep: bert-small"})
        assert (tmp_path / "README.md").read_text() == expected and (tmp_path / "table5.png").exists()
    (tmp_path / "table5.json").rename(tmp_path / "other.json")
    assert main(["reproduce", "pages", str(tmp_path)]) == 2
    assert "call the file table5.json" in capsys.readouterr().err
    (tmp_path / "other.json").unlink()
    assert main(["reproduce", "pages", str(tmp_path)]) == 2
    assert "holds no result of a reproduction" in capsys.readouterr().err


def test_pictures_follow_what_is_there(tmp_path: Path) -> None:
    write_reproduction_report(law(-0.07, 0.02), tmp_path / "laws")
    assert [path.name for path in (tmp_path / "laws").glob("*.png")] == ["table5.png"]
    assert "Power laws" in visible_text(tmp_path / "laws" / "report.html")
    student = bert()
    student["columns"] |= {
        "parameters": {"measure": "parameters", "stage": "SST-2", "mode": "min"},
        "seconds": {"measure": "seconds", "stage": "SST-2", "mode": "min"},
    }
    for row in student["rows"].values():
        row["values"] |= {"parameters": [None] * 3, "seconds": [None] * 3}
    for name, size in (("base", 110.0), ("No NSP", 66.0)):
        student["rows"][name]["paper"]["parameters"] = size
        student["rows"][name]["values"] |= {"parameters": [2e6 * size, None, None], "seconds": [size / 1e4, None, None]}
    assert list(corners(student)) == ["parameters", "time", "quality"] and reference(student) == "base"
    assert shares(student, "No NSP") == {
        "parameters": (pytest.approx(60), pytest.approx(60)), "time": (pytest.approx(60), None),
        "quality": (pytest.approx(100 * 81.3 / 81), pytest.approx(100 * 92.6 / 92.7)),
    }  # fmt: skip
    taught = student | {"base": "No NSP", "differences": True}
    assert reference(taught) == "base" and shares(taught, "No NSP")["quality"][1] is None
    taught["rows"]["base"]["paper"]["quality"], taught["rows"]["No NSP"]["paper"]["quality"] = 80.0, 60.0
    assert shares(taught, "No NSP")["quality"][1] == pytest.approx(75)
    write_reproduction_report(student, tmp_path / "student")
    names = sorted(path.name for path in (tmp_path / "student").glob("*.png"))
    assert names == ["table5-triangle.png", "table5.png"]
    assert "table5-triangle.png" in (tmp_path / "student" / "table5.md").read_text()
    empty = bert()
    for row in empty["rows"].values():
        row["values"]["SST-2"] = [None] * 3
    write_reproduction_report(empty, tmp_path / "empty")
    assert not list((tmp_path / "empty").glob("*.png"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is damaged"),
        ("[]", "holds no reproduction"),
        ('{"kind": "sweep"}', "holds no reproduction"),
        ('{"kind": "reproduction"}', "has no 'name'"),
        (None, "there is no file"),
    ],
)
def test_what_is_no_result_is_said_in_one_line(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=said) as error:
        read_result(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


# The folder.


COLUMNS = "run_id,duration,emissions,cpu_energy,gpu_energy,ram_energy,energy_consumed,country_name"


def make_study(
    folder: Path, stage: str, seed: int, points: dict[str, dict[str, Any]], shared: bool = False, **metrics: Any
) -> None:
    """A stage's study: a run for each row that is done; `points` say what it changes, `metrics` about what it gave."""
    place = folder / "stages" / stage / ("shared" if shared else str(seed))
    place.mkdir(parents=True)
    space = {"points": list(points.values()), "seed": [seed]}
    record = {"kind": "sweep", "name": stage, "space": space, "seeds": [seed], "settings": {}}
    (place / "study.json").write_text(json.dumps(record))
    for index, (row, point) in enumerate(points.items()):
        make_trial(place / "trials" / f"{stage}-{row or 'all'}-{seed}", stage, point, seed, index, metrics)


def make_trial(
    path: Path, stage: str, point: dict[str, Any], seed: int, index: int, metrics: dict[str, float], **fields: Any
) -> None:
    (path / "emissions").mkdir(parents=True)
    found = {name: value + index + seed / 10 for name, value in metrics.items()}
    record = {"study": stage, "number": index, "values": point, "seed": seed, "state": "done", "metrics": found}
    (path / "trial.json").write_text(
        json.dumps(record | {"devices": 2, "error": "", "failures": 0, "starts": 1} | fields)
    )
    device = {"platform": "cpu", "kind": "cpu", "count": 2}
    (path / "config.json").write_text(json.dumps({"name": "x", "config": {}, "device": device}))
    (path / "emissions" / "1-0.csv").write_text(f"{COLUMNS}\n{stage}{index}{seed},360,0.001,0.002,0,0,0.002,\n")


ROWS: dict[str, dict[str, Any]] = {
    "base": {"paper": {"acc": 90.0}},
    "narrow": {"paper": {"acc": 80.0}, "set": {"training": {"model.d_ff": 8, "task.text_fields": ["a", "b"]}}},
    "untrained": {"paper": {"acc": 50.0}, "set": {"training": None, "task": {"init_from": ""}}},
    "wide": {"paper": {"acc": 95.0}},
    "+ BiLSTM": {"paper": {}, "not_provided": "no LSTM"},
}


def make_folder(folder: Path, **fields: Any) -> Path:
    """A reproduction of three rows that are trained after a teacher, the second stage of its second seed not yet."""
    columns = {
        "acc": {"stage": "task", "metric": "eval/accuracy", "mode": "max", "scale": 100},
        "loss": {"stage": "training", "metric": "eval/loss", "mode": "min"},
        "mean": {"mean_of": ["acc", "loss"], "mode": "max"},
        "size": {"measure": "parameters", "stage": "task", "mode": "min", "scale": 1e-6},
        "RACE": {"missing": "no data"},
    }
    table = {
        "question": "Why?", "paper": "P", "place": "Table 1", "base": "base", "seeds": 2, "columns": columns,
        "rows": ROWS,
        "stages": {"teacher": {"config": "a", "shared": True}, "training": {"config": "b"}, "task": {"config": "c"}},
        "runs": ["base", "narrow", "untrained"],
    }  # fmt: skip
    trained = {"base": {}, "narrow": ROWS["narrow"]["set"]["training"]}
    judged = {"base": {"init_from": "b"}, "narrow": {"init_from": "n"}, "untrained": {"init_from": ""}}
    make_study(folder, "teacher", 0, {"": {}}, shared=True)
    trials: dict[str, Any] = {"teacher": {"": {"0": "teacher-all-0"}}, "training": {}, "task": {}}
    for seed in (0, 1):
        make_study(folder, "training", seed, trained, **{"eval/loss": 3.0})
        if seed == 0:
            make_study(folder, "task", seed, judged, **{"eval/accuracy": 0.5})
            trials["task"] = {row: {"0": f"task-{row}-0"} for row in judged}
            trials["training"] = {row: {"0": f"training-{row}-0"} for row in trained}
    record = {
        "kind": "reproduction", "name": "t1", "spec": "t1", "scale": "small",
        "data": "/some/where/corpora", "table": table,
        "rows": ["base", "narrow", "untrained"], "seeds": [0, 1], "refused": [], "lost": [], "trials": trials,
        "sizes": {"base": {"parameters": 10, "tokens": 20.0, "flops": 1200.0}},
        "measured": {"size": {"base": 4e6, "narrow": 2e6}}, "command": "jaxformer reproduce t1", "version": "0.1.0",
        "created": "2026-11-30T08:00:00+00:00", "git_revision": "abc", "packages": {"jax": "0.12.0.1"},
    }  # fmt: skip
    (folder / "study.json").write_text(json.dumps(record | fields))
    return folder


def test_a_folder_is_read_while_it_is_made(tmp_path: Path) -> None:
    result = read_reproduction(make_folder(tmp_path))
    rows = result["rows"]
    assert list(rows) == list(ROWS) and (result["data"], result["seeds"], result["base"]) == ("corpora", [0, 1], "base")
    assert result["device"] == {"platform": "cpu", "kind": "cpu", "count": 2}
    assert rows["base"]["values"] == {
        "acc": [50.0, None], "loss": [3.0, 3.1], "mean": [26.5, None], "size": [4.0, None], "RACE": [None, None],
    }  # fmt: skip
    assert rows["narrow"]["values"]["acc"] == [150.0, None] and rows["narrow"]["values"]["loss"] == [4.0, 4.1]
    assert rows["untrained"]["values"]["loss"] == [None, None] and rows["untrained"]["values"]["acc"][0] == 250.0
    states = {name: (row["state"], row["reason"]) for name, row in rows.items()}
    assert states == {
        "base": ("running", ""), "narrow": ("running", ""), "untrained": ("running", ""),
        "wide": ("not at this scale", ""), "+ BiLSTM": ("not provided", "no LSTM"),
    }  # fmt: skip
    assert rows["base"]["size"] == {"parameters": 10, "tokens": 20.0, "flops": 1200.0} and rows["narrow"]["size"] == {}
    assert rows["base"]["costs"]["energy_kwh"] == pytest.approx(0.006), "its own runs, without the teacher's"
    assert result["costs"]["energy_kwh"] == pytest.approx(0.016) and result["costs"]["hours"] == pytest.approx(0.8)
    assert result["costs"]["device_hours"] == pytest.approx(1.6)
    assert result["trials"]["teacher"] == {"": ["teacher-all-0", None]}
    assert result["trials"]["training"]["narrow"] == ["training-narrow-0", "training-narrow-1"], "not yet in the record"
    assert json.loads(json.dumps(result)) == result


def test_rows_are_done_failed_or_cannot_run(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    for row, point in (("base", "b"), ("narrow", "n"), ("untrained", "")):
        place = folder / "stages" / "task" / "1"
        make_trial(place / "trials" / f"task-{row}-1", "task", {"init_from": point}, 1, 0, {"eval/accuracy": 0.25})
    record = json.loads((folder / "stages" / "task" / "0" / "study.json").read_text())
    (folder / "stages" / "task" / "1" / "study.json").write_text(json.dumps(record | {"seeds": [1]}))
    assert {read_reproduction(folder)["rows"][row]["state"] for row in ("base", "narrow", "untrained")} == {"done"}
    told = json.loads((folder / "study.json").read_text())
    lost = {"lost": [["training", "narrow", 0, "training: it burst"], ["task", "narrow", 0, "training: it burst"]]}
    refused = {"refused": [["untrained", "task", "task: no such file"]]}
    (folder / "study.json").write_text(json.dumps(told | lost | refused))
    rows = read_reproduction(folder)["rows"]
    assert (rows["narrow"]["state"], rows["narrow"]["reason"]) == ("failed", "training: it burst (seed 0)")
    assert (rows["untrained"]["state"], rows["untrained"]["reason"]) == ("cannot run", "task: no such file")
    told["table"]["columns"] = {"acc": told["table"]["columns"]["acc"]}
    refused = {"refused": [["base", "task", "task: no such file"]]}
    (folder / "study.json").write_text(json.dumps(told | refused))
    row = read_reproduction(folder)["rows"]["base"]
    assert row["state"] == "cannot run", "what it has trained is judged by nothing"
    told["table"]["columns"]["loss"] = {"stage": "training", "metric": "eval/loss", "mode": "min"}
    (folder / "study.json").write_text(json.dumps(told | refused))
    row = read_reproduction(folder)["rows"]["base"]
    assert (row["state"], row["reason"]) == ("done", "task: no such file"), "a part of it is there"
    (folder / "study.json").write_text(json.dumps(told | {"rows": ["base"]}))
    assert read_reproduction(folder)["rows"]["narrow"]["reason"] == "left out by --rows"


def test_runs_of_a_stage_that_is_being_trained_are_known_by_their_values(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    path = folder / "stages" / "training" / "1" / "trials" / "training-narrow-1" / "trial.json"
    trial = json.loads(path.read_text())
    for values, known in (
        ({"model.d_ff": 8.0, "task.text_fields": ["a", "b"]}, True),
        ({"model.d_ff": "8", "task.text_fields": ["a", "b"]}, True),
        ({"model.d_ff": 16, "task.text_fields": ["a", "b"]}, False),
        ({"model.d_ff": 8}, False),
    ):
        path.write_text(json.dumps(trial | {"values": values}))
        found = read_reproduction(folder)["rows"]["narrow"]["values"]["loss"]
        assert found == [4.0, 4.1 if known else None], values


def test_a_run_that_failed_is_told_before_its_stage_is_over(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    path = folder / "stages" / "training" / "1" / "trials" / "training-narrow-1" / "trial.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "failed", "error": "out of memory"}))
    row = read_reproduction(folder)["rows"]["narrow"]
    assert (row["state"], row["reason"]) == ("failed", "training: out of memory (seed 1)")
    assert row["values"]["loss"] == [4.0, None]


def test_a_number_that_is_none_is_missing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    path = folder / "stages" / "training" / "0" / "trials" / "training-base-0" / "trial.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": {"eval/loss": math.nan}}))
    assert read_reproduction(folder)["rows"]["base"]["values"]["loss"] == [None, 3.1]


def test_rows_that_are_trained_alike_share_a_run_that_counts_once(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    told = json.loads((folder / "study.json").read_text())
    told["trials"]["task"]["untrained"] = {"0": "task-base-0"}
    (folder / "study.json").write_text(json.dumps(told))
    result = read_reproduction(folder)
    assert result["rows"]["untrained"]["values"]["acc"] == [50.0, None]
    assert result["costs"]["energy_kwh"] == pytest.approx(0.014)


def test_only_a_reproduction_is_read_as_one(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "it")
    assert is_reproduction(folder) and not is_sweep(folder) and not is_transfer(folder)
    for content, said in (
        (None, "no study.json; give a folder that `jaxformer reproduce` wrote"),
        ("{", "is damaged"),
        ('{"kind": "transfer"}', "holds another kind of study"),
        ('{"kind": "reproduction", "name": "x"}', "is damaged"),
    ):
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        if content is not None:
            (other / "study.json").write_text(content)
        assert is_reproduction(other) is (content is not None and "reproduction" in content)
        with pytest.raises(UserError, match=re.escape(said)) as error:
            read_reproduction(other)
        assert "\n" not in str(error.value)


def test_the_report_verb_knows_a_reproduction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path)
    assert main(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "P, Table 1: Why?" in shown and f"report: {folder / 'report' / 'report.html'}" in shown
    assert sorted(path.name for path in (folder / "report").glob("t1.*")) == ["t1.json", "t1.md", "t1.png"]
    assert main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_reproduction(folder)
    assert main(["report", str(folder), f"--output={tmp_path / 'elsewhere'}"]) == 0
    assert (tmp_path / "elsewhere" / "report.html").exists()
