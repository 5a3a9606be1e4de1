"""The parts of JAX that `_jax.py` uses: each test names a change of JAX and what it breaks."""

import jax
import jax.numpy as jnp
import pytest

from jno.lora.extending import equations_in
from jno_lora_arrays._tracing import _jax
from jno_lora_arrays._tracing._calls import CALLS
from jno_lora_arrays._tracing._marks import MarkedName
from jno_lora_arrays._tracing._rules import RULES

X, W = jnp.ones((2, 3)), jnp.ones((3, 3))


def equations(function, *args):
    return jax.make_jaxpr(function)(*args).jaxpr


def test_a_scan_tells_its_constants_from_what_it_carries():
    """Else a weight that is scanned would be taken for one that is the same in every step."""
    (scan,) = equations(
        lambda x, w: jax.lax.scan(lambda c, w: (c @ w + x, c), x, w), X, jnp.ones((5, 3, 3))
    ).eqns
    assert _jax.counts_of_scan(scan) == (1, 1)
    assert {"jaxpr", "length", "reverse", "unroll"} <= set(scan.params)


@pytest.mark.parametrize("transform", [lambda f: f, jax.vmap, jax.grad, jax.checkpoint])
def test_calls_of_jitted_functions_keep_the_object_that_is_their_name(transform):
    """Else reads of weights would lose their marks, and be merged."""

    def function(x):
        return jnp.sum(x * x)

    function.__name__ = name = MarkedName("marked")
    jaxpr = equations(jax.jit(transform(jax.jit(function))), X)
    assert any(eqn.params.get("name") is name for eqn in equations_in(jaxpr))


def test_inner_functions_are_found_closed_or_open():
    """Else reads of weights in `jit`, `scan` or a branch would be merged."""
    (eqn,) = equations(jax.jit(lambda x, w: x @ w), X, W).eqns
    (inner,) = _jax.jaxprs_in(eqn)
    assert [one.primitive.name for one in inner.eqns] == ["dot_general"]
    traced, consts = _jax.opened(eqn.params["jaxpr"])
    assert traced is inner and len(consts) == 0


def test_functions_with_rules_of_their_own_hold_the_function():
    """Else `infer` could not look into them."""
    jvp, vjp = jax.custom_jvp(lambda w: X @ w), jax.custom_vjp(lambda w: X @ w)
    jvp.defjvp(lambda w, t: (X @ w[0], X @ t[0]))
    vjp.defvjp(lambda w: (X @ w, ()), lambda _, g: (X.T @ g,))
    for function in (jvp, vjp):
        (eqn,) = equations(function, W).eqns
        assert eqn.primitive.name in CALLS
        inner, _ = _jax.opened(_jax.custom_function(eqn))
        assert inner.eqns[-1].primitive.name == "dot_general"


def test_a_shard_map_names_its_mesh_and_axes():
    """Else a weight that is given to a `shard_map` could not be taken apart."""
    mesh = jax.make_mesh((2,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec(None, "a")
    mapped = jax.shard_map(lambda w: 2 * w, mesh=mesh, in_specs=spec, out_specs=spec)
    (eqn,) = equations(mapped, jnp.ones((3, 4))).eqns
    assert _jax.manual_axes(eqn) == {"a"}
    assert {"mesh", "in_specs", "out_specs", "check_vma", "jaxpr"} <= set(eqn.params)


def test_equations_have_contexts_and_scopes():
    """Else profiles would lose the names of layers."""

    def function(x):
        with jax.named_scope("inner"):
            return jnp.sin(x)

    (eqn,) = equations(function, X).eqns
    with _jax.context_of(eqn):
        (again,) = jax.make_jaxpr(jnp.cos)(X).jaxpr.eqns
    assert str(eqn.source_info.name_stack) == "inner"
    assert again.primitive.name == "cos"


def test_equations_are_evaluated_alone_and_in_groups():
    """`Jaxpr.replace`, `debug_info` and `eval_jaxpr`."""
    jaxpr = equations(lambda x: jnp.sin(x) + jnp.cos(x), X)
    env = _jax.evaluate_plainly(jaxpr, jaxpr.eqns, {jaxpr.invars[0]: X})
    assert jnp.allclose(env[jaxpr.outvars[0]], jnp.sin(X) + jnp.cos(X))


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda w: X @ w.T.astype(jnp.bfloat16).astype(jnp.float32), {"transpose", "dot_general"}),
        (lambda w: (w.reshape(9), -w, w + w, 2.0 * w, w[None]), {"reshape", "neg", "add", "mul"}),
        (lambda w: w[jnp.array([0, 1])], {"gather"}),
        (lambda w: (w[1:2], jax.lax.dynamic_slice(w, (0, 0), (2, 2))), {"slice", "dynamic_slice"}),
        (lambda w: jax.lax.ragged_dot(X, w[None], jnp.array([2])), {"ragged_dot_general"}),
        (
            lambda w: jax.lax.conv(w[None, None], w[None, None], (1, 1), "SAME"),
            {"conv_general_dilated"},
        ),
        (lambda w: jax.lax.complex(w, w), {"complex"}),
        (jax.checkpoint(jnp.sin), {"checkpoint", "remat", "remat2"}),
        (lambda w: jax.lax.cond(w[0, 0] > 0, lambda: w, lambda: -w), {"cond"}),
        (lambda w: jax.lax.while_loop(lambda w: w[0, 0] > 9, lambda w: -w, w), {"while"}),
    ],
)
def test_primitives_have_the_names_that_rules_have(function, names):
    """Else their uses would be merged, as the reports of `test_rules.py` show."""
    found = {eqn.primitive.name for eqn in equations(function, W).eqns}
    assert found & names
    assert found & names <= {*RULES, *CALLS}
