"""Who sees whom in an attention: `Sight` for implementations that know segments, else a mask.

Shape suffixes: B batch, T queries, S keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.models.blockwise import Reach


class Sight(NamedTuple):
    """Who sees whom in one attention, and which implementation reads that. Arrays may be traced; all else is static."""

    implementation: str  # of models/implementations.py, not auto
    query_segments_BT: jax.Array
    key_segments_BS: jax.Array
    visibility: str = "full"
    window: int | None = None
    mask_B1TS: jax.Array | None = None  # for implementations that read one

    @property
    def reach(self) -> Reach:
        """How far before and behind its own place a query may see at most, whatever the segments."""
        return reach_of(self.visibility, self.window)


class Turns(NamedTuple):
    """The sights of banded and of dense layers that take turns in one loop."""

    is_banded: jax.Array
    banded: Sight
    dense: Sight


def taking_turns(is_banded: jax.Array, banded: Sight, dense: Sight) -> Sight | Turns:
    """Return what a layer reads that may be either: one mask, or both sights for kernels, of which one runs."""
    if banded.mask_B1TS is None or dense.mask_B1TS is None or banded.implementation != dense.implementation:
        return Turns(is_banded, banded, dense)
    # Dense layers reach further. Of the other one nothing is left but its mask: the kernel must not add a window.
    return dense._replace(mask_B1TS=jnp.where(is_banded, banded.mask_B1TS, dense.mask_B1TS))


def visibility_mask(
    query_segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    *,
    visibility: str,
    query_places_T: jax.Array | None = None,
    key_places_S: jax.Array | None = None,
    window: int | None = None,
    prefix_length_B: jax.Array | None = None,
) -> jax.Array:
    """Return bool [B, 1, T, S]: True where query t may see key s.

    Attention stays inside a segment. `causal` sees keys at or before the query's own place in the row, `prefix` also
    every key before `prefix_length`, `full` everything. `window` keeps the nearest `window` keys on each visible side.
    Padding (segment 0) sees padding, so that no softmax is empty; the loss gives it no weight. Queries and keys stand
    at the places 0, 1, … of one row unless their places are given (generation over a cache).
    """
    mask_BTS = query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
    query_T1 = _places(query_places_T, query_segments_BT)[:, None]
    key_1S = _places(key_places_S, key_segments_BS)[None, :]
    if visibility != "full":
        past_BTS = (key_1S <= query_T1)[None]
        if visibility == "prefix" and prefix_length_B is not None:
            past_BTS = past_BTS | (key_1S[None] < prefix_length_B[:, None, None])
        mask_BTS = mask_BTS & past_BTS
    if window is not None:
        mask_BTS = mask_BTS & (jnp.abs(query_T1 - key_1S) < window)[None]
    return mask_BTS[:, None]


def _places(places_N: jax.Array | None, segments_BN: jax.Array) -> jax.Array:
    return jnp.arange(segments_BN.shape[1]) if places_N is None else places_N


def reach_of(visibility: str, window: int | None = None) -> Reach:
    """Return how far before and behind its own place a query may see at most, whatever the segments."""
    side = None if window is None else window - 1
    return side, 0 if visibility == "causal" else side
