"""Collect the statistics from which adapters start, in one pass over some batches."""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jno.lora import MatrixAdapter, PlanRow, Registry, SelectionError, Spec, Statistic, WrapperError
from jno.lora.extending import (
    bullets,
    expect_model,
    knows_words_of_jno,
    layers_at,
    mean_shape,
    over_stack,
    plan_call,
    replace_layers,
    replicated_beside,
    show_path,
    statistic_key,
    statistics_of,
    tracked,
)

from ._probe import Probe, Rows, RowsOut, directions
from ._statistics import FACTOR, Statistics

# Without `sketch`, larger statistics are refused.
_MOST_BYTES = 2 * 2**30

# How many layers a message names.
_FEW = 12

# The keys of the sums that count rows.
_COUNTERS = {counter.of: statistic_key(counter) for counter in (Rows, RowsOut)}

Loss = Callable[[Any, Any], Any]


@knows_words_of_jno
def collect_statistics(
    model: PyTree,
    batches: Iterable[Any],
    loss: Loss,
    *,
    wrapper: Any,
    target: Any = None,
    specs: Iterable[Any] | None = None,
    mask: Any = None,
    sketch: int | None = None,
    registry: Registry | None = None,
) -> Statistics:
    """Collect the statistics for adapters that start from data (EVA, CorDA, LoRA-GA) in one pass.

    Layers run as before, under any `vmap`, `scan` or `jax.checkpoint` of the model. A layer that is
    used several times contributes its rows each time.

    **Arguments:**

    - `model`: a pytree, as for `apply_lora`. It is not changed.
    - `batches`: some batches of data, for `loss`.
    - `loss`: `loss(model, batch)`, a scalar that JAX can differentiate. Statistics of inputs and
        outputs do not depend on its value, but are only collected in layers that its gradient
        reaches.
    - `wrapper`, `target`, `specs`, `mask`, `registry`: which layers get which adapter, as for
        `apply_lora`.
    - `sketch`: the largest number of columns of a covariance. A wider covariance is approximated by
        its products with `sketch` random vectors (Nyström), exactly if its rank is lower. `None`:
        all columns, if they take at most 2 GiB. To start, an adapter computes the whole covariance
        of its layer.

    **Returns:** `Statistics`, for `apply_lora(..., statistics=)`, `net.lora(..., statistics=)`
    and `allocate`. They can be saved.

    **Raises:** `SelectionError` if no selected adapter needs statistics, `batches` is empty, the
    loss does not reach a layer, a covariance is too large, or statistics are not finite;
    `WrapperError` if the inputs of a layer are not vectors of its matrix, or if two statistics have
    the same name.
    """
    expect_model(model, "collect_statistics")
    if sketch is not None and (type(sketch) is not int or sketch < 1):
        raise SelectionError(f"`sketch` must be a whole number from 1, or None, but is {sketch!r}.")
    call = Spec(target=target, rank=1, alpha=1.0, wrapper=wrapper)
    plan = plan_call(model, specs, call, mask, registry)
    rows = {row.path: row for row in plan.wrapped if row.wrapper and statistics_of(row.wrapper)}
    if not rows:
        raise SelectionError(
            f"{plan.problem or 'No selected layer gets an adapter that needs statistics.'} Name "
            'adapters that do, such as collect_statistics(model, batches, loss, wrapper="eva").'
        )
    _check_names(row.wrapper for row in rows.values())
    layers = layers_at(model, rows)
    probes = {path: _probe(row, layers[path], sketch) for path, row in rows.items()}
    totals: Any = None
    count = 0
    with contextlib.closing(tracked(batches, "Collecting statistics")) as items:
        for batch in items:
            sums = _sums(model, probes, batch, loss=loss)
            totals = sums if totals is None else _added(totals, sums)
            count += 1
    if totals is None:
        raise SelectionError("`batches` is empty. Give at least one batch of data.")
    _check_reached(totals, rows)
    means = {path: _means(probe, totals[path], count) for path, probe in probes.items()}
    shapes = {path: _matrix_of(p.base, p.wrapper).shape[-2:] for path, p in probes.items()}
    return Statistics(means, shapes)


def _check_names(wrappers: Iterable[Any]) -> None:
    by_key: dict[str, type[Statistic]] = {}
    for statistic in itertools.chain.from_iterable(map(statistics_of, wrappers)):
        first = by_key.setdefault(statistic_key(statistic), statistic)
        if first is not statistic:
            names = " and ".join(f"{x.__module__}.{x.__qualname__}" for x in (first, statistic))
            raise WrapperError(
                f"Adapters of this call need two statistics {statistic.name!r}, {names}. A package "
                "may have only one statistic of a name, because files hold statistics by package "
                "and name. Rename one of them, or select adapters that need only one of them."
            )


def check_statistics_from(source: Any, statistics: Any = None) -> tuple[Iterable[Any], Loss]:
    """The batches and the loss of an argument `statistics_from`, for functions that collect later.

    **Raises:** `SelectionError` if it is not such a pair, or `statistics` are given too.
    """
    if statistics is not None:
        raise SelectionError("Give `statistics` or `statistics_from`, not both.")
    if isinstance(source, tuple | list) and len(source) == 2 and callable(source[1]):
        return source[0], source[1]
    raise SelectionError(
        "`statistics_from` must be a pair `(batches, loss)`, with a function `loss(model, batch)`, "
        f"but is {source!r}."
    )


def _probe(row: PlanRow, layer: Any, sketch: int | None) -> Probe:
    cls: Any = row.wrapper
    measured = [statistic for statistic in statistics_of(cls) if statistic.of != "gradient"]
    sources = {statistic.of for statistic in measured}
    measured += [counter for counter in (Rows, RowsOut) if counter.of in sources]
    W = _matrix_of(layer, cls)
    sums: dict[str, Array] = {}
    for statistic in measured:
        k, m = mean_shape(statistic, W.shape[-2:])
        m = min(m, sketch) if statistic.is_covariance and sketch is not None else m
        shape = (*W.shape[:-2], k, m)
        size = math.prod(shape) * W.dtype.itemsize
        if sketch is None and size > _MOST_BYTES:
            raise SelectionError(
                f"The {statistic.name} of the {row.layer} at {show_path(row.path)!r} is {k} x {m}, "
                f"which takes {size / 2**30:.1f} GiB. Leave the layer out by `target=` or `specs=` "
                "(a table of embeddings has an input for each token), or keep fewer columns: "
                f"sketch=512. `sketch={m}` keeps all columns."
            )
        sums[statistic_key(statistic)] = replicated_beside(layer, jnp.zeros(shape, W.dtype))
    probe: Any = Probe  # the constructor takes the fields, unlike the constructors of adapters
    return probe(layer, sums, tuple(measured), MatrixAdapter.of(cls))


def _gradients_of(probe: Probe) -> list[type[Statistic]]:
    return [statistic for statistic in statistics_of(probe.wrapper) if statistic.of == "gradient"]


@eqx.filter_jit
def _sums(
    model: Any, probes: dict[str, Probe], batch: Any, *, loss: Loss
) -> dict[str, dict[str, Array]]:
    """The sums over one batch, by path and name."""

    def varies(probe: Probe) -> Any:
        base = eqx.is_inexact_array if _gradients_of(probe) else False
        return eqx.tree_at(lambda p: (p.base, p.sums), probe, (base, True))

    varied, fixed = eqx.partition(probes, {path: varies(probe) for path, probe in probes.items()})
    grads = eqx.filter_grad(
        lambda varied: loss(replace_layers(model, eqx.combine(varied, fixed)), batch)
    )(varied)
    by_path = {path: dict(grad.sums) for path, grad in grads.items()}
    for path, probe in probes.items():
        if statistics := _gradients_of(probe):
            # Leaves without a gradient, such as sizes, are taken from the layer.
            base = eqx.combine(grads[path].base, fixed[path].base)
            ndim = probe.wrapper.stack_ndim(probe.base)
            G = over_stack(probe.wrapper.matrix, ndim)(base)
            by_path[path] |= {statistic_key(s): over_stack(s.right, ndim)(G) for s in statistics}
    return by_path


def _matrix_of(layer: Any, cls: Any) -> Any:
    """The shape of the matrix of a layer or of a stack."""
    return eqx.filter_eval_shape(over_stack(cls.matrix, cls.stack_ndim(layer)), layer)


@functools.partial(jax.jit, donate_argnums=0)
def _added(totals: Any, sums: Any) -> Any:
    return jax.tree.map(jnp.add, totals, sums)


def _check_reached(totals: dict[str, dict[str, Array]], rows: Mapping[str, PlanRow]) -> None:
    missed = [path for path, sums in totals.items() if not _is_reached(sums)]
    if missed:
        lines = [f"{show_path(path)} ({rows[path].layer})" for path in missed]
        raise SelectionError(
            "The gradient of the loss does not reach the outputs of these layers, so nothing was "
            f"collected there:\n{bullets(lines, _FEW)}\n"
            "The loss does not depend on them, or differentiates them itself, or the model reads "
            "their weight instead of calling them. Leave them out with `target=` or `specs=`. For "
            "statistics of inputs, any loss of the outputs will do: "
            "lambda model, batch: jnp.sum(jax.vmap(model)(batch))"
        )
    lines = [
        f"{show_path(path)}: {name}"
        for path, sums in totals.items()
        for name, total in sums.items()
        if name not in _COUNTERS.values() and not np.all(np.isfinite(total))
    ]
    if lines:
        raise SelectionError(
            f"These statistics hold NaN or infinity:\n{bullets(lines, _FEW)}\nLook at the batches, "
            "and at loss(model, batch) for each batch."
        )


def _is_reached(sums: dict[str, Array]) -> bool:
    counts = [sums[counter] for counter in _COUNTERS.values() if counter in sums]
    return all(map(np.all, counts)) if counts else all(map(np.any, sums.values()))


def _means(probe: Probe, sums: dict[str, Array], batches: int) -> dict[str, Array]:
    counts: dict[str, Any] = {"gradient": batches}
    counts |= {of: sums.get(counter) for of, counter in _COUNTERS.items()}
    means: dict[str, Array] = {}
    for statistic in statistics_of(probe.wrapper):
        key = statistic_key(statistic)
        mean = sums[key] / counts[statistic.of]
        if statistic.is_covariance and mean.shape[-1] < mean.shape[-2]:
            *stack, width, size = mean.shape
            factors = map(_nystrom, np.asarray(mean).reshape(-1, width, size))
            F = np.stack(list(factors)).reshape(*stack, width, size)
            means[key + FACTOR] = jnp.asarray(F)
        else:
            ndim = probe.wrapper.stack_ndim(probe.base)
            means[key] = over_stack(statistic.value, ndim)(mean)
    return means


def _nystrom(sketch: np.ndarray) -> np.ndarray:
    """`F`, `(width, size)`, with `F F^T` close to `C`, for a sketch `C Omega`."""
    Y, (width, size) = sketch.astype(np.float64), sketch.shape
    Omega = np.asarray(directions(width, size, jnp.float32), np.float64)
    values, vectors = np.linalg.eigh(Omega.T @ Y)
    is_large = values > 1e-6 * max(values[-1], np.finfo(np.float64).tiny)
    scale = np.where(is_large, 1 / np.sqrt(np.where(is_large, values, 1.0)), 0.0)
    return ((Y @ vectors) * scale).astype(sketch.dtype)
