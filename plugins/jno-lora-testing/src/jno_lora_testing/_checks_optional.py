"""Checks of optional members: statistics, shared arrays, and a penalty."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, Registry, Statistic, lora_trainable_filter, merge_lora, resolve
from jno.lora.extending import (
    overrides,
    path_str,
    shared_arrays,
    statistic_keys,
    statistics_of,
    with_arrays,
    with_shared_arrays,
)
from jno_lora_train import penalty
from jno_lora_zoo import collect_statistics

from ._case import WrapperCase, constructed, perturbed, random_statistics
from ._comparisons import arrays_of, is_finite, relative_error, require, require_close
from ._conformance import ConformanceError, is_refusal, raised_in, required, skip_unless
from ._programs import gradients, output

_TOLERANCE = 1e-5
_NEEDS_NOTHING = "the adapter needs no statistics"


@required("guard divisions and roots: a layer may see zeros, or fewer vectors than it has inputs.")
def check_poor_statistics(case: WrapperCase) -> None:
    """Statistics of zeros, or of a single vector, give finite arrays and the layer's outputs."""
    skip_unless(statistics_of(case.wrapper), _NEEDS_NOTHING)
    base = case.make_base()
    plain = output(case, base)
    # An option may ask for another start.
    starts_equal = relative_error(output(case, case.make()), plain) <= _TOLERANCE
    for rows, data in ((0, "no data"), (1, "a single vector")):
        adapter = constructed(case, base, jax.random.key(3), rows)
        require(is_finite(adapter), f"Statistics of {data} give an adapter with NaN or infinity.")
        if starts_equal:
            start = f"With statistics of {data}, the fresh adapter's output"
            problem = f"{start} differs from the layer's"
            require_close(output(case, adapter), plain, _TOLERANCE, problem)


@required("define `inputs_of` and `outputs_of` for this kind of layer, in the order of `matrix`.")
def check_calibration(case: WrapperCase) -> None:
    """`collect_statistics` collects the adapter's statistics from single calls, and from `vmap`."""
    skip_unless(statistics_of(case.wrapper), _NEEDS_NOTHING)
    for statistic in statistics_of(case.wrapper):
        _check_statistic(statistic)
    several = [case.make_inputs(seed=seed) for seed in (51, 52)]

    def loss(layer: PyTree, batch: PyTree) -> PyTree:
        results = jax.vmap(lambda inputs: case.call(layer, *inputs))(batch)
        return sum(jnp.mean(jnp.sin(x)) for x in jax.tree.leaves(results))

    alone = [jax.tree.map(lambda x: x[None], inputs) for inputs in several]
    together = jax.tree.map(lambda *x: jnp.stack(x), *several)
    registry, base = Registry(discover=False), case.make_base()
    single, mapped = (
        collect_statistics(base, batches, loss, wrapper=case.wrapper, registry=registry)[""]
        for batches in (alone, [together])
    )
    for name, array in (random_statistics(case.wrapper, base) or {}).items():
        key = statistic_keys(case.wrapper)[name]
        x, y = single[key], mapped[key]
        require(
            x.shape == array.shape,
            f"Calibration gives {name!r} the shape {x.shape}, but `matrix` asks for {array.shape}.",
        )
        require_close(x, y, 1e-4, f"{name!r} of one batch and of two differ", least=1e-2)


def _check_statistic(statistic: type[Statistic]) -> None:
    """**Raises:** `ConformanceError` if the sum over a batch is not the sum over its parts."""
    if statistic.of == "gradient":
        return
    V = np.random.default_rng(7).normal(size=(6, 4)).astype(np.float32)
    whole, *parts = (
        np.asarray(statistic.left(rows).T @ statistic.right(rows))
        for rows in map(jnp.asarray, (V, V[:1], V[1:3], V[3:]))
    )
    problem = f"The value of the statistic {statistic.name!r} depends on how rows are batched"
    remedy = "let `left` and `right` map each row alone: no mean, maximum or length over the rows."
    require(relative_error(sum(parts), whole) <= 1e-4, f"{problem}.", remedy)


@required("read a shared array by `self.field.array` each time; keep no copy of it.")
def check_shared_arrays(case: WrapperCase) -> None:
    """Two adapters share one array of each name, and its gradient is the sum over both."""
    skip_unless(shared_arrays(case.make()), "the adapter shares no array")
    layers = [case.make_base(seed=seed) for seed in (61, 62)]
    pair = [constructed(case, layer, jax.random.key(3)) for layer in layers]
    names = shared_arrays(case.make()).keys()
    model = perturbed(with_shared_arrays(pair, key=jax.random.key(3)))
    shared = shared_arrays(model)
    require(
        shared.keys() == names and shared.keys() == shared_arrays(model[0]).keys(),
        f"Two adapters use {sorted(names)}, and the first holds {sorted(shared)}.",
        "give a `Shared` the same name in every layer that is to use one array.",
    )
    _check_sum_of_gradients(case, model)
    _check_two_widths(case)
    if case.mergeable:
        merged, resolved = merge_lora(with_arrays(model)), resolve(model)
        problem = "With shared arrays, the merged layer differs from the adapter"
        for plain, adapter in zip(merged, resolved, strict=True):
            require_close(case.run(plain), case.run(adapter), 10 * _TOLERANCE, problem)


def _check_two_widths(case: WrapperCase) -> None:
    """**Raises:** `ConformanceError` if a wider layer, whose arrays are larger, changes outputs."""
    narrow = case.make_base()
    if type(narrow) is not eqx.nn.Linear:  # other layers cannot be widened here
        return
    outputs, inputs = narrow.weight.shape
    layers = [narrow, eqx.nn.Linear(inputs + 2, outputs + 1, key=jax.random.key(63))]
    vectors = [np.linspace(-1, 1, n, dtype=np.float32) for n in (inputs, inputs + 2)]

    def called(layers: list[PyTree]) -> list[PyTree]:
        return [case.call(layer, x) for layer, x in zip(layers, vectors, strict=True)]

    if not case.wrapper.applies_to(layers[1]):
        return
    try:
        plain = called(layers)
    except Exception:  # the case's inputs fit only its own layer
        return
    try:
        pair = [constructed(case, layer, jax.random.key(3)) for layer in layers]
    except Exception as err:
        if is_refusal(err):
            return
        raise
    try:
        model = with_shared_arrays(pair, key=jax.random.key(3))
        trained = perturbed(model)
        started, moved = called(resolve(model)), called(resolve(trained))
    except Exception as err:
        problem = f"Two layers of different widths fail: {type(err).__name__}: {err}"
        raise ConformanceError(f"{problem}\n{raised_in(err, case.wrapper)}", _SLICE) from err
    problem = "Two fresh adapters of layers of different widths differ from the layers"
    require_close(started, plain, 10 * _TOLERANCE, problem)
    if case.mergeable:
        expected = called(merge_lora(with_arrays(trained)))
        problem = "Two adapters of layers of different widths differ from their merged layers"
        require_close(moved, expected, 10 * _TOLERANCE, problem)


_SLICE = "read the part of the shared array that this layer needs: `array[:rank, :inputs]`."


def _check_sum_of_gradients(case: WrapperCase, model: PyTree) -> None:
    varied, fixed = eqx.partition(model, lora_trainable_filter(model))
    if not shared_arrays(varied):  # frozen
        return

    def gradient(*users: int) -> PyTree:
        def call(model: PyTree, *inputs: PyTree) -> list[PyTree]:
            adapters = resolve(model)
            return [case.call(adapters[user], *inputs) for user in users]

        return shared_arrays(gradients(varied, fixed, call, case.make_inputs()))

    total = jax.tree.map(jnp.add, gradient(0), gradient(1))
    problem = "The gradient of a shared array is not the sum over its users"
    require_close(gradient(0, 1), total, 10 * _TOLERANCE, problem)


@required("wrap the arrays that should not move in `jax.lax.stop_gradient`.")
def check_penalty(case: WrapperCase) -> None:
    """The penalty is one finite number, with gradients for trained arrays only."""
    is_defined = overrides(case.wrapper, LoRAWrapper, "penalty")
    skip_unless(is_defined, "the adapter defines no `penalty`")
    differentiated = eqx.filter_jit(eqx.filter_value_and_grad(penalty))
    trained = case.make_trained()
    value, grads = differentiated(trained)
    for stage, at_stage, of_stage in (
        ("At the start", *differentiated(case.make())),
        ("After training", value, grads),
    ):
        problem = f"{stage}, the penalty is {at_stage}."
        require(np.isfinite(at_stage), problem, "mind divisions, and roots, at zero.")
        for path, grad in jtu.tree_leaves_with_path(of_stage):
            where = f"{stage}, the gradient of the penalty by `{path_str(path)}`"
            require(np.all(np.isfinite(grad)), f"{where} is not finite.", "mind roots at zero.")
    require_close(value, penalty(trained), 10 * _TOLERANCE, "Compiled and eager penalties differ")
    moving, fixed = eqx.partition(grads, lora_trainable_filter(trained))
    for path, grad in jtu.tree_leaves_with_path(fixed):
        where = f"The gradient of the penalty by `{path_str(path)}`"
        require(not np.any(grad), f"{where} is not zero, but this array does not train.")
    problem = "The penalty moves no trained array."
    require(any(map(np.any, arrays_of(moving))), problem, "let it depend on a trained field.")
