"""What the README shows as code is run."""

import dataclasses
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxformer import config as configs
from jaxformer.objectives import OBJECTIVES
from jaxformer.objectives.objective import insert
from jaxformer.objectives.text_to_text import TextToText
from jaxformer.tokenizers import Vocabulary

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_objective_of_the_readme_is_all_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"\n(    @dataclasses\.dataclass.*?)\n\n(?=\S)", README, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {"dataclasses": dataclasses, "np": np, "insert": insert, "TextToText": TextToText}
    exec(textwrap.dedent(code[1]), names)
    monkeypatch.setitem(OBJECTIVES, "second_half", names["SecondHalf"])

    keys = ["objective.name=second_half", "objective.sequence_length=4"]
    objective = configs.load("t5:smoke", keys).objective
    is_special = np.arange(20) < 2
    bound = objective.bind(Vocabulary(20, {"pad": 0, "end": 1}, np.array([], np.int32), is_special, ~is_special))
    row = {"tokens": np.array([10, 11, 12, 13, 14])}
    arrays = bound(row, np.random.default_rng(0))
    assert arrays["encoder_inputs"].tolist() == [10, 11, 1, 0]
    assert arrays["targets"].tolist() == [12, 13, 14, 1] and arrays["inputs"].tolist() == [0, 12, 13, 14]
    seen = bound.visible(row, np.random.default_rng(0), "causal")
    assert seen.tolist() == [[True, True, *(place < number for place in range(3))] for number in range(4)]

    decoder = configs.load("gpt:smoke", [*keys, "model.visibility=prefix"]).objective
    both = decoder.bind(bound.vocabulary)(row, np.random.default_rng(0))
    assert both["inputs"].tolist() == [10, 11, 1, 12, 13, 14, 0] and both["prefix_length"] == 3
    assert both["weights"].tolist() == [0, 0, 1, 1, 1, 1, 0]
