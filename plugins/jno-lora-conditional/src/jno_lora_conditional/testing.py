"""Checks of the promises that a `Conditional` makes, for the author of an adapter.

```python
import equinox as eqx
import jax
import jax.numpy as jnp
from jno_lora_conditional.testing import check_conditional


def test_conditional():
    layer = eqx.nn.Linear(6, 4, key=jax.random.key(0))
    check_conditional(MyAdapter, layer, jnp.linspace(-1, 1, 6))
```
"""

import operator
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jno.lora import JnoLoraError, Net
from jno.lora.extending import adapted_layers, bullets
from jno_lora_testing import ConformanceError

from ._bases import Basis, Indexed, Network, Powers
from ._conditional import Conditional, at, merge
from ._files import load_conditional, save_conditional
from ._hats import Hats
from ._laws import LAWS, Results

__all__ = ["check_conditional", "trained_at_random"]

_STEP = 1e-5  # of central differences, whose error is the square of the step


def check_conditional(
    wrapper: Any,
    layer: eqx.Module,
    *inputs: Any,
    rank: int = 2,
    options: Mapping[str, Any] = MappingProxyType({}),
    statistics: Any = None,
    basis: Basis | None = None,
    moving: Mapping[str, Sequence[str]] = MappingProxyType({}),
    exact: bool = True,
    film: bool = False,
    rounding: float | None = None,
    call: Callable[..., Any] = operator.call,
) -> Conditional:
    """Check that the adapters `wrapper` of `layer` are functions of a parameter, as promised.

    Every trained array gets random values first. Then, in float64 (`source` in float32):

    | law | what holds |
    |---|---|
    | `source` | at the source, call and merged layer are the plain layer, bit for bit |
    | `acts` | another parameter gives another output |
    | `merge` | the merged layer at a parameter gives the output of the call |
    | `map` | `jax.vmap` over parameters gives the outputs of a loop, with one trace |
    | `derivative` | the derivative in the parameter is finite, and equals central differences |
    | `gradients` | the gradients of all trained arrays are finite |
    | `file` | a file gives every array back, bit for bit |

    All laws share one compiled program, which takes about a second.

    **Arguments:**

    - `wrapper`: the class of the adapter, or a name or variant, as `Net.lora` takes it.
    - `layer`, `inputs`: a small layer, or a model, and the inputs of one call. Quantised weights
        have no float64.
    - `rank`, `options`, `statistics`: as `Net.lora` takes them.
    - `basis`: by default `Powers(source=0.5, degree=2)`.
    - `moving`, `exact`, `film`: as `Conditional` takes them.
    - `rounding`: the relative error that the *call* may have at the source, by default 0, and
        1e-6 without `exact`. A call that divides and multiplies by a norm cannot be exact.
    - `call`: calls the layer with the inputs.

    **Returns:** the conditional that was checked, in float64.

    **Raises:** `ConformanceError` that names the law, what happened, and what to do; errors of
    `Net.lora` and `Conditional` as they are.
    """
    basis = Powers(source=0.5, degree=2) if basis is None else basis
    with jax.enable_x64(True):
        layer, inputs, statistics = _cast((layer, inputs, statistics), jnp.float64)
        net = Net(layer).freeze()
        net.lora(rank=rank, wrapper=wrapper, options=options, statistics=statistics)
        names = {type(adapter).__name__ for _, adapter in adapted_layers(net.module)}
        conditional = Conditional(
            net, _cast(basis, jnp.float64), moving=moving, exact=exact, film=film
        )
        conditional = trained_at_random(conditional)
        if rounding is None:
            rounding = 0.0 if exact else 1e-6
        allowed = rounding, 0.0 if exact else 1e-12
        results = _results(conditional, layer, inputs, call, ", ".join(sorted(names)), allowed)
        classes = tuple({type(adapter) for _, adapter in adapted_layers(net.module)})
        results = results._replace(file_problem=_problem_of_file(conditional, layer, classes))
    problems = [f"[{law}] {problem}" for law, check in LAWS.items() if (problem := check(results))]
    if problems:
        raise ConformanceError(f"{results.name} cannot be conditional:\n{bullets(problems)}")
    return conditional


def _problem_of_file(conditional: Conditional, layer: PyTree, classes: tuple[type, ...]) -> str:
    basis = conditional.basis
    given = None if type(basis) in (Hats, Indexed, Network, Powers) else basis
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "conditional.safetensors"
            save_conditional(conditional, path)
            loaded = load_conditional(path, layer, basis=given, wrappers=classes)
    except (JnoLoraError, OSError) as err:
        return f"{type(err).__name__}: {err}"
    is_same = eqx.tree_equal(_arrays(loaded), _arrays(conditional))
    return "" if is_same else "the arrays that come back differ from the arrays that were saved"


def _arrays(conditional: Conditional) -> PyTree:
    return eqx.filter(conditional, eqx.is_array)


def trained_at_random(conditional: Conditional, size: float = 0.3, seed: int = 0) -> Conditional:
    """`conditional` with random changes of every trained array, as if it had been trained.

    **Arguments:** `size`: the standard deviation of the changes, relative to `1 + |x|`.
    """
    trainable, _ = conditional.partition()
    leaves, structure = jax.tree.flatten(trainable)
    rng = np.random.default_rng(seed)

    def changed(leaf: Any) -> Any:
        values = np.asarray(leaf)  # NumPy compiles nothing
        noise = size * rng.normal(size=leaf.shape) * (1 + np.abs(values))
        return jnp.asarray((values + noise).astype(values.dtype))

    return conditional.update(jax.tree.unflatten(structure, [changed(leaf) for leaf in leaves]))


def _results(
    conditional: Conditional,
    plain: PyTree,
    inputs: tuple[PyTree, ...],
    given: Callable[..., PyTree],
    name: str,
    allowed: tuple[float, float],
) -> Results:
    basis = conditional.basis
    source = jnp.asarray(basis.source, float)
    away = source + jnp.asarray(0.4 + 0.1 * np.arange(source.size).reshape(source.shape))
    steps = _STEP * jnp.eye(source.size).reshape(-1, *source.shape)
    # Places of the central differences: `(2, p, ...)`, with a step back and a step on.
    beside = [z[None] + sign * steps for z in (source, away) for sign in (-1, 1)]
    zs = jnp.concatenate([away[None], *beside, source[None]])
    mergeable = all(type(adapter).mergeable for _, adapter in adapted_layers(conditional.model))
    traces: list[None] = []

    def call(layer: PyTree, *inputs: PyTree) -> PyTree:
        # Some inputs (e3nn's) remember what was computed from them, so each call gets new ones.
        return given(layer, *jax.tree.map(jnp.asarray, inputs))

    @eqx.filter_jit
    def program(conditional: PyTree, plain: PyTree, inputs: PyTree, zs: Array) -> PyTree:
        def output(z: Array) -> Array:
            return _numbers(call(at(conditional, z), *inputs))

        def counted(z: Array) -> Array:
            traces.append(None)
            return output(z)

        def loss(trainable: PyTree, frozen: PyTree) -> Array:
            model = at(eqx.combine(trainable, frozen), away)
            return jnp.sum(_numbers(call(model, *inputs)) ** 2)

        def along(z: Array) -> Array:
            return jax.vmap(lambda step: jax.jvp(output, (z,), (step,))[1])(steps / _STEP)

        with_values = eqx.tree_at(lambda c: c.basis, conditional, basis)
        computed = {
            "plain": _numbers(call(*_cast((plain, *inputs), jnp.float32))),
            "source": _numbers(call(*_cast((at(conditional, zs[-1]), *inputs), jnp.float32))),
            "looped": jax.lax.map(output, zs),
            "mapped": jax.vmap(counted)(zs),
            # At a parameter with a value, the fields are sums of their directions.
            "summed": _numbers(call(at(with_values, away), *inputs)),
            "derivatives": jax.vmap(along)(jnp.stack([source, away])),
            "gradients": jax.grad(loss)(*conditional.partition()),
        }
        if mergeable:
            both = eqx.filter_vmap(lambda z: merge(conditional, z))(jnp.stack([source, away]))
            arrays, static = eqx.partition(both, eqx.is_array)
            at_source, merged = (jax.tree.map(operator.itemgetter(i), arrays) for i in (0, 1))
            computed["merged"] = _numbers(call(eqx.combine(merged, static), *inputs))
            computed["source_weights"], computed["plain_weights"] = map(
                _numbers, (at_source, plain)
            )
        return computed

    try:
        values = program(conditional, plain, inputs, zs)
    except jax.errors.ConcretizationTypeError as err:
        raise ConformanceError(
            f"{name} cannot be conditional: the call, or `merge`, needs the values of its fields "
            f"while it is traced, so that it cannot be compiled for all parameters: {err}"
        ) from err
    beside_values = values["looped"][1:-1].reshape(2, 2, source.size, -1)
    paths = jax.tree_util.tree_leaves_with_path(values.pop("gradients"))
    return Results(
        name=name,
        differences=(beside_values[:, 1] - beside_values[:, 0]) / (2 * _STEP),
        gradients={jax.tree_util.keystr(keys): leaf for keys, leaf in paths},
        traces=len(traces),
        allowed=allowed,
        **{"merged": None, "plain_weights": None, "source_weights": None, **values},
    )


def _cast(tree: PyTree, dtype: Any) -> Any:
    """`tree` with its floating arrays in `dtype`, and its complex arrays in the same precision."""

    def cast(leaf: Any) -> Any:
        if not eqx.is_inexact_array(leaf):
            return leaf
        is_complex = jnp.iscomplexobj(leaf)
        return leaf.astype(np.promote_types(dtype, np.complex64) if is_complex else dtype)

    return jax.tree.map(cast, tree)


def _numbers(output: PyTree) -> Float[Array, " n"]:
    """The floating and complex arrays of an output, as one vector."""
    leaves = [leaf for leaf in jax.tree.leaves(output) if eqx.is_inexact_array(leaf)]
    parts = [
        part.ravel()
        for leaf in leaves
        for part in ((leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,))
    ]
    return jnp.concatenate(parts)
