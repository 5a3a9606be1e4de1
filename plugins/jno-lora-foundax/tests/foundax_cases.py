"""One small layer of each class that this plugin adapts, how to call it, and laws in NumPy.

Every size differs where the layer allows it, so that no axis passes for another.
"""

import contextlib
import itertools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from foundax.architectures import common, deeponet, fno, geofno, pcno, unet
from jax_dpot.model_eqx import AFNO2D
from jax_mpp.avit_eqx import SubsampledLinear
from zoo_cases import perturb

from jno_lora_foundax import ModeWeights


@contextlib.contextmanager
def foundax_regime():
    """Settings that foundax's own calls need: they add a bias without reshaping it, multiply real
    numbers with `1j`, and write complex128 into complex64 when x64 is enabled.
    """
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "scatter inputs have incompatible", FutureWarning)
        yield


@eqx.filter_jit
def _compiled(layer: Any, inputs: tuple[Any, ...]) -> Any:
    return layer(*inputs)


def run(layer: Any, *inputs: Any) -> Any:
    """`layer(*inputs)` in that regime. Compiled: thousands of calls are made here, of few forms."""
    with foundax_regime():
        return _compiled(layer, inputs)


def run_strict(layer: Any, *inputs: Any) -> Any:
    """The same for layers that keep to our own regime."""
    return _compiled(layer, inputs)


def run_spectral(layer: Any, x: Any) -> Any:
    """The same, in float32 at least: a Fourier transform takes no half precision."""
    return run(layer, x.astype(jnp.float32 if x.dtype.itemsize < 4 else x.dtype))


def filled(make: Any, key: Any) -> Any:
    """`make(key)` with other random numbers: only its shapes are computed, so nothing compiled."""
    shapes = eqx.filter_eval_shape(make, key)
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        numbers = 0.3 * random.normal(size=leaf.shape) if is_float else np.zeros(leaf.shape)
        return jnp.asarray(numbers.astype(leaf.dtype))

    return jax.tree.map(fill, shapes)


def perturbed(model: Any, size: float = 0.3) -> Any:
    """`model` after some training, with noise on every array that trains."""
    return perturb(model, size)


def same_form(a: Any, b: Any) -> bool:
    """Whether two models have the same structure, classes, shapes and dtypes."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.shape == y.shape and x.dtype == y.dtype
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        if eqx.is_array(x) or eqx.is_array(y)
    )


class Layer(NamedTuple):
    """How to make a layer and the inputs of a call, and how to call it.

    `outputs` and `inputs` are the sizes of its matrix; of spectral weights `modes` counts the real
    numbers that one entry of it stands for, over all modes.
    """

    make: Callable[[Any], Any]
    data: Callable[[Any], tuple[Any, ...]]
    outputs: int
    inputs: int
    modes: int = 1
    call: Callable[..., Any] = run


def normal(*shape: int) -> Callable[[Any], tuple[Any, ...]]:
    """Makes one input of this shape."""
    return lambda key: (jax.random.normal(key, shape),)


def layer(
    cls: Any,
    *sizes: Any,
    data: Any,
    size: tuple[int, int],
    modes: int = 1,
    call: Any = run,
    **options,
) -> Layer:
    """A layer of this class, whose matrix has this size."""
    return Layer(lambda key: cls(*sizes, key=key, **options), data, *size, modes, call)


# Without bias a call of foundax keeps to strict promotion: nothing of ours can hide.
STRICT: dict[str, Any] = {"use_bias": False, "call": run_strict}
CONVS = {
    "Conv1dNHWC": layer(
        *(unet.Conv1dNHWC, 3, 5, 4), data=normal(9, 3), size=(5, 12), padding="VALID", **STRICT
    ),
    "Conv2dNHWC": layer(
        *(unet.Conv2dNHWC, 3, 5, (2, 2)), data=normal(5, 4, 3), size=(5, 12), strides=(2, 1)
    ),
    "Conv3dNHWC": layer(unet.Conv3dNHWC, 2, 5, 2, data=normal(3, 4, 3, 2), size=(5, 16), **STRICT),
    # A batch.
    "Conv2d": layer(common.Conv2d, 2, 5, (3, 2), data=normal(2, 4, 5, 2), size=(5, 12)),
    "Conv1dCL": layer(deeponet.Conv1dCL, 4, 5, 3, data=normal(7, 4), size=(5, 12)),
    # foundax's kernels have `in` inputs in each group.
    "grouped": layer(unet.Conv1dNHWC, 2, 6, 3, data=normal(7, 4), size=(6, 6), groups=2),
}
CONV_TRANSPOSES = {
    "ConvTranspose1d": layer(
        unet.ConvTranspose1d, 4, 4, 3, data=normal(5, 4), size=(4, 12), use_bias=True
    ),
    "ConvTranspose2d": layer(
        *(common.ConvTranspose2d, 4, 4, (2, 3)), data=normal(3, 4, 4), size=(4, 24), call=run_strict
    ),
    "ConvTranspose3d": layer(
        *(unet.ConvTranspose3d, 4, 4, 2), data=normal(2, 3, 2, 4), size=(4, 32), call=run_strict
    ),
}


def _labelled(*shape: int, labels: list[int]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda key: (jax.random.normal(key, shape), jnp.array(labels))


SUBSAMPLED = {
    "subsample_in": layer(
        SubsampledLinear, 7, 5, data=_labelled(2, 3, labels=[0, 2, 6]), size=(5, 7)
    ),
    "subsample_out": layer(
        *(SubsampledLinear, 4, 6),
        data=_labelled(4, labels=[5, 1, 2]),
        size=(6, 4),
        subsample_in=False,
        call=run_strict,
    ),
}


def _geometric(*shape: int) -> Callable[[Any], tuple[Any, ...]]:
    """Features on 6 nodes, and random bases for `shape` modes (and measures)."""

    def data(key: Any) -> tuple[Any, ...]:
        keys = jax.random.split(key, 7)
        constant = (2, 6, 1, *shape[1:])
        shapes = [(2, 6, *shape), (2, 6, *shape), constant] * 2
        bases = [jax.random.normal(k, s) for k, s in zip(keys[1:], shapes, strict=True)]
        return (jax.random.normal(keys[0], (2, 4, 6)), *bases)

    return data


def _spectral(cls: Any, *modes: int, data: Any, numbers: int, call: Any = run_spectral, **options):
    size = (5, 4)
    return layer(cls, 4, 5, *modes, data=data, size=size, modes=numbers, call=call, **options)


SPECTRAL = {
    "SpectralConv1d": _spectral(fno.SpectralConv1d, 3, data=normal(8, 4), numbers=2 * 3),
    "SpectralConv2d": _spectral(fno.SpectralConv2d, 3, 2, data=normal(6, 5, 4), numbers=4 * 6),
    "SpectralConv3d": _spectral(
        *(fno.SpectralConv3d, 2, 3, 2), data=normal(4, 6, 5, 4), numbers=8 * 12, linear_conv=False
    ),
    "SpectralConvGeo": _spectral(
        geofno.SpectralConvGeo, 3, data=_geometric(3), numbers=2 * 3 + 1, call=run
    ),
    "PCNO": _spectral(pcno.SpectralConv, 3, 2, data=_geometric(3, 2), numbers=2 * 6 + 2, call=run),
    # Two matrices for each block, in -> hidden and hidden -> out.
    "AFNO2D": Layer(
        lambda key: AFNO2D(8, num_blocks=2, modes=3, hidden_size_factor=2, key=key),
        *(normal(1, 4, 5, 8), 8, 4, 2 * 2 * 2, run_spectral),
    ),
}


def declared(cls: Any, families: dict[type, ModeWeights]) -> Any:
    """`cls` for layers of the user, whose weights are declared."""

    class Declared(cls):
        @classmethod
        def mode_weights(cls, leaf: Any) -> Any:
            return {"w": families[type(leaf)]} if type(leaf) in families else None

    return Declared


def per_mode(W: np.ndarray, A: np.ndarray, B: np.ndarray, scale: float) -> np.ndarray:
    """`W_k + s B_k A_k`, with `W` `(*modes, out, in)`, and the parts first in `A` and `B`."""
    return W + scale * complex_of(B) @ complex_of(A)


def shared(W: np.ndarray, A: np.ndarray, B: np.ndarray, c: np.ndarray, scale: float) -> np.ndarray:
    """`W_k + s B diag(c_k) A`, with `A` `(parts, r, in)`, `B` `(parts, out, r)`, `c` `(..., r)`."""
    A, B, c = map(complex_of, (A, B, c))
    return W + scale * sum(
        c[..., j, None, None] * np.outer(B[:, j], A[j]) for j in range(A.shape[0])
    )


def gains(W: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """`diag(1 + g_k) W_k`, with `gain` `(parts, *modes, out)` as above."""
    return (1 + complex_of(gain))[..., None] * W


def complex_of(parts: np.ndarray) -> np.ndarray:
    """Complex numbers from their parts on the first axis; real ones from one part."""
    return parts[0] if len(parts) == 1 else parts[0] + 1j * parts[1]


def matrix_of(kernel: np.ndarray) -> np.ndarray:
    """The `(out, in)` matrix of a kernel `(*sizes, in, out)`: inputs are the slowest of a row."""
    rows = [kernel[..., o] for o in range(kernel.shape[-1])]
    return np.stack([np.moveaxis(row, -1, 0).ravel() for row in rows])


def kernel_of(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The kernel of that shape which has this matrix."""
    *sizes, inputs, outputs = shape
    kernel = np.empty(shape)
    for o, c in itertools.product(range(outputs), range(inputs)):
        kernel[..., c, o] = np.split(matrix[o], inputs)[c].reshape(sizes)
    return kernel
