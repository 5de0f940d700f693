"""Fixed shapes: what an objective emits is padded with zeros, or cut, to the shapes that it declares."""

import numpy as np

Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]


def filled(shapes: Shapes, **values: np.ndarray | int | float) -> dict[str, np.ndarray]:
    """Return every array of `shapes`, the given values at its beginning and zeros (padding) after them."""
    arrays = {}
    for name, (shape, dtype) in shapes.items():
        arrays[name] = array = np.zeros(shape, dtype)
        value = np.asarray(values[name])
        if shape:
            array[: len(value)] = value[: shape[0]]
        else:
            array[...] = value
    return arrays
