"""Checks of derivatives with respect to a layer's input, which physics-informed losses need.

Each layer is restricted to a plane through the case's inputs, because derivatives with respect to
two numbers are cheap to compile.
"""

import traceback
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.jet import jet
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._case import NOT_MERGEABLE, WrapperCase
from ._comparisons import require, require_close
from ._conformance import advice, required, skip_unless
from ._programs import loss_of, merged, require_gradients_of_merge
from ._symmetries import Call, Inputs

_TOLERANCE = 2e-4
_ORIGIN = np.zeros(2, np.float32)
_ORDER = 3

DERIVATIVES: dict[str, Callable[[Callable[..., Array]], Callable[..., Array]]] = {
    "grad": jax.grad,
    "jacfwd(jacfwd)": lambda f: jax.jacfwd(jax.jacfwd(f)),
    "jacrev(jacrev)": lambda f: jax.jacrev(jax.jacrev(f)),
    "hessian": jax.hessian,
    "jacfwd(hessian)": lambda f: jax.jacfwd(jax.hessian(f)),
}


@required(
    "use only operations on the input that JAX can differentiate repeatedly: no `stop_gradient`, "
    "and no custom rule that is only correct to first order."
)
def check_input_derivatives(case: WrapperCase) -> None:
    """Derivatives with respect to the input equal the merged layer's, up to the third order."""
    plane = _plane(case)
    names = tuple(name for name in DERIVATIVES if _can(case, plane, _derivatives, (name,)))
    skip_unless(names, "the layer itself cannot be differentiated")
    trained = case.make_trained()
    expected = _derivatives(merged(trained), case.call, plane, names)
    got = _derivatives(trained, case.call, plane, names)
    for name in names:
        problem = f"`{name}` with respect to the input differs from the merged layer's"
        require_close(got[name], expected[name], _TOLERANCE, problem)
    zero = eqx.tree_at(lambda node: node.point, plane, jax.tree.map(jnp.zeros_like, plane.point))
    expected = _derivatives(merged(trained), case.call, zero, names)
    got = _derivatives(trained, case.call, zero, names)
    for name in names:
        problem = f"At an input of zeros, `{name}` is not finite, but the merged layer's is"
        require(np.all(np.isfinite(got[name])) or not np.all(np.isfinite(expected[name])), problem)


@required(
    "keep operations on the input out of functions with `jax.custom_jvp` or `jax.custom_vjp`, "
    "whose rules `jet` ignores: compute the value outside, and return it from the function."
)
def check_input_jet(case: WrapperCase) -> None:
    """Taylor terms (`jax.experimental.jet`) along the input equal the merged layer's."""
    plane = _plane_for_jet(case)
    skip_unless(not _gap_of_jet(case, plane), "`jet` has a gap, which `jet-rules` names")
    trained = case.make_trained()
    got = _taylor_terms(trained, case.call, plane)
    expected = _taylor_terms(merged(trained), case.call, plane)
    problem = "The Taylor terms that `jet` gives differ from the merged layer's"
    require_close(got, expected, _TOLERANCE, problem)


@advice(
    "this is a gap in JAX that only affects Taylor mode. To support it, use other operations: "
    "`jnp.where` instead of `jnp.clip` and `.at[...].set`."
)
def check_jet_rules(case: WrapperCase) -> None:
    """JAX's Taylor mode (`jax.experimental.jet`) supports every operation of the call."""
    gap = _gap_of_jet(case, _plane_for_jet(case))
    require(not gap, f"`jax.experimental.jet` itself fails at an operation of the call: {gap}")


@required(
    "don't treat trainable arrays as constants in derivatives by the input, by a custom rule or a "
    "`stop_gradient`."
)
def check_residual_gradients(case: WrapperCase) -> None:
    """The gradients of a loss of the Laplacian equal the gradients through `merge()`."""
    plane = _plane(case)
    has_hessian = _can(case, plane, _derivatives, ("hessian",))
    skip_unless(has_hessian, "`hessian` cannot differentiate the layer itself")
    problem = "The gradients of a loss of the Laplacian differ from those through `merge()`"
    require_gradients_of_merge(case, _residual_gradients, plane, _TOLERANCE, problem)


class _Plane(eqx.Module):
    """An input point, with a direction for each Taylor term."""

    point: PyTree
    directions: list[PyTree]
    fixed: PyTree

    def at(self, t: Float[Array, "2"]) -> Inputs:
        """The inputs at `t` in the plane of the first two directions."""

        def move(x: Array, u: Array, v: Array, *_: Array) -> Array:
            along_u, along_v = t.astype(x.dtype)
            return x + along_u * u + along_v * v

        return eqx.combine(jax.tree.map(move, self.point, *self.directions), self.fixed)


def _plane(case: WrapperCase) -> _Plane:
    """A plane through the case's inputs, if the merged layer can be compared on it."""
    skip_unless(case.mergeable, NOT_MERGEABLE)
    point, fixed = eqx.partition(case.make_inputs(), eqx.is_inexact_array)
    leaves, form = jax.tree.flatten(point)
    skip_unless(leaves, "no input of the layer is a floating array")
    length = sum(leaf.size for leaf in leaves) ** 0.5

    def direction(key: PRNGKeyArray) -> PyTree:
        pairs = zip(leaves, jax.random.split(key, len(leaves)), strict=True)
        drawn = [jax.random.normal(key, leaf.shape, leaf.dtype) / length for leaf, key in pairs]
        return jax.tree.unflatten(form, drawn)

    keys = jax.random.split(jax.random.key(8), _ORDER)
    return _Plane(point, [direction(key) for key in keys], fixed)


def _plane_for_jet(case: WrapperCase) -> _Plane:
    plane = _plane(case)
    skip_unless(_can(case, plane, _taylor_terms), "`jet` cannot follow the layer itself")
    return plane


def _gap_of_jet(case: WrapperCase, plane: _Plane) -> str:
    """The exception that `jet` itself raises for the adapter, or an empty text."""
    try:
        _taylor_terms(case.make_trained(), case.call, plane)
    except jax.errors.UnexpectedTracerError:
        return ""  # an author's rule that `jet` ignores
    except Exception as err:
        frames = traceback.walk_tb(err.__traceback__)
        modules = [frame.f_globals.get("__name__", "") for frame, _ in frames]
        callers = [module for module in modules if not module.startswith("jax._src.")]
        return f"{type(err).__name__}: {err}" if callers[-1] == jet.__module__ else ""
    return ""


def _can(case: WrapperCase, plane: _Plane, function: Call, *args: object) -> bool:
    """Whether the layer without an adapter can be differentiated in this way."""
    try:
        eqx.filter_eval_shape(function, case.make_base(), case.call, plane, *args)
    except Exception:  # a missing rule may raise anything
        return False
    return True


def _along(layer: PyTree, call: Call, plane: _Plane) -> Callable[[Array], Array]:
    """A function of the plane, whose value depends on every output of the layer."""
    return lambda t: loss_of(call(layer, *plane.at(t)))


# The functions below take only arrays and `case.call`, so that each is compiled once for all
# adapters of layers with the same form.


@eqx.filter_jit
def _derivatives(layer: PyTree, call: Call, plane: _Plane, names: tuple[str, ...]) -> PyTree:
    number = _along(layer, call, plane)
    return {name: DERIVATIVES[name](number)(_ORIGIN) for name in names}


@eqx.filter_jit
def _taylor_terms(layer: PyTree, call: Call, plane: _Plane) -> PyTree:
    """The layer's outputs along a curve whose Taylor terms are the directions."""
    leaves, form = jax.tree.flatten(plane.point)

    def outputs(*leaves: Array) -> list[Array]:
        inputs = eqx.combine(jax.tree.unflatten(form, leaves), plane.fixed)
        return jax.tree.leaves(call(layer, *inputs))

    series = [list(terms) for terms in zip(*map(jax.tree.leaves, plane.directions), strict=True)]
    return jet(outputs, tuple(leaves), tuple(series))


@eqx.filter_jit
def _residual_gradients(varied: PyTree, fixed: PyTree, call: Call, plane: _Plane) -> PyTree:
    """The gradients of a squared residual of the layer's Laplacian."""

    def loss(varied: PyTree) -> Array:
        number = _along(eqx.combine(varied, fixed), call, plane)
        return (jnp.trace(jax.hessian(number)(_ORIGIN)) - 1) ** 2

    return jax.grad(loss)(varied)
