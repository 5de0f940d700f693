"""What a training step holds in memory beyond parameters, optimizer state and gradients, found without compiling it.

The step is traced with shapes alone, as one device sees it, and the list of its operations is walked in order, as a
compiler's buffer assignment does: a result is made, lives until its last reader, and gives its place up. What counts:

- A result is held when a matrix product, a loop, a barrier (every residual sum of a layer is one), a look-up or a
  reduction reads or makes it. Elementwise operations and changes of shape are fused into what reads them when one
  operation alone does, or when repeating them costs next to nothing: they cost no memory, and what they read lives on
  in their stead. Exponentials, error functions, divisions, roots and concatenations are never repeated: if several read
  them (forward and backward) they are held. So attention keeps float32 [B, H, T, S] after the exponential and the
  dropped weights in the compute dtype; an exact GELU keeps its input, erfc(x) in two parts and its output.
- A dropout mask is computed again where it is read (`models/dropout.py`).
- A loop (`scan` over layers, micro-batches or chunks of logits) holds what it stacks for all of its turns, and once
  what one turn needs. Rematerialised layers appear as what is computed again.
- A matrix product that sums over rows (every weight's gradient) reads one operand from a transposed copy.

So all of remat none, dots and full, scan and unrolled layers, logits_chunk, dropout, dtypes and lengths follow from the
step itself. Gradients count by themselves: with unrolled layers they take the place of activations layer by layer, so
the fullest moment is either before the first layer's gradient or when all gradients are there. It errs on the side of
XLA's CPU backend, on which it is checked; other backends fuse more.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

# Names of JAX's primitives. Calls are looked into; the others' results are held, or fused where nothing is said here.
_CALLS = ("pjit", "jit", "closed_call", "core_call", "remat2", "checkpoint", "remat", "custom_jvp_call",
          "custom_vjp_call", "custom_vjp_call_jaxpr")  # fmt: skip
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax", "argmin")
_LOOPS = ("scan", "while", "cond")
_HELD = (
    *_REDUCTIONS, *_LOOPS, "dot_general", "optimization_barrier", "sort", "gather", "scatter", "scatter-add", "cumsum",
    "dynamic_update_slice", "random_bits", "random_split", "random_fold_in", "random_wrap", "random_unwrap",
    "random_seed", "sharding_constraint",
)  # fmt: skip
_READS_FUSED = (*_REDUCTIONS, "dynamic_update_slice")  # of those, what computes its operands on the way
_IN_PLACE = ("optimization_barrier", "scatter-add", "scatter", "dynamic_update_slice", "while", "scan")
_DEAR = ("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc", "erf_inv", "rsqrt", "sqrt", "cbrt",
         "pow", "div", "sin", "cos", "concatenate")  # fmt: skip
_VIEWS = ("reshape", "squeeze", "expand_dims", "copy", "name")
_MOVES = (*_VIEWS, "slice", "dynamic_slice", "convert_element_type", "transpose", "broadcast_in_dim")
_SUMS = (
    *_MOVES,
    "pad",
    "add_any",
    "add",
    "concatenate",
    "name",
    "optimization_barrier",
)  # what turns a layer's gradients into the stack's
_MOST = 0.9  # of the gradients: the last layer's are being made, then they are applied
GRADIENT = "gradient"  # the name that the traced step gives to its gradients
_DOUBLE = ("random_bits", "erfc")  # computed by XLA in two arrays


class Held(NamedTuple):
    """Bytes that a step holds on one device, its arguments (parameters, optimizer state, batch) left out.

    `peak` is all that is held at the fullest moment but gradients, `gradients` those that are there by then, and `last`
    what is held beside all gradients from when the last of them are made until they are applied.
    """

    peak: float
    gradients: float
    last: float

    def beyond(self, gradients: float) -> float:
        """Return the bytes that the step needs beyond parameters, optimizer state and this many of gradients."""
        return max(self.peak + self.gradients - gradients, self.last, 0.0)

    def at(self, other: "Held", steps: float) -> "Held":
        """Return what a straight line through this (at 0) and `other` (at 1) gives at `steps`."""
        return Held(*(mine + steps * (its - mine) for mine, its in zip(self, other, strict=True)))


@dataclasses.dataclass(eq=False, slots=True)
class _Value:
    shape: tuple[int, ...]
    size: float  # bytes
    weight: bool = False  # a part of a parameter
    gradient: bool = False


@dataclasses.dataclass(eq=False, slots=True)
class _Step:
    name: str
    reads: list[_Value]
    writes: list[_Value]
    params: dict[str, Any]

    @property
    def fuses(self) -> bool:
        """Whether the result may be computed where it is read."""
        return self.name not in _HELD

    @property
    def reads_fused(self) -> bool:
        return self.fuses or self.name in _READS_FUSED


def held(
    jaxpr: Any, params: Collection[int] = (), donated: Collection[int] = (), shards: int = 1,
    fused: Collection[tuple[int, ...]] = (),
) -> Held:  # fmt: skip
    """Return what a traced function (a closed jaxpr) holds.

    `params` are the places of the parameters among its arguments, `donated` those of the results that take the place
    of arguments; gradients are what `checkpoint_name` calls GRADIENT. What is a piece of a parameter or a gradient is
    split over `shards` devices. Arrays of the shapes `fused` are never held (attention scores of a fused kernel).
    """
    steps: list[_Step] = []
    arguments = [_value(variable) for variable in jaxpr.jaxpr.invars]
    results = _inline(jaxpr, arguments, steps)
    steps = _needed(steps, results)
    for place in params:
        arguments[place].weight = True
    for step in steps:
        if step.name in _MOVES and step.reads and all(value.weight for value in step.reads):
            step.writes[0].weight = True
        if step.name == "name" and step.params["name"] == GRADIENT:
            step.writes[0].gradient = True
    _mark_gradients(steps)
    for step in steps:
        for value in step.writes:
            if value.shape[-4:] in fused:  # stacked by a scan, too
                value.size = 0.0
            elif value.weight or value.gradient:
                value.size /= shards
    for place in donated:
        if results[place] is not None:
            results[place].size = 0.0
    return _walk(steps, [value for value in results if value is not None])


def _value(variable: Any, name: str = "") -> _Value:
    aval = variable.aval
    size = math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 8)  # keys of random numbers are two words
    return _Value(tuple(aval.shape), float(size * (2 if name in _DOUBLE else 1)))


def _inline(jaxpr: Any, arguments: Sequence[_Value | None], steps: list[_Step]) -> list[Any]:
    """Append the operations of a jaxpr and of all that it calls; return its results (None: a constant number)."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    known: dict[Any, _Value | None] = dict(zip(inner.invars, arguments, strict=True))
    known |= {variable: _value(variable) for variable in inner.constvars}
    for equation in inner.eqns:
        name = equation.primitive.name
        reads = [None if hasattr(atom, "val") else known[atom] for atom in equation.invars]
        if name in _CALLS:
            params = equation.params
            called = next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params)
            writes = _inline(called, reads, steps)
        else:
            writes = [_value(variable, name) for variable in equation.outvars]
            values = [value for value in reads if value is not None]
            if name == "split":  # of a stack into its layers, each a slice of its own
                steps += [_Step("slice", values, [value], equation.params) for value in writes]
            else:
                steps.append(_Step(name, values, writes, equation.params))
        known |= zip(equation.outvars, writes, strict=True)
    return [None if hasattr(atom, "val") else known[atom] for atom in inner.outvars]


def _needed(steps: Sequence[_Step], results: Iterable[_Value | None]) -> list[_Step]:
    """Return the operations that the results depend on."""
    wanted, kept = set(map(id, results)), []
    for step in reversed(steps):
        if any(id(value) in wanted for value in step.writes):
            kept.append(step)
            wanted.update(map(id, step.reads))
    return kept[::-1]


def _readers(steps: Sequence[_Step]) -> dict[_Value, list[int]]:
    found: dict[_Value, list[int]] = collections.defaultdict(list)
    for number, step in enumerate(steps):
        for value in step.reads:
            found[value].append(number)
    return found


def _mark_gradients(steps: Sequence[_Step]) -> None:
    """Mark what becomes nothing but gradients: the pieces of each layer, before they are put together."""
    readers = _readers(steps)
    for step in reversed(steps):
        for value in step.writes:
            reads = [steps[number] for number in readers[value]]
            if reads and all(read.name in _SUMS and read.writes[0].gradient for read in reads):
                value.gradient = True


def _fused(steps: Sequence[_Step], results: set[_Value]) -> set[_Value]:
    """Return the values that are computed where they are read."""
    makers = {value: step for step in steps for value in step.writes}
    found: set[_Value] = set()
    # What reads a value, changes of shape alone looked through; None: it is a result.
    readers: dict[_Value, list[int | None]] = collections.defaultdict(list)
    for value in results:
        readers[value].append(None)
    for number, step in reversed(tuple(enumerate(steps))):
        value = step.writes[0]
        reading = readers[value]
        if step.name in _VIEWS:
            found.add(value)
        elif step.fuses and None not in reading and reading:
            kinds = [steps[other] for other in reading if other is not None]
            if all(kind.reads_fused for kind in kinds):
                # Repeated where it is cheap and what it reads takes no more room than it does itself.
                large = {
                    read
                    for read in step.reads
                    if 2 * read.size >= value.size
                    and not (read in makers and makers[read].name in ("broadcast_in_dim", "iota"))
                }
                if len(set(reading)) == 1 or (step.name not in _DEAR and len(large) <= 1):
                    found.add(value)
            elif step.name == "transpose" and all(kind.reads_fused or kind.name == "dot_general" for kind in kinds):
                found.add(value)
        for read in step.reads:
            readers[read] += reading if step.name in _VIEWS else [number]
    return found


def _walk(steps: Sequence[_Step], results: Sequence[_Value]) -> Held:
    """Return what is held when the operations run in this order."""
    fused = _fused(steps, set(results))
    makers = {value: step for step in steps for value in step.writes}
    known: dict[_Value, set[_Value]] = {}

    def sources(value: _Value) -> set[_Value]:
        """Return the held values that this one is computed from where it is read; itself, if it is held."""
        if value not in known:
            known[value] = set().union(*map(sources, makers[value].reads)) if value in fused else {value}
        return known[value]

    last: dict[_Value, int] = {}
    for number, step in enumerate(steps):
        if not all(value in fused for value in step.writes):
            last |= {source: number for value in step.reads for source in sources(value)}
    last |= {source: len(steps) for value in results for source in sources(value)}
    dying: dict[int, list[_Value]] = collections.defaultdict(list)
    for value, number in last.items():
        dying[number].append(value)

    alive: set[_Value] = set()
    sums = {True: 0.0, False: 0.0}  # bytes of gradients, and of all else
    peak, moments = (0.0, 0.0), []

    def take(value: _Value, sign: int) -> None:
        (alive.add if sign > 0 else alive.discard)(value)
        sums[value.gradient] += sign * value.size

    # The gradients that a loop stacks begin as zeros, which XLA makes before all else.
    for value in {value for step in steps if step.name == "scan" for value in step.writes if value.gradient}:
        take(value, 1)
    for number, step in enumerate(steps):
        made = [value for value in step.writes if value not in fused and value not in alive]
        ends = [value for value in dying[number] if value in alive]
        if step.fuses or step.name in _IN_PLACE:
            every = step.name == "optimization_barrier"
            for value in [value for value in ends if every or (made and value.size == made[0].size)]:
                take(value, -1)
                ends.remove(value)
                if step.name not in ("optimization_barrier", "while", "scan"):
                    break
        for value in made:
            take(value, 1)
        extra = _within(step)
        if sums[False] + sums[True] + extra > sum(peak):
            peak = (sums[False] + extra, sums[True])
        moments.append((sums[True], sums[False] + sums[True] + extra))
        for value in (*ends, *(value for value in made if value not in last)):
            if value in alive:
                take(value, -1)
    total = sum(step.writes[0].size for step in steps if step.name == "name" and step.writes[0].gradient)
    first = next((number for number, (gradients, _) in enumerate(moments) if gradients >= _MOST * total), None)
    late = [] if first is None or not total else [sum_ for _, sum_ in moments[first:]]
    return Held(*peak, max(late) - total if late else 0.0)


def _within(step: _Step) -> float:
    """Return the bytes that an operation needs beside its operands and results."""
    bodies: dict[str, Callable[[], Iterable[Any]]] = {
        "scan": lambda: (step.params["jaxpr"],),
        "while": lambda: (step.params["body_jaxpr"],),
        "cond": lambda: step.params["branches"],
    }
    if step.name in bodies:
        return max(sum(held(body)[:2]) for body in bodies[step.name]())
    if step.name == "dot_general" and step.reads:
        (summed, _), (batched, _) = step.params["dimension_numbers"]
        if summed and not batched and max(summed) < len(step.reads[0].shape) - 1:
            return step.reads[0].size
    return 0.0
