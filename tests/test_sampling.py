"""Which tests run when: the sample of cases, and the lists of files in conftest.py."""

from pathlib import Path

import pytest
from sampling import sampled

CASES = [("gpt", "a"), ("gpt", "b"), ("t5", "a"), ("t5", "b"), ("t5", "c")]


def marks(cases: list) -> dict[tuple, set[str]]:
    return {case.values: {mark.name for mark in case.marks} for case in cases}


def test_one_case_of_each_path_runs_in_ci_and_those_named_every_day() -> None:
    found = marks(sampled(CASES, path=lambda family, name: family, daily=[("gpt", "b")]))
    assert found[("gpt", "b")] == set() and found[("gpt", "a")] == {"slow", "full"}
    assert sorted(map(len, (found[case] for case in CASES if case[0] == "t5"))) == [1, 2, 2]
    for case in CASES[2:]:
        found = marks(sampled(CASES, path=lambda family, name: family, daily=[("gpt", "b")], ci=[case, ("gpt", "a")]))
        assert found[case] == {"slow"} and [len(found[other]) for other in CASES].count(2) == 3


def test_the_draw_of_a_path_stays_when_another_gets_cases() -> None:
    def path(family: str, name: str) -> str:
        return family

    found = marks(sampled(CASES, path))
    assert {case: found[case] for case in CASES[2:]} == marks(sampled(CASES[2:], path))
    assert marks(sampled(["a", "b"], path=str)) == {("a",): {"slow"}, ("b",): {"slow"}}


@pytest.mark.parametrize("which", ["VERSIONS", "LONG"])
def test_the_lists_name_files_that_there_are(which: str, request: pytest.FixtureRequest) -> None:
    # Imported anew, conftest.py would find JAX there already.
    (names,) = [getattr(one, which) for one in request.config.pluginmanager.get_plugins() if hasattr(one, which)]
    assert [name for name in names if not Path(__file__).with_name(f"test_{name}.py").exists()] == []
    assert len(set(names)) == len(names)
