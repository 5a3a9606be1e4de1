"""Checks of an adapter under JAX: gradients and transformations."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._contract import merged_layer
from .._dispatch import apply_lora
from .._merge import merge_lora
from .._paths import path_str
from ._case import WrapperCase, perturbed, split
from ._conformance import NOT_MERGEABLE, ConformanceError, relative_error, require

_TOLERANCE = 2e-5


def check_gradients(case: WrapperCase) -> None:
    """Gradients are finite, reach every trainable array once training began, and only those."""
    for stage, wrapper in (("at the start", case.make()), ("after a step", case.make_trained())):
        trainable, frozen = split(wrapper)
        grads = jax.grad(_loss)(trainable, frozen, case)
        for path, grad in jtu.tree_leaves_with_path(grads):
            where = f"The gradient of `{path_str(path)}` {stage}"
            require(
                jnp.all(jnp.isfinite(grad)),
                f"{where} is not finite.",
                "mind divisions by norms that may be zero, and square roots at zero.",
            )
            require(
                stage == "at the start" or jnp.any(grad != 0),
                f"{where} is zero everywhere.",
                "use the array in `__call__`; do not `stop_gradient` what should train.",
            )


def check_merge_gradients(case: WrapperCase) -> str | None:
    """Merging inside the loss gives the gradients of the wrapped path."""
    if not case.mergeable:
        return NOT_MERGEABLE
    trainable, frozen = split(case.make_trained())
    wrapped = jax.grad(_loss)(trainable, frozen, case)
    through = jax.grad(lambda t: _sum(case.run(merged_layer(eqx.combine(t, frozen)))))(trainable)
    error = relative_error(through, wrapped)
    require(
        error <= 10 * _TOLERANCE,
        f"The gradients through `merge()` differ from those through `__call__`: {error:.1e}.",
        "treat as constants the same things in both (DoRA's norm), and use only JAX operations.",
    )
    return None


def check_jit(case: WrapperCase) -> None:
    """The constructor and the call work under `jit`, and give the same."""
    base, inputs = case.make_base(), case.make_inputs()
    make = eqx.filter_jit(lambda base, key: case.build(base, key))
    wrapper = perturbed(make(base, jax.random.key(3)))
    eager = perturbed(case.build(base, jax.random.key(3)))
    compiled = eqx.filter_jit(lambda layer, inputs: case.call(layer, *inputs))(wrapper, inputs)
    error = relative_error(compiled, case.run(eager, inputs))
    require(
        error <= _TOLERANCE * 10,
        f"Compiled and eager outputs differ: relative error {error:.1e}.",
        "no Python `int()`, `float()` or `if` on array values in `__init__` or `__call__`.",
    )


def check_vmap(case: WrapperCase) -> None:
    """`vmap` over inputs gives what a loop gives."""
    trained = case.make_trained()
    several = [case.make_inputs(seed=seed) for seed in (21, 22, 23)]
    batch = jax.tree.map(lambda *xs: jnp.stack(xs), *several)
    together = jax.vmap(lambda inputs: case.run(trained, inputs))(batch)
    apart = jax.tree.map(lambda *ys: jnp.stack(ys), *(case.run(trained, x) for x in several))
    error = relative_error(together, apart)
    require(
        error <= _TOLERANCE,
        f"`vmap` and a loop differ: relative error {error:.1e}.",
        "write `__call__` for one input, without assumptions on its batch axes.",
    )


def check_constructor_vmap_and_scan(case: WrapperCase) -> None:
    """The constructor can be mapped over layers, and the stack run by `lax.scan`."""
    bases = [case.make_base(seed=seed) for seed in (31, 32)]
    keys = jax.random.split(jax.random.key(33), 2)
    stacked = _stack(bases)
    wrappers = perturbed(eqx.filter_vmap(case.build)(stacked, keys))
    arrays, static = eqx.partition(wrappers, eqx.is_array)
    inputs = case.make_inputs()

    def body(carry: None, arrays: Any) -> tuple[None, Any]:
        return carry, case.run(eqx.combine(arrays, static), inputs)

    _, scanned = jax.lax.scan(body, None, arrays)
    for index in range(2):
        one = case.run(_slice(wrappers, index), inputs)
        error = relative_error(_slice(scanned, index), one)
        require(
            error <= _TOLERANCE * 10,
            f"The mapped constructor's stack, run by `lax.scan`, differs from slice {index} alone: "
            f"{error:.1e}.",
            "keep everything that differs between layers in array fields.",
        )
    shapes = jax.tree.map(jnp.shape, eqx.filter(case.build(bases[0], keys[0]), eqx.is_array))
    sliced = jax.tree.map(lambda x: x.shape[1:], eqx.filter(wrappers, eqx.is_array))
    require(
        jax.tree.leaves(shapes) == jax.tree.leaves(sliced),
        "A mapped constructor gives other shapes than one call.",
        "derive shapes from the base's arrays, not from a stack around them.",
    )


_STACK_ADVICE = (
    "define `stack_ndim(leaf)`: how many axes come before one layer's own. Or answer `False` to "
    "stacked layers in `applies_to`."
)


def check_stacked_layers(case: WrapperCase) -> str | None:
    """A stacked layer that the adapter claims is adapted and merged slice by slice."""
    bases = [case.make_base(seed=seed) for seed in (41, 42)]
    stacked = _stack(bases)
    if not case.wrapper.applies_to(stacked):
        return "the adapter does not claim stacked layers"  # which is a right of every adapter
    try:
        _adapt_and_merge_a_stack(case, bases, stacked)
    except Exception as err:
        ndim = case.wrapper.stack_ndim(stacked)
        if isinstance(err, ConformanceError) or ndim == 1:
            raise
        # Told one layer, the adapter stumbles over the axis of the stack in whatever way.
        raise ConformanceError(
            f"`applies_to` claims a stack of layers, whose `stack_ndim` is {ndim}, and the adapter "
            f"cannot take it as one layer: {type(err).__name__}: {err}\n"
            f"What to do: {_STACK_ADVICE}"
        ) from err
    return None


def _adapt_and_merge_a_stack(case: WrapperCase, bases: list[Any], stacked: Any) -> None:
    adapted: Any = apply_lora(
        stacked,
        case.rank,
        case.alpha,
        key=jax.random.key(43),
        wrappers=case.wrapper,
        options=case.options,
    )
    trained = perturbed(adapted)
    plain: Any = merge_lora(trained) if case.mergeable else trained
    for index, base in enumerate(bases):
        one, layer = _slice(trained, index), _slice(plain, index)
        start = relative_error(case.run(_slice(adapted, index)), case.run(base))
        error = relative_error(case.run(layer), case.run(one))
        require(
            start <= _TOLERANCE and error <= 2 * _TOLERANCE,
            f"Slice {index} of a stacked layer: {start:.1e} from the layer at the start, merged "
            f"{error:.1e} from the adapter (relative).",
            _STACK_ADVICE,
        )


def check_eval_shape(case: WrapperCase) -> None:
    """`eqx.filter_eval_shape` of the constructor gives the shapes of a real one."""
    base = case.make_base()
    template = eqx.filter_eval_shape(case.build, base, jax.random.key(3))
    actual = case.build(base, jax.random.key(3))
    expected, got = (
        [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]
        for tree in (actual, template)
    )
    require(
        got == expected and jax.tree.structure(template) == jax.tree.structure(actual),
        f"Abstractly the constructor gives {got}, really it gives {expected}.",
        "make no leaf or static field depend on array values.",
    )


def check_checkpoint(case: WrapperCase) -> None:
    """Gradients under `eqx.filter_checkpoint` (rematerialisation) are the same."""
    trainable, frozen = split(case.make_trained())
    inputs = case.make_inputs()

    def loss(trainable: Any) -> Any:
        run = eqx.filter_checkpoint(lambda layer, inputs: case.call(layer, *inputs))
        return _sum(run(eqx.combine(trainable, frozen), inputs))

    error = relative_error(jax.grad(loss)(trainable), jax.grad(_loss)(trainable, frozen, case))
    require(
        error <= _TOLERANCE,
        f"Gradients with and without `filter_checkpoint` differ: {error:.1e}.",
        "keep `__call__` pure.",
    )


def check_no_lapack_in_step(case: WrapperCase) -> None:
    """The compiled forward and gradient call no LAPACK routine."""
    trainable, frozen = split(case.make_trained())
    arrays, static = eqx.partition(frozen, eqx.is_array)

    def loss(trainable: Any, arrays: Any) -> Any:
        return _loss(trainable, eqx.combine(arrays, static), case)

    text = jax.jit(jax.value_and_grad(loss)).lower(trainable, arrays).as_text()
    require(
        "lapack" not in text.lower(),
        "The step calls LAPACK (an inverse, solve, SVD or QR). Several such calls in one compiled "
        "step can wait for each other forever on a CPU with few cores.",
        "decompose in `__init__` only; in a step use matrix products or an elimination in JAX.",
    )


def _sum(output: Any) -> Any:
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(output))


def _loss(trainable: Any, frozen: Any, case: WrapperCase) -> Any:
    return _sum(case.run(eqx.combine(trainable, frozen)))


def _stack(layers: list[Any]) -> Any:
    def stack(*leaves: Any) -> Any:
        return jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0]

    return jax.tree.map(stack, *layers)


def _slice(stacked: Any, index: int) -> Any:
    return jax.tree.map(lambda x: x[index] if eqx.is_array(x) else x, stacked)
