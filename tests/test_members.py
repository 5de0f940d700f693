"""Members of a mixture of corpora: at which rates they are drawn (GPT-3, table 2.2; T5, section 3.5.2)."""

import math
from typing import Any

import numpy as np
import pytest

from jaxformer.data.sources import SourceMixture
from jaxformer.errors import UserError


def mixture(*weights: float, caps: dict[int, int] | None = None, **keys: Any) -> SourceMixture:
    members: list[dict[str, Any]] = [{"name": "text", "path": "a", "weight": weight} for weight in weights]
    for number, cap in (caps or {}).items():
        members[number]["cap"] = cap
    return SourceMixture(members=tuple(members), **keys)


def test_weights_are_fixed_whatever_the_sizes() -> None:
    # Common Crawl, WebText2, Books1, Books2, Wikipedia of GPT-3; in print they sum to 101 %.
    gpt3 = mixture(60, 22, 8, 8, 3)
    for sizes in ([410, 19, 12, 55, 3], [1, 1, 1, 1, 10**9]):
        np.testing.assert_allclose(gpt3.rates(sizes), np.array([60, 22, 8, 8, 3]) / 101)


def test_proportional_rates_by_hand() -> None:
    """r_m = min(e_m, K) / sum of min(e_n, K)."""
    sizes = [100, 1_000, 10_000]
    np.testing.assert_allclose(mixture(1, 1, 1, mixing="proportional").rates(sizes), np.array(sizes) / 11_100)
    capped = mixture(1, 1, 1, mixing="proportional", cap=2_000)
    np.testing.assert_allclose(capped.rates(sizes), [100 / 3_100, 1_000 / 3_100, 2_000 / 3_100])
    np.testing.assert_allclose(mixture(1, 1, 1, mixing="proportional", cap=1).rates(sizes), [1 / 3] * 3)


def test_the_cap_of_a_member_stands_before_that_of_all() -> None:
    sizes = [100, 1_000, 10_000]
    both = mixture(1, 1, 1, mixing="proportional", cap=500, caps={2: 3_000})
    np.testing.assert_allclose(both.rates(sizes), np.array([100, 500, 3_000]) / 3_600)
    own = mixture(1, 1, 1, mixing="proportional", caps={1: 400})
    np.testing.assert_allclose(own.rates(sizes), np.array([100, 400, 10_000]) / 10_500)


def test_temperature_by_hand() -> None:
    """Rates are raised to 1 / T before they are made to sum to one."""
    warm = mixture(1, 1, mixing="proportional", temperature=2.0)
    np.testing.assert_allclose(warm.rates([100, 900]), [10 / 40, 30 / 40])
    capped = mixture(1, 1, mixing="proportional", temperature=2.0, cap=400)
    np.testing.assert_allclose(capped.rates([100, 900]), [10 / 30, 20 / 30])
    cold = mixture(1, 1, mixing="proportional", temperature=0.5)
    np.testing.assert_allclose(cold.rates([1, 3]), [0.1, 0.9])
    equal = mixture(1, 1, 1, mixing="proportional", temperature=1e9)
    np.testing.assert_allclose(equal.rates([1, 10, 10**6]), [1 / 3] * 3, rtol=1e-6)
    np.testing.assert_allclose(mixture(4, 1, temperature=2.0).rates([7, 7]), [2 / 3, 1 / 3])
    frozen = mixture(1, 1, mixing="proportional", temperature=0.01)  # the larger one to the power 100
    np.testing.assert_allclose(frozen.rates([10**6, 10**5]), [1, 1e-100])


def test_weights_multiply_sizes_after_the_cap() -> None:
    weighted = mixture(2, 1, mixing="proportional", cap=300)
    np.testing.assert_allclose(weighted.rates([100, 900]), [200 / 500, 300 / 500])


def test_what_has_no_rows_is_never_drawn_by_size() -> None:
    """A corpus that an objective does not read has the size 0."""
    for keys in ({}, {"cap": 10}, {"temperature": 3.0}):
        assert mixture(1, 1, mixing="proportional", **keys).rates([0, 5]) == [0.0, 1.0]


def test_there_is_a_rate_for_each_size() -> None:
    with pytest.raises(ValueError):
        mixture(1, 1).rates([1, 2, 3])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"mixing": "proportionl"}, "data.mixing: 'proportionl' is not one of weights, proportional; did you mean"),
        ({"cap": -1}, "data.cap: -1 must be at least 0"),
        ({"temperature": 0.0}, "data.temperature: 0.0 must be above 0"),
        ({"temperature": math.nan}, "data.temperature: nan must be above 0"),
        ({"caps": {1: -5}}, r"data.members\[1\].cap: -5 must be at least 0"),
        ({"caps": {0: 1.5}}, r"data.members\[0\].cap: 1.5 is not a whole number"),
        ({"caps": {1: True}}, r"data.members\[1\].cap: True is not a whole number"),
        ({"caps": {1: "2"}}, r"data.members\[1\].cap: '2' is not a whole number"),
    ],
)
def test_impossible_mixing_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        mixture(1, 1, **keys)
    assert len(str(caught.value).splitlines()) == 1
