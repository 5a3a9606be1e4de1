"""Pseudo-spectral solvers on periodic domains, for the simulations of the study.

All solvers integrate the linear part exactly in Fourier space and the nonlinear part by the
fourth-order Runge-Kutta method. The 2/3 rule removes aliases of products.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

Rate = Callable[[Complex[Array, "..."]], Complex[Array, "..."]]


def burgers(
    u: Float[Array, "batch n"], *, viscosity: float, force: float = 0.0, steps: int = 400
) -> Float[Array, "batch n"]:
    """Solve `u_t + u u_x = viscosity u_xx + force sin(x)` on `[0, 2 pi)`, up to `t = 1`."""
    n = u.shape[-1]
    k = _wave_numbers(n)
    keep = k < n / 3
    forcing = jnp.fft.rfft(force * jnp.sin(_points(n)))

    def rate(v: Complex[Array, "batch k"]) -> Complex[Array, "batch k"]:
        return (
            -0.5j * k[None] * keep[None] * jnp.fft.rfft(_physical(v * keep[None], n) ** 2)
            + (forcing[None])
        )

    return _physical(_march(jnp.fft.rfft(u), -viscosity * k[None] ** 2, rate, 1.0, steps), n)


def korteweg_de_vries(
    u: Float[Array, "batch n"], *, dispersion: float, steps: int = 100
) -> Float[Array, "batch n"]:
    """Solve `u_t + u u_x + dispersion u_xxx = 0` on `[0, 2 pi)`, up to `t = 1`."""
    n = u.shape[-1]
    k = _wave_numbers(n)
    keep = (k < n / 3)[None]

    def rate(v: Complex[Array, "batch k"]) -> Complex[Array, "batch k"]:
        return -0.5j * k[None] * keep * jnp.fft.rfft(_physical(v * keep, n) ** 2)

    return _physical(_march(jnp.fft.rfft(u), 1j * dispersion * k[None] ** 3, rate, 1.0, steps), n)


def allen_cahn(
    u: Float[Array, "batch n"],
    *,
    velocity: float,
    diffusion: float,
    reaction: float,
    steps: int = 200,
) -> Float[Array, "batch n"]:
    """Solve `u_t + velocity u_x = diffusion u_xx + reaction (u - u^3)` on `[0, 2 pi)`, to `t = 1`.

    The linear part of the reaction is integrated exactly as well.
    """
    n = u.shape[-1]
    k = _wave_numbers(n)
    keep = (k < n / 4)[None]  # a product of three
    linear = reaction - diffusion * k**2 - 1j * velocity * k

    def rate(v: Complex[Array, "batch k"]) -> Complex[Array, "batch k"]:
        return -reaction * keep * jnp.fft.rfft(_physical(v * keep, n) ** 3)

    return _physical(_march(jnp.fft.rfft(u), linear[None], rate, 1.0, steps), n)


def navier_stokes(
    w: Float[Array, "batch n n"],
    *,
    viscosity: float,
    force: float = 0.0,
    time: float = 1.0,
    steps: int = 50,
) -> Float[Array, "batch n n"]:
    """Solve for the vorticity of a plane flow, `w_t + u . grad w = viscosity lap w + f`.

    The domain is `[0, 2 pi)^2`, the axes are `(x, y)`, and `f = force cos(2 y)` drives a shear flow
    (Kolmogorov's). The velocity `u` has the stream function `psi`, with `-lap psi = w`.
    """
    n = w.shape[-1]
    kx, ky = jnp.meshgrid(jnp.fft.fftfreq(n, 1 / n), _wave_numbers(n), indexing="ij")
    square = kx**2 + ky**2
    inverse = jnp.where(square == 0, 0.0, 1 / jnp.where(square == 0, 1.0, square))
    keep = (jnp.abs(kx) < n / 3) & (ky < n / 3)
    forcing = jnp.fft.rfft2(jnp.broadcast_to(force * jnp.cos(2 * _points(n))[None], (n, n)))

    def rate(v: Complex[Array, "batch kx ky"]) -> Complex[Array, "batch kx ky"]:
        v = v * keep[None]
        psi = v * inverse[None]
        modes = jnp.stack([1j * ky * psi, -1j * kx * psi, 1j * kx * v, 1j * ky * v])
        u_x, u_y, w_x, w_y = jnp.fft.irfft2(modes, (n, n))
        return -jnp.fft.rfft2(u_x * w_x + u_y * w_y) * keep[None] + forcing[None]

    v = _march(jnp.fft.rfft2(w), -viscosity * square[None], rate, time, steps)
    return jnp.fft.irfft2(v, (n, n))


def random_fields(key: Array, number: int, n: int, dims: int, modes: int) -> Array:
    """Random smooth periodic fields `(number, n, ...)` of mean 0 and variance 1.

    The Fourier coefficients up to `modes` are normal, with a spectrum that decays as a Gaussian.
    """
    k = jnp.stack(jnp.meshgrid(*[jnp.fft.fftfreq(n, 1 / n)] * dims, indexing="ij"))
    square = jnp.sum(k**2, axis=0)
    size = jnp.where((square > 0) & (square <= modes**2), jnp.exp(-2 * square / modes**2), 0.0)
    noise = jax.random.normal(key, (number, *[n] * dims))
    axes = tuple(range(1, dims + 1))
    fields = jnp.fft.ifftn(jnp.fft.fftn(noise, axes=axes) * size[None], axes=axes).real
    # White noise has n^dims coefficients of variance n^dims.
    return fields * jnp.sqrt(n**dims / jnp.sum(size**2))


def _march(v: Array, linear: Array, rate: Rate, time: float, steps: int) -> Array:
    """Integrate `v_t = linear v + rate(v)` by Runge-Kutta steps for `exp(-linear t) v`."""
    dt = time / steps
    half = jnp.exp(linear * dt / 2)

    def step(v: Array, _: None) -> tuple[Array, None]:
        a = rate(v)
        b = rate(half * (v + dt / 2 * a))
        c = rate(half * v + dt / 2 * b)
        d = rate(half**2 * v + dt * half * c)
        return half**2 * v + dt / 6 * (half**2 * a + 2 * half * (b + c) + d), None

    return jax.lax.scan(step, v, length=steps)[0]


def _wave_numbers(n: int) -> Float[Array, " k"]:
    return jnp.arange(n // 2 + 1).astype(float)


def _points(n: int) -> Float[Array, " n"]:
    return jnp.linspace(0, 2 * jnp.pi, n, endpoint=False)


def _physical(v: Complex[Array, "batch k"], n: int) -> Float[Array, "batch n"]:
    return jnp.fft.irfft(v, n)
