"""LoKr: the product is never formed in the forward pass, and is padded and cut where it must be."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import Adapter, assert_close, build, each, perturb, shapes_in_jaxpr
from zoo_cases.layers import matrix_of

from jno_lora_zoo import LoKrConv, LoKrConvTranspose

sizes = pytest.mark.parametrize(
    ("out", "inputs", "rank"), [(8, 6, 2), (8, 7, 3), (7, 9, 4), (6, 5, 5), (5, 12, 1)]
)


@sizes
def test_the_forward_pass_forms_nothing_as_large_as_the_weight(out, inputs, rank):
    layer = eqx.nn.Linear(inputs, out, key=jax.random.key(0))
    wrapper = perturb(build(Adapter("LoKr", "Linear"), layer, rank=rank))
    shapes = shapes_in_jaxpr(lambda w, x: w(x), wrapper, jnp.ones(inputs))
    if rank == 1:  # B itself is as large as the weight, and is transposed
        shapes -= {wrapper.kron_B.shape, wrapper.kron_B.T.shape}
    assert shapes
    assert max(np.prod(shape, dtype=int) for shape in shapes) < out * inputs


@sizes
@each("LoKr")
def test_the_update_is_the_product_cut_to_the_weight(adapter, out, inputs, rank):
    if adapter.kind == "Linear":
        layer = eqx.nn.Linear(inputs, out, key=jax.random.key(0))
        x = jnp.linspace(-1, 1, inputs)
    else:
        layer = eqx.nn.Conv1d(inputs, out, 1, key=jax.random.key(0))
        x = jnp.linspace(-1, 1, 3 * inputs).reshape(inputs, 3)
    wrapper = perturb(build(adapter, layer, rank=rank))
    A, B = (np.asarray(a).astype(np.float64) for a in (wrapper.kron_A, wrapper.kron_B))
    update = 3.0 / rank * np.kron(A, B)[:out, :inputs]
    merged = wrapper.merge()
    assert_close(matrix_of(merged) - matrix_of(layer), update, 1e-5)
    assert_close(wrapper(x), merged(x), 1e-5)


@pytest.mark.parametrize("layer", [eqx.nn.Conv1d, eqx.nn.ConvTranspose1d])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_small_update_of_a_convolution_survives_half_precision(layer, dtype):
    base = layer(2, 2, 1, use_bias=False, key=jax.random.key(0), dtype=dtype)
    base = eqx.tree_at(lambda m: m.weight, base, jnp.ones_like(base.weight))
    cls = LoKrConv if layer is eqx.nn.Conv1d else LoKrConvTranspose
    wrapper = cls(base, 2, 2.0, key=jax.random.key(1))
    arrays = (jnp.eye(2), jnp.array([[1e-3]]))
    wrapper = eqx.tree_at(lambda w: (w.kron_A, w.kron_B), wrapper, arrays)
    # The weights cancel, and 1 + 1e-3 is 1 in half precision or nearly so.
    out = wrapper(jnp.array([[100.0], [-100.0]], dtype))
    np.testing.assert_allclose(out.astype(jnp.float32), [[0.1], [-0.1]], rtol=1e-2)
