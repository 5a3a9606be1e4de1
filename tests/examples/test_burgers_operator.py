"""The example of a neural operator: its solver is right, and all of it runs."""

import jax
import jax.numpy as jnp
import numpy as np


def cole_hopf(u, viscosity):
    """The exact solution at time 1, by the Cole-Hopf transformation: exp(-U / 2 nu) diffuses."""
    n = u.size
    k = np.fft.rfftfreq(n, 1 / n)
    u_k = np.fft.rfft(u)
    potential = np.fft.irfft(np.where(k > 0, u_k / np.where(k > 0, 1j * k, 1), 0), n)
    phi_k = np.fft.rfft(np.exp(-(potential - potential.min()) / (2 * viscosity)))
    phi_k = phi_k * np.exp(-viscosity * k**2)
    return -2 * viscosity * np.fft.irfft(1j * k * phi_k, n) / np.fft.irfft(phi_k, n)


def test_the_solver_agrees_with_the_exact_solution(example):
    fields = example.initial_fields(jax.random.key(3), 4)
    assert jnp.abs(fields.mean(axis=1)).max() < 1e-5  # which the transformation asks for
    # Where fronts are steeper, the transformation loses its digits.
    for viscosity, size in ((0.1, 1.0), (0.02, 0.2)):
        solutions = np.asarray(example.solve(size * fields, viscosity))
        for field, solution in zip(np.asarray(size * fields, np.float64), solutions, strict=True):
            exact = cole_hopf(field, viscosity)
            assert np.linalg.norm(solution - exact) < 1e-4 * np.linalg.norm(exact)


def test_the_example_runs(example, tmp_path, capsys):
    errors = example.main(["--quick", "--output", str(tmp_path / "burgers.png")])
    assert list(errors) == ["full fine-tuning", "lora"]
    assert all(0 < value < 2 for values in errors.values() for value in values)
    assert (tmp_path / "burgers.png").read_bytes().startswith(b"\x89PNG")
    assert "pretrained: error" in capsys.readouterr().out
