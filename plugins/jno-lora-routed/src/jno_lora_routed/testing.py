"""Checks for authors of routers, which must keep the promises of `Router`.

```python
from jno_lora_routed.testing import check_router


def test_router():
    check_router(MyRouter)
```
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jno.lora import WrapperError, extract_adapters, swap_adapters
from jno.lora.extending import bullets, path_str
from jno_lora_testing import ConformanceError

from ._routed import parts_of
from .adapters import MoELoRA
from .routers import Router

__all__ = ["check_router"]

_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
_TOLERANCE = 1e-5


def check_router(
    router: type[Router],
    *,
    inputs: int = 6,
    slots: int = 3,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Router:
    """Check that `router` keeps the promises of `Router`.

    | law | what holds |
    |---|---|
    | `shape` | the weights are `(slots,)`, for features `(inputs,)` |
    | `dtype` | they have the dtype of the features, in float32 and in half precision |
    | `finite` | they are finite, also for features that are zero or large |
    | `total` | their sum is `total()`, unless that is `None` |
    | `same` | equal features give equal weights, compiled or not |
    | `map` | `jax.vmap` over tokens gives each token the weights that it has alone |
    | `gradient` | every array that trains has a gradient, which is finite and not zero |
    | `arrays` | every leaf is an array, so that a stack of layers can be scanned |
    | `start` | an adapter with this router is the plain layer at first, bit for bit |
    | `file` | a router from a file gives the weights of the router that was saved |

    **Arguments:** `inputs`, `slots`: the sizes. `options`: further keywords of the constructor,
    which need defaults.

    **Returns:** the router that was checked.

    **Raises:** `ConformanceError` with the law, the problem and the remedy. `WrapperError` if
    `frozen` names something that is not a field.
    """
    key = jax.random.key(0)
    built = router(inputs, slots, key=key, dtype=jnp.float32, **options)
    random = np.random.default_rng(1)
    trainable, settings = parts_of(built)
    trainable = jax.tree.map(lambda x: x + random.normal(size=x.shape).astype(x.dtype), trainable)
    features = random.normal(size=(5, inputs)).astype(np.float32)
    given = _Given(router, eqx.combine(trainable, settings), jnp.asarray(features))
    problems: list[str] = []
    for law, check in _LAWS.items():
        try:
            problem = check(given)
        except Exception as err:  # a router may raise anything
            problem = f"{type(err).__name__}: {err}"
        if problem:
            problems.append(f"[{law}] {problem}")
    if problems:
        raise ConformanceError(f"{router.__name__} breaks its contract:\n{bullets(problems)}")
    return built


class _Given(NamedTuple):
    """A router with random numbers in its arrays, and features `(tokens, inputs)`."""

    cls: type[Router]
    router: Router
    features: Float[Array, "tokens in"]

    def weights(self, x: ArrayLike) -> Float[Array, " slots"]:
        return self.router(jnp.asarray(x))


def _shape(given: _Given) -> str:
    shape, slots = given.weights(given.features[0]).shape, given.router.slots
    return "" if shape == (slots,) else f"the weights are {shape}, for {slots} slots"


def _dtype(given: _Given) -> str:
    for dtype in _DTYPES:
        got = jax.eval_shape(given.router, jax.ShapeDtypeStruct(given.features[0].shape, dtype))
        if got.dtype != dtype:
            return (
                f"features in {jnp.dtype(dtype)} give weights in {got.dtype}: "
                "end with `.astype(x.dtype)`"
            )
    return ""


def _finite(given: _Given) -> str:
    for name, x in (("random", given.features[0]), ("zero", 0.0), ("large", 1e4)):
        weights = given.weights(np.full_like(given.features[0], x))
        if not np.all(np.isfinite(weights)):
            return f"the weights of {name} features are {weights}: guard divisions and logarithms"
    return ""


def _total(given: _Given) -> str:
    total = given.router.total()
    if total is None:
        return ""
    sums = np.sum(jax.vmap(given.router)(given.features), axis=1)
    if np.allclose(sums, total, atol=_TOLERANCE):
        return ""
    return f"`total()` is {total}, but the weights have the sums {sums}"


def _same(given: _Given) -> str:
    x = given.features[0]
    first, second, compiled = given.weights(x), given.weights(x), eqx.filter_jit(given.router)(x)
    if np.array_equal(first, second) and np.allclose(first, compiled, atol=_TOLERANCE):
        return ""
    return (
        f"one token has the weights {first}, then {second}, and {compiled} if it is compiled: "
        "draw random numbers from `key` alone, and only if it is given"
    )


def _map(given: _Given) -> str:
    mapped = jax.vmap(given.router)(given.features)
    alone = np.stack([given.weights(x) for x in given.features])
    if mapped.shape == alone.shape and np.allclose(mapped, alone, atol=_TOLERANCE):
        return ""
    return f"`vmap` gives the weights {mapped}, and each token alone {alone}: keep no state"


def _gradient(given: _Given) -> str:
    trainable, settings = parts_of(given.router)
    weigh = np.random.default_rng(2).normal(size=given.router.slots).astype(np.float32)

    def loss(trainable: Router) -> Float[Array, ""]:
        router = eqx.combine(trainable, settings)
        return jnp.sum(jnp.sin(jax.vmap(router)(given.features) @ weigh))

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.grad(loss)(trainable)):
        name = path_str(path)
        if not np.all(np.isfinite(leaf)):
            return f"the gradient of `{name}` is not finite"
        if not np.any(leaf):
            return f"the gradient of `{name}` is zero. An array that is not to train is `frozen`"
    return ""


def _arrays(given: _Given) -> str:
    for path, leaf in jax.tree_util.tree_leaves_with_path(given.router):
        if not eqx.is_array(leaf):
            return (
                f"`{path_str(path)}` is a {type(leaf).__name__}, and no array, so a stack of "
                "layers cannot be scanned: make it an array, or a static field "
                "(`eqx.field(static=True)`)"
            )
    return ""


def _adapter(given: _Given) -> tuple[MoELoRA, eqx.nn.Linear]:
    """An adapter with the router, and its layer.

    **Raises:** `WrapperError` if the constructor requires an option, because adapters pass none.
    """
    slots, inputs = given.router.slots, given.features.shape[1]
    try:
        given.cls(inputs, slots, key=jax.random.key(0), dtype=jnp.float32)
    except TypeError as err:
        raise WrapperError(f"options of the constructor need defaults: {err}") from err
    layer = eqx.nn.Linear(inputs, 4, key=jax.random.key(1))
    cls: type[MoELoRA] = type(
        "Checked", (MoELoRA,), {"router_class": given.cls, "__doc__": "Checked."}
    )
    return cls(layer, 2, 2.0, key=jax.random.key(2), experts=slots), layer


def _start(given: _Given) -> str:
    adapter, layer = _adapter(given)
    x = given.features
    if np.array_equal(jax.vmap(adapter)(x), jax.vmap(layer)(x)):
        return ""
    return "the adapter changes the layer before it is trained: the weights must be finite"


def _file(given: _Given) -> str:
    adapter, layer = _adapter(given)
    adapter = adapter.with_routing(given.router)
    restored: Any = swap_adapters(layer, extract_adapters(adapter))
    x = given.features[0]
    if np.array_equal(restored.routing(x), given.weights(x)):
        return ""
    return (
        "the router that comes back from a set gives other weights: it depends on a static field, "
        "which no file holds. Keep the number in an array"
    )


# By name, a function that returns the problem, or nothing.
_LAWS: dict[str, Callable[[_Given], str]] = {
    "shape": _shape,
    "dtype": _dtype,
    "finite": _finite,
    "total": _total,
    "same": _same,
    "map": _map,
    "gradient": _gradient,
    "arrays": _arrays,
    "start": _start,
    "file": _file,
}
