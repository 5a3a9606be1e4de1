"""Calibrated error bars of an ensemble: `calibrate`, `predict`, `interval` and their summary."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Shaped

from jno.lora import SelectionError, Table
from jno.lora.extending import Printed, compute_dtype, is_traced, path_str, table, warn
from jno_lora_conditional import Conditional

from ._ensemble import Ensemble, check_calibrated
from ._folds import Folds, checked_count, held_out_mask, holds, mean_of_held_out, warn_of_few
from ._scales import Scales, calibrated_arrays, gaussian_quantile

_FIFTHS = 5  # parts of unseen examples, for the scores
# What helps if the members fit what they saw, by the kind of folds.
_BY_EXAMPLE = (
    "Calibrate on examples that no member has seen, if there are some. If not, take five members, "
    "or give inputs without targets: calibrate(..., new_x=inputs)"
)
_BY_VALUE = (
    "Calibrate on examples of values that no member has seen, calibrate(ensemble, x, y, None), if "
    "there are some. If not, train on four or five values, with a member for each; `new_x` makes "
    "intervals too wide at unseen values."
)


class Prediction(NamedTuple):
    """The mean over the members and a standard deviation, in the structure of the output."""

    mean: PyTree
    std: PyTree


class Interval(NamedTuple):
    """The ends of an interval for each number of the output."""

    lower: PyTree
    upper: PyTree


class Calibrated(eqx.Module):
    """An ensemble with calibrated error bars: `predict(calibrated, x)`. A pytree.

    - `scales`: for each array of the output, in the order of its leaves.
    - `examples`: the number of held-out examples that the scales were fitted to.
    - `unseen`: the number of those that no member has seen, for conformal intervals.
    - `nearest`: for conditionals, the value of the parameter nearest to the source at which errors
        were measured: the source itself, if `calibrate` was given data of it.
    """

    ensemble: Ensemble
    scales: tuple[Scales, ...]
    examples: Int[Array, ""]
    unseen: Int[Array, ""]
    nearest: Shaped[Array, "..."] | None

    def summary(self) -> "CalibrationReport":
        """The scales and the scores of each output. Prints as a table."""
        nearest = None if self.nearest is None else np.asarray(self.nearest)
        return CalibrationReport(self.scales, int(self.examples), self.ensemble.members, nearest)


def calibrate(
    ensemble: Ensemble,
    x: PyTree,
    y: PyTree,
    held_out: Folds | Bool[Any, "k n"] | None,
    *,
    new_x: PyTree | None = None,
    source: tuple[PyTree, PyTree] | None = None,
) -> Calibrated:
    """Scale the spread of the members to the residuals of examples that they did not see.

    The variance is `a^2 spread^2 + b^2`, with two scales for each array of the output. The residual
    of an example belongs to the members that left it out, and the spread is the standard deviation
    over all members.

    With folds, the spread at an example contains the error of the member that left it out. If the
    members fit the examples that they saw, it contains nothing else, so that the size of the scales
    depends on the number of members, and little on the data. With `new_x`, the size is set by the
    spread at new inputs, which no member has seen.

    At the source of a conditional, all members are the pretrained model, so that their spread is
    zero. With `source`, `b` is the width of the pretrained model's errors there, and `a` is such
    that intervals of 90 % hold 90 % of the held-out errors. Without, `predict` gives no width
    nearer to the source than the nearest value in `x`.

    **Arguments:**

    - `x`, `y`: inputs and targets, with an axis of examples in front. For conditionals,
        `x = (z, inputs)`, also with a `call` of your own.
    - `held_out`: the folds that the members were trained with, or bools `(members, n)`. `None` says
        that no member has seen the examples.
    - `new_x`: inputs without targets, like those to predict. The scores do not use them.
    - `source`: for conditionals, inputs and targets at the source, like `x[1]` and `y`, which the
        pretrained model was not trained on. Examples of `x` at the source count as well.

    **Raises:** `SelectionError` if shapes do not fit, for NaN, or if no example was held out. Warns
    below eight held-out examples or examples of the source, if the members agree (as before
    training), and if they fit what they saw and `new_x` is missing.
    """
    z = _value_of(ensemble, x)
    mask = held_out_mask(held_out, ensemble.members, len(jax.tree.leaves(x)[0]))
    if source is not None:
        x, y, mask = _with_source(ensemble, x, y, mask, source)
        z = x[0]
    outputs = jax.tree.map(wide, outputs_of(ensemble, x))
    expected, given = jax.tree.structure(outputs), jax.tree.structure(y)
    if expected != given:
        raise SelectionError(
            f"`y` must have the structure of the outputs, {expected}, but has {given}. Give a "
            "target for each array of the output, or another output: Ensemble(..., call=...)"
        )
    distance = None if z is None else _distances(ensemble, jnp.asarray(z))
    examples = _Examples(mask, None if distance is None else distance == 0)
    new = None if new_x is None else jax.tree.map(wide, outputs_of(ensemble, new_x))
    leaves = jax.tree_util.tree_leaves_with_path(outputs)
    new_leaves = [None] * len(leaves) if new is None else jax.tree.leaves(new)
    remedy = _BY_VALUE if z is not None and _are_by_value(z, examples.left_out) else _BY_EXAMPLE
    scales: list[Scales] = []
    doubts: list[str] = []
    for (keys, output), target, at_new in zip(leaves, jax.tree.leaves(y), new_leaves, strict=True):
        path = path_str(keys)
        errors = _errors_of(_named(path), output, target, examples)
        scales.append(_scales_of(path, output, errors, at_new, examples))
        doubts += _doubts(_named(path), errors, examples.left_out, new is None, remedy)
    for doubt in doubts:
        warn(doubt)
    count, nearest = checked_count(examples.left_out), None
    if distance is not None:
        warn_of_few("The width at the source is fitted to {} examples", jnp.sum(distance == 0))
        nearest = jnp.asarray(z)[jnp.argmin(jnp.where(examples.measured, distance, jnp.inf))]
    return Calibrated(ensemble, tuple(scales), count, jnp.sum(examples.unseen), nearest)


class _Examples:
    """The examples, by what they tell.

    - `held_out`: whether an example tells of the errors of a member.
    - `left_out`: the same, without the source, where all members are the pretrained model.
    - `usable`, `unseen`: whether any, and whether each member left an example out.
    - `measured`: whether any error is known.
    - `at_source`: `None` for an ensemble without a source.
    """

    def __init__(self, mask: Bool[Array, "k n"], at_source: Bool[Array, " n"] | None):
        there = jnp.zeros(mask.shape[1], bool) if at_source is None else at_source
        self.held_out, self.left_out = mask | there[None], mask & ~there[None]
        self.at_source, self.measured = at_source, jnp.any(self.held_out, axis=0)
        self.usable, self.unseen = jnp.any(self.left_out, axis=0), jnp.all(self.left_out, axis=0)

    def parts(self) -> Int[Array, " n"]:
        """The number of the part with which each example is scored: its fold, or a fifth."""
        # One fold leaves none to fit the scales to.
        has_folds = jnp.sum(jnp.any(self.left_out, axis=1)) > 1
        fifths = jnp.arange(len(self.unseen)) % _FIFTHS
        return jnp.where(~self.unseen & has_folds, jnp.argmax(self.held_out, axis=0), fifths)


def _errors_of(path: str, output: Array, target: ArrayLike, examples: _Examples) -> Array:
    """The error of each member at each example.

    **Raises:** `SelectionError` for another shape, or if a measured error is not finite.
    """
    if output.shape[1:] != np.shape(target):
        raise SelectionError(
            f"`y` must have the shape {output.shape[1:]} of the outputs for all examples, but "
            f"has {np.shape(target)}"
        )
    errors = jnp.asarray(target).astype(output.dtype)[None] - output
    finite = jnp.all(jnp.isfinite(errors.reshape(*output.shape[:2], -1)), axis=(0, 2))
    wrong = examples.measured & ~finite
    if holds(jnp.any(wrong)):
        raise SelectionError(
            f"{jnp.sum(wrong)} of {len(wrong)} examples have NaN or infinity in {path}, in `y` "
            "or in the outputs. Leave these examples out."
        )
    return errors


def _scales_of(
    path: str, output: Array, errors: Array, new: Array | None, examples: _Examples
) -> Scales:
    """The scales of one array of the output. **Raises:** `SelectionError` if `new` has NaN."""
    if new is not None and holds(~jnp.all(jnp.isfinite(new))):
        raise SelectionError(
            f"The outputs at `new_x` have NaN or infinity in {_named(path)}. Leave the inputs "
            "out that cause them."
        )
    # An example that every member has seen has no residual.
    measured = examples.measured.reshape(-1, *[1] * (errors.ndim - 2))
    variance = jnp.where(measured, jnp.var(output, axis=0), 0)
    residual = jnp.where(measured, mean_of_held_out(errors, examples.held_out), 0)
    masks = examples.usable, examples.unseen, examples.parts()
    new_variance = None if new is None else jnp.var(new, axis=0)
    arrays = calibrated_arrays(variance, residual, *masks, new_variance, examples.at_source)
    return Scales(path, *arrays)


def _value_of(ensemble: Ensemble, x: PyTree) -> PyTree:
    """The parameter in the input `x` of a conditional; `None` for other ensembles.

    **Raises:** `SelectionError` if the input of a conditional does not have one.
    """
    if not isinstance(ensemble.shared, Conditional):
        return None
    if not isinstance(x, tuple | list) or len(x) != 2:
        raise SelectionError(
            "The input of a conditional must be `x = (z, inputs)`, also with a `call` of your own, "
            f"but is a {type(x).__name__}"
        )
    return x[0]


@eqx.filter_jit
def _distances(ensemble: Ensemble, zs: Array) -> Float[Array, " n"]:
    """How far each value lies from the source: `sum |phi|`, in the mean over trained bases."""
    of_members = ensemble.each(lambda c: jax.vmap(lambda z: jnp.sum(jnp.abs(c.basis(z))))(zs))
    return jnp.mean(of_members, axis=0)


def _with_source(
    ensemble: Ensemble, x: PyTree, y: PyTree, mask: Bool[Array, "k n"], source: PyTree
) -> tuple[PyTree, PyTree, Bool[Array, "k m"]]:
    """The examples, and behind them the data of the source, which no member has seen.

    **Raises:** `SelectionError` if the data of the source are not like the examples.
    """
    start = ensemble.shared.basis.source if isinstance(ensemble.shared, Conditional) else None
    if start is None:
        raise SelectionError("`source` needs conditionals whose basis has a source, such as Powers")
    (z, inputs), (inputs_there, targets) = x, source
    rows = len(jax.tree.leaves(targets)[0])
    there = jnp.broadcast_to(jnp.asarray(start, jnp.asarray(z).dtype), (rows, *np.shape(start)))
    given, added = (z, inputs, y), (there, inputs_there, targets)
    expected = jax.tree.map(lambda array: (rows, *np.shape(array)[1:]), given)
    if expected != (shapes := jax.tree.map(np.shape, added)):
        raise SelectionError(
            "`source` must be inputs and targets at the source, like `x[1]` and `y`: z, inputs and "
            f"targets must have the shapes {expected}, but have {shapes}"
        )

    def join(array: ArrayLike, more: ArrayLike) -> Array:
        array = jnp.asarray(array)
        return jnp.concatenate([array, jnp.asarray(more, array.dtype)])

    z, inputs, y = jax.tree.map(join, given, added)
    return (z, inputs), y, jnp.pad(mask, ((0, 0), (0, rows)), constant_values=True)


def _doubts(
    path: str, errors: Array, mask: Bool[Array, "k n"], is_sized_by_folds: bool, remedy: str
) -> Iterator[str]:
    """Why the spread may say nothing: members that agree, or fit the examples that they saw."""
    if is_traced(errors, mask):
        return
    errors = errors.reshape(*mask.shape, -1)
    seeing = ~mask & jnp.any(mask, axis=0)[None]
    held_out, seen = (_rms(errors, where=of[..., None]) for of in (mask, seeing))
    if _rms(errors - jnp.mean(errors, axis=0, keepdims=True)) < 1e-4 * held_out:
        yield (
            f"The members agree in {path}, so that their spread says nothing. Calibrate the "
            "trained ensemble: ensemble.update(trainable)"
        )
    elif is_sized_by_folds and seen < held_out / 3:
        yield (
            f"The members fit the examples that they saw: in {path}, their error is {seen:.2g} "
            f"there and {held_out:.2g} on held-out examples. The spread at a held-out example then "
            "is the error of one member, so that the width of the intervals depends on the number "
            f"of members. {remedy}"
        )


def _are_by_value(z: PyTree, mask: Bool[Array, "k n"]) -> bool:
    """Whether each member left out all examples of a value, or none."""
    if is_traced(z, mask):
        return False
    z = np.asarray(z).reshape(mask.shape[1], -1)
    distinct = len(np.unique(z, axis=0))
    return distinct == len(np.unique(np.column_stack([z, mask.T]), axis=0)) < len(z)


def _rms(errors: Array, where: Array | bool = True) -> Array:
    """The root mean square."""
    return jnp.sqrt(jnp.mean(errors**2, where=where))


def predict(calibrated: Calibrated, x: PyTree) -> Prediction:
    """The mean over the members and the calibrated standard deviation, for one example.

    May be compiled, mapped (`jax.vmap(lambda x: predict(calibrated, x))(xs)`), scanned over the
    steps of a roll-out, and differentiated. Costs one call of each member.

    The members of conditionals agree at the source, so that nearer to it than any value of the
    calibration, the standard deviation is infinite: no width was measured there. It is a
    `JnoLoraWarning`, too, but not under `jax.jit`, `jax.vmap` and `jax.grad`, where the value is
    traced. `calibrate(..., source=(inputs, targets))` measures it.
    """
    check_calibrated(calibrated, Calibrated, "calibrate")
    ensemble, z = calibrated.ensemble, _value_of(calibrated.ensemble, x)
    outputs = jax.tree.map(wide, ensemble.each(lambda member: ensemble.call(member, x)))
    leaves, structure = jax.tree.flatten(outputs)
    pairs = zip(calibrated.scales, leaves, strict=True)
    std = [scales.std(jnp.var(output, axis=0)) for scales, output in pairs]
    if calibrated.nearest is not None:
        values = jnp.asarray(z), calibrated.nearest
        distance, nearest = (_distances(ensemble, value[None])[0] for value in values)
        is_unknown = distance < (1 - 1e-3) * nearest  # rounding is no distance
        if holds(is_unknown):
            warn(
                f"The value {np.asarray(z)!s} lies nearer to the source than any value of the "
                f"calibration: the source is {ensemble.shared.basis.source}, and the nearest value "
                f"is {np.asarray(calibrated.nearest)!s}. At the source, all members are the "
                "pretrained model and have no spread, so that the width is unknown, and infinite. "
                "Give data of the source: calibrate(..., source=(inputs, targets))"
            )
        std = [jnp.where(is_unknown, jnp.inf, width) for width in std]
    mean = jax.tree.map(lambda output: jnp.mean(output, axis=0), outputs)
    return Prediction(mean, jax.tree.unflatten(structure, std))


def interval(
    calibrated: Calibrated, x: PyTree, level: float = 0.9, *, conformal: bool = False
) -> Interval:
    """An interval for each number of the output of one example, infinite where `predict` has no
    width.

    **Arguments:**

    - `level`: the fraction of the numbers that the interval should hold, between 0 and 1.
    - `conformal`: take the quantile of `|residual| / std` of the examples that no member has seen,
        and not the quantile of a Gaussian (normalised split conformal prediction, Lei et al.,
        arXiv:1604.04173).

    **Raises:** `SelectionError` if a conformal interval of this level needs more such examples.
    """
    mean, std = predict(calibrated, x)
    quantiles: list[float] | list[Array] = [gaussian_quantile(level)] * len(calibrated.scales)
    if conformal:
        quantiles = [_conformal_quantile(calibrated, s, level) for s in calibrated.scales]
    widths = jax.tree.unflatten(jax.tree.structure(std), quantiles)
    widths = jax.tree.map(jnp.multiply, std, widths)
    return Interval(jax.tree.map(jnp.subtract, mean, widths), jax.tree.map(jnp.add, mean, widths))


def _conformal_quantile(calibrated: Calibrated, scales: Scales, level: float) -> Array:
    """The quantile of a conformal interval, which counts one more example as worse than all."""
    examples, needed = calibrated.unseen, math.ceil(level / (1 - level) - 1e-6)
    if holds(examples < needed):
        raise SelectionError(
            f"A conformal interval of level {level} needs at least {needed} examples that no "
            f"member has seen, but the ensemble was calibrated on {examples}. Calibrate it on new "
            "examples, or use the Gaussian interval."
        )
    raised = level * (1 + 1 / examples.astype(scales.quantiles.dtype))
    levels = jnp.linspace(0, 1, len(scales.quantiles), dtype=raised.dtype)
    quantile = jnp.interp(raised, levels, scales.quantiles)
    return jnp.where(raised > 1 + 1e-6, jnp.inf, quantile)


@dataclasses.dataclass(frozen=True, repr=False)
class CalibrationReport(Printed[Scales]):
    """The scales and the scores of each array of the output.

    - `examples`: the number of held-out examples.
    - `members`: the number of members.
    - `nearest`: the value of a parameter nearest to the source at which errors were measured.
    """

    rows: tuple[Scales, ...]
    examples: int
    members: int
    nearest: np.ndarray | None

    def __repr__(self) -> str:
        return f"CalibrationReport({len(self)} outputs, {self.examples} held-out examples)"

    def _table(self) -> Table:
        names = ("a", "b", "coverage of 90 %", "CRPS", "CRPS, constant width")
        columns = [("output", "left"), *((name, "right") for name in names)]
        cells: list[list[str]] = []
        for row in self.rows:
            numbers = (row.spread, row.constant, row.coverage, row.crps, row.constant_crps)
            cells.append([_named(row.path), *(f"{float(number):.3g}" for number in numbers)])
        counts = f"{self.members} members, {self.examples} held-out examples"
        caption = f"variance = a² spread² + b², {counts}"
        if self.nearest is not None:
            caption += f", nearest to the source: {self.nearest!s}"
        return table("Calibration", columns, cells, caption)


def _named(path: str) -> str:
    """The path of an array of the output."""
    return path or "the output"


@eqx.filter_jit
def outputs_of(ensemble: Ensemble, x: PyTree) -> PyTree:
    """The outputs of all members for all examples: axes of members and examples in front."""
    x = jax.tree.map(jnp.asarray, x)
    return ensemble.each(lambda member: jax.vmap(lambda x: ensemble.call(member, x))(x))


def wide(output: Array) -> Array:
    """The output in float32 at least. **Raises:** `SelectionError` for a complex output."""
    if jnp.iscomplexobj(output):
        raise SelectionError(
            "The output has complex numbers, which have no interval. Return their real and "
            "imaginary parts: Ensemble(..., call=lambda model, x: (model(x).real, model(x).imag))"
        )
    is_floating = jnp.issubdtype(output.dtype, jnp.floating)
    return output.astype(compute_dtype(output) if is_floating else float)
