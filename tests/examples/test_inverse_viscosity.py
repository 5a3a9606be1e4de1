"""The example of an inverse problem."""

import jax.numpy as jnp
import numpy as np


def test_the_example_runs(example, capsys):
    true, recovered = example.main(["--quick"])
    assert true.shape == recovered.shape == (8,)
    assert jnp.all(jnp.isfinite(recovered))
    assert "5 layers move by Powers" in capsys.readouterr().out


def test_a_wave_decays_as_it_should(example):
    # Where a wave is small, the equation is the heat equation.
    x = jnp.linspace(0, 2 * jnp.pi, 64, endpoint=False)
    decayed = example.solve(1e-3 * jnp.sin(2 * x), 0.1)
    np.testing.assert_allclose(decayed, 1e-3 * jnp.exp(-0.4) * jnp.sin(2 * x), atol=1e-6)
