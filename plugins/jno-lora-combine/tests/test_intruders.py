"""Intruder dimensions: found where they were put, and scaled down as the paper says."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    SelectionError,
    apply_lora,
    extract_adapters,
    merge_lora,
    swap_adapters,
)
from jno_lora_combine import reduce_intruders, report_intruders

SIZES = np.array([4.0, 3.0, 2.0, 1.0])


@pytest.fixture(scope="module")
def plain():
    """A weight with four known directions of six, and a stack of two of them."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (6, 5))
    W = jnp.asarray(U[:, :4] * SIZES @ V[:4])
    layer = eqx.nn.Linear(5, 6, use_bias=False, key=jax.random.key(0))
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(5, 6, use_bias=False, key=key))(
        jax.random.split(jax.random.key(0), 2)
    )
    with jax.enable_x64(True):
        layer = eqx.tree_at(lambda layer: layer.weight, layer, jnp.asarray(W, jnp.float64))
        stack = eqx.tree_at(lambda layer: layer.weight, stack, jnp.stack([layer.weight] * 2))
    return {"layer": layer, "stack": stack}, U, V


def adapted(plain):
    """With an update of size 5 along a direction of outputs that the weight lacks.

    The second slice of the stack keeps its weight.
    """
    model, U, V = plain
    with jax.enable_x64(True):
        model = apply_lora(model, 1, 2.0, key=jax.random.key(1), wrapper="lora")
        A, B = jnp.asarray(V[4:5]), jnp.asarray(2.5 * U[:, 4:5])
        factors = lambda m: [getattr(m[n], f) for n in m for f in ("lora_A", "lora_B")]  # noqa: E731
        return eqx.tree_at(factors, model, [A, B, jnp.stack([A, A]), jnp.stack([B, 0 * B])])


def test_an_intruder_is_found_where_it_was_put(plain):
    report = report_intruders(adapted(plain), top=3)
    rows = {row.label: row for row in report}
    assert {label: row.intruders for label, row in rows.items()} == {
        "layer": (0,),
        "stack[0]": (0,),
        "stack[1]": (),
    }
    np.testing.assert_allclose(rows["layer"].similarities, (0, 1, 1), atol=1e-6)
    np.testing.assert_allclose(rows["layer"].energy, 25 / (25 + np.sum(SIZES**2)), rtol=1e-6)
    assert rows["layer"].shape == (6, 5) and rows["stack[1]"].energy == 0
    assert "6 x 5" in str(report) and "45.5%" in str(report)
    assert repr(report) == "IntruderReport(2 intruders in 3 matrices)"


def test_intruders_are_scaled_down_exactly(plain):
    model, U, V = plain
    moved = adapted(plain)
    with jax.enable_x64(True):
        reduced = reduce_intruders(extract_adapters(moved), model, factor=0.6)
        weight = merge_lora(swap_adapters(model, reduced))
        before, after = (np.asarray(m["layer"].weight) for m in (model, weight))
        np.testing.assert_allclose(after, before + 0.6 * 5 * U[:, 4:5] @ V[4:5], atol=1e-6)
        first, second = np.asarray(weight["stack"].weight)
        np.testing.assert_allclose(first, after, atol=1e-6)
        np.testing.assert_allclose(second, before, atol=1e-6)
        assert reduced["layer"].rank == reduced["stack"].rank == 2


def test_random_updates_against_the_formula(plain):
    """Also where the rank would exceed the matrix; of rsLoRA, whose scale is another."""
    rng = np.random.default_rng(1)
    W = rng.normal(size=(6, 5))
    with jax.enable_x64(True):
        layer = eqx.tree_at(lambda m: m.weight, plain[0]["layer"], jnp.asarray(W))
        moved = apply_lora(layer, 4, 2.0, key=jax.random.key(1), wrapper="rslora")
        factors = [jnp.asarray(rng.normal(size=shape)) for shape in ((4, 5), (6, 4))]
        moved = eqx.tree_at(lambda m: [m.lora_A, m.lora_B], moved, factors)
        reduced = reduce_intruders(extract_adapters(moved), moved, factor=0, top=3, threshold=0.9)
        actual = np.asarray(merge_lora(swap_adapters(layer, reduced)).weight)
    A, B = map(np.asarray, factors)
    adapted_weight = W + 2 / np.sqrt(4) * B @ A
    U, S, Vt = np.linalg.svd(adapted_weight)
    cosines = np.max(np.abs(np.linalg.svd(W, full_matrices=False)[0].T @ U[:, :3]), axis=0)
    intruders = [j for j in range(3) if cosines[j] < 0.9]
    assert len(intruders) >= 2
    expected = adapted_weight - (U[:, intruders] * S[intruders]) @ Vt[intruders]
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_calls_that_make_no_sense_are_refused(plain):
    with pytest.raises(SelectionError, match="The model has no adapters"):
        report_intruders(plain[0])
    for changed, message in (
        ({"top": 0}, "`top` must be an integer of at least 1, but is 0"),
        ({"threshold": 1.5}, "`threshold` must be .*, but is 1.5"),
        ({"factor": -1}, "`factor` must be a number of 0 or more, but is -1"),
    ):
        with pytest.raises(SelectionError, match=message):
            reduce_intruders(extract_adapters(adapted(plain)), plain[0], **changed)
