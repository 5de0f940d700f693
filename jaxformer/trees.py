"""Parameter trees by path: flatten, count, and select by pattern.

Params are a plain nested dict. A path joins its keys with "/": `decoder/layers/attention/query/kernel`. Every array
below a key named `layers` is stacked: its first axis counts the layers of that stack.

A pattern is a regular expression over the whole path. After the name `layers` it may select layers with an index or a
slice, read as Python reads them: `decoder/layers[0:3]/.*`, `encoder/layers[-1]/feed_forward/.*`, `.*/layers[::2]/.*`.
"""

import difflib
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxformer.checks import several
from jaxformer.errors import UserError

LAYERS = "layers"
_SELECTION = re.compile(r"\blayers\[(-?\d+|-?\d*:-?\d*(?::-?\d*)?)\]")


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return {path: leaf} of a nested dict, in its order. Whatever is not a mapping is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{path}": leaf for path, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dict of {path: leaf}; the inverse of `flatten`."""
    params: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return params


def count(params: Mapping[str, Any]) -> int:
    """Return the number of scalars in all arrays of `params` (arrays or anything with a `shape`)."""
    return sum(math.prod(leaf.shape) for leaf in flatten(params).values())


def num_layers(path: str, shape: tuple[int, ...]) -> int:
    """Return the length of the layer axis of the array at `path`, or 0 if it lies in no stack of layers."""
    return shape[0] if LAYERS in path.split("/")[:-1] else 0


def match(path: str, shape: tuple[int, ...], patterns: str | Iterable[str]) -> bool | np.ndarray:
    """Say whether any pattern selects the array of this path and shape.

    Returns True or False, or a bool vector [layers] when only some of its layers are selected.

    Raises:
      UserError: a pattern is not a regular expression.
    """
    layers = num_layers(path, shape)
    selected = np.zeros(layers, bool)
    for pattern in several(patterns):
        expression, layer = _parse(pattern)
        if not expression.fullmatch(path):
            continue
        if layer is None:
            return True
        if isinstance(layer, slice) or -layers <= layer < layers:
            selected[layer] = True
    if layers and selected.all():
        return True
    return selected if selected.any() else False


def mask(
    params: Mapping[str, Any], patterns: str | Iterable[str], where: str = "pattern", strict: bool = True
) -> dict[str, Any]:
    """Return the tree of what `patterns` select: at each leaf a bool, or a bool array [layers, 1, …] of its rank.

    `where` names the config key (or argument) that holds the patterns, for messages; without `strict` a pattern may
    select nothing.

    Raises:
      UserError: a pattern selects nothing (the message shows the nearest paths) or is not a regular expression.
    """
    patterns = several(patterns)
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
    for pattern in patterns if strict else ():
        if not any(np.any(match(path, shape, (pattern,))) for path, shape in shapes.items()):
            raise UserError(f"{where}: pattern '{pattern}' selects no parameter{_nearest(pattern, list(shapes))}")
    selected = {}
    for path, shape in shapes.items():
        chosen = match(path, shape, patterns)
        selected[path] = chosen if isinstance(chosen, bool) else chosen.reshape((-1,) + (1,) * (len(shape) - 1))
    return unflatten(selected)


@functools.lru_cache(maxsize=1024)
def _parse(pattern: str) -> tuple[re.Pattern[str], int | slice | None]:
    """Split a pattern into the expression over the path and the layers that it selects (None: all)."""
    found = _SELECTION.findall(pattern)
    if len(found) > 1:
        raise UserError(f"pattern '{pattern}' selects layers twice; write one pattern for each selection")
    try:
        expression = re.compile(_SELECTION.sub(LAYERS, pattern))
    except re.error as error:
        raise UserError(f"pattern '{pattern}' is not a regular expression: {error}") from error
    if not found:
        return expression, None
    if ":" not in found[0]:
        return expression, int(found[0])
    return expression, slice(*(int(bound) if bound else None for bound in found[0].split(":")))


def _nearest(pattern: str, paths: list[str]) -> str:
    """Return "; nearest: a, b, c" for the paths whose spelling is closest to the pattern without its regex signs."""
    plain = re.sub(r"[\\.*+?()|^$\[\]]+", "", _SELECTION.sub(LAYERS, pattern)).strip("/")
    near = difflib.get_close_matches(plain, paths, n=3, cutoff=0.3) or paths[:3]
    return f"; nearest: {', '.join(near)}" if near else "; there are no parameters"
