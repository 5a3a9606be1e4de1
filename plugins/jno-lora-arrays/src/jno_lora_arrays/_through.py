"""`through`: a function of adapted models, computed without the merged weights that it reads."""

import contextlib
import functools
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from jno.lora import SelectionError, resolve
from jno.lora.extending import callable_for, weights_read_by

from ._box import DeclaredArray, is_declared, unadapted
from ._tracing import Evaluation, UseReport, read_marked
from ._views import weight_of


def through(function: Callable[..., Any], *, strict: bool = False) -> Callable[..., Any]:
    """Compute `function` without merging the weights that it reads from adapted layers.

    Many models read `layer.weight` instead of calling the layer, for example in a head that is tied
    to the embedding, or in experts. The adapter then returns the merged weight, so a training step
    costs as much as full fine-tuning. `through` traces the function, finds these reads, and
    computes each product with such a weight, or lookup in it, by the adapter's own fast path. Calls
    of adapted layers do not change.

    Uses without such a path get the merged weight, as without `through`; `report_uses` lists them.

    **Arguments:**

    - `function`: any function of pytrees, such as `lambda model, x: jax.vmap(model)(x)`.
    - `strict`: raise an error where the merged weight would be needed.

    **Returns:** a function with the same arguments, results and derivatives, to rounding. Call it
    under `jax.jit`, because each call traces `function` anew. To differentiate with respect to the
    model, put `jax.grad` around `through`, not into `function`.

    **Raises:** with `strict`, a `JnoLoraError` that names adapter, operation and reason.
    """

    @functools.wraps(function)
    def evaluated(*args: Any, **kwargs: Any) -> Any:
        return _evaluate(function, Evaluation(strict), args, kwargs)

    return evaluated


@callable_for.register(DeclaredArray)
def _(layer: DeclaredArray, model: Any) -> Callable[..., Any]:
    """A `Net` calls a model with declared arrays by `through`."""
    if callable(model):
        return functools.partial(through(operator.call), model)
    raise SelectionError(
        f"The model of this net is a {type(model).__name__} with declared arrays, which cannot "
        "be called. Call the function that takes them:\n"
        "    through(apply)(net.module, x)    # from jno_lora_arrays import through"
    )


def report_uses(function: Callable[..., Any], *args: Any, **kwargs: Any) -> UseReport:
    """The uses of weights that `function(*args, **kwargs)` reads from adapted layers.

    **Returns:** a `UseReport`, which prints as a table: for each use, whether `through` computes
    it by the adapter, or why it needs the merged weight. The function is only traced.
    """
    evaluation = Evaluation()
    eqx.filter_eval_shape(functools.partial(_evaluate, function, evaluation), args, kwargs)
    return UseReport(tuple(evaluation.uses))


def _evaluate(function: Any, evaluation: Evaluation, args: PyTree, kwargs: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(resolve((args, kwargs)), is_leaf=is_declared)
    # The function is traced with bare arrays, and evaluated with their adapters.
    bare = [weight_of(unadapted(leaf)) if is_declared(leaf) else leaf for leaf in leaves]
    arrays, static = eqx.partition(bare, _is_array)
    static_results: list[PyTree] = []

    def traced(arrays: PyTree) -> PyTree:
        values = zip(leaves, eqx.combine(arrays, static), strict=True)
        joined = [unadapted(leaf).joined(x) if is_declared(leaf) else x for leaf, x in values]
        args, kwargs = jax.tree.unflatten(treedef, joined)
        with weights_read_by(read_marked), _separate_traces():
            result = function(*args, **kwargs)
        computed, static_result = eqx.partition(result, _is_array)
        static_results.append(static_result)
        return computed

    jaxpr, shapes = jax.make_jaxpr(traced, return_shape=True)(arrays)
    pairs = zip(leaves, bare, strict=True)
    operands = [evaluation.value_of(leaf) for leaf, x in pairs if _is_array(x)]
    results = evaluation.run_dense(jaxpr, operands)
    computed = jax.tree.unflatten(jax.tree.structure(shapes), results)
    return eqx.combine(computed, static_results[-1])


def _separate_traces() -> contextlib.AbstractContextManager[Any]:
    """A context whose traces JAX caches apart from other traces of the same functions.

    Otherwise a jitted function that was traced before would come from JAX's cache, without marks.
    The default device is part of the cache key, and has no effect while a function is only traced.
    """
    current = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return jax.default_device(jax.local_devices()[0] if current is None else None)


def _is_array(leaf: object) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray)
