"""Layers with one matrix for each mode, and the layout of their arrays."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Inexact

from jno.lora.extending import show_array
from jno_lora_zoo import (
    MeshAxes,
    cast_like,
    compute_dtype,
    describe,
    in_compute_dtype,
    is_float_array,
    sharded_over,
)

from ._classes import value_for


class ModeWeights(NamedTuple):
    """How a layer stores a family of matrices, one for each mode, which are usually complex.

    **Arguments:**

    - `fields`: the layer's fields with the matrices: real part, then imaginary part. One field is
        enough for a complex array, for real matrices, or if it has an axis for the two parts.
    - `axes`: a letter for each axis of these arrays: `i` for the inputs, `o` for the outputs, `p`
        for the parts, any other letter for modes.
    - `frequency`: a function of the sizes of the modes' axes. It returns an integer array of these
        sizes with the frequency of each mode, on a grid that is fine enough for all modes. (On a
        coarser grid, foundax's layers use negative modes at lower frequencies.) `None` if the
        modes are not ordered by frequency.
    """

    fields: tuple[str, ...]
    axes: str
    frequency: Callable[[tuple[int, ...]], np.ndarray] | None = None

    def fits(self, layer: object) -> bool:
        """Whether the layer's arrays are floating, of one form, and have all the axes."""
        arrays: list[Any] = [getattr(layer, field, None) for field in self.fields]
        if not all(_is_complex(array) or is_float_array(array) for array in arrays):
            return False
        shape = arrays[0].shape
        has_one_form = len({(array.shape, array.dtype) for array in arrays}) == 1
        if not has_one_form or 0 in shape or len(shape) < len(self.axes):
            return False
        if _is_complex(arrays[0]):
            return len(arrays) == 1 and "p" not in self.axes
        parts = shape[self.axes.index("p") - len(self.axes)] if "p" in self.axes else len(arrays)
        return parts in (1, 2)

    def misfit(self, layer: object) -> str | None:
        """Why the layer's arrays are not as declared, or `None`."""
        if self.fits(layer):
            return None
        arrays: list[Any] = [getattr(layer, field, None) for field in self.fields]
        shown = [show_array(a) if eqx.is_array_like(a) else describe(a) for a in arrays]
        return (
            f"its {' and '.join(self.fields)} are {', '.join(shown)}, but are declared as parts of "
            f"complex numbers with the axes {self.axes!r}: these are one or two floating arrays of "
            "one shape, not empty, or one complex array without an axis p"
        )

    def stack_ndim(self, layer: object) -> int:
        """The number of axes of a stack, which come before the axes of one layer."""
        return getattr(layer, self.fields[0]).ndim - len(self.axes)

    def read(self, layer: object) -> Float[Array, "parts *modes out in"]:
        """The matrices, in float32 at least. The first axis has the real and imaginary parts."""
        arrays = [getattr(layer, field) for field in self.fields]
        if _is_complex(arrays[0]):
            arrays = [jnp.real(arrays[0]), jnp.imag(arrays[0])]
        arrays = [in_compute_dtype(array) for array in arrays]
        stacked = arrays[0] if "p" in self.axes else jnp.stack(arrays)
        return jnp.einsum(f"{self._stored()}->{self._canonical()}", stacked)

    def written(
        self, layer: object, matrices: Float[Array, "parts *modes out in"]
    ) -> dict[str, Array]:
        """Arrays of these matrices for the fields of `layer`, in the fields' layout and dtype."""
        stacked = jnp.einsum(f"{self._canonical()}->{self._stored()}", matrices)
        first = getattr(layer, self.fields[0])
        if _is_complex(first):
            return {self.fields[0]: cast_like(lax.complex(stacked[0], stacked[1]), first)}
        stacked = cast_like(stacked, first)
        arrays = [stacked] if "p" in self.axes else [stacked[i] for i in range(len(self.fields))]
        return dict(zip(self.fields, arrays, strict=True))

    def compute_dtype(self, layer: object) -> np.dtype:
        """The dtype of the parts in computations, as `read` returns them."""
        first = getattr(layer, self.fields[0])
        return jnp.finfo(first.dtype).dtype if _is_complex(first) else compute_dtype(first)

    def added(self, layer: object, change: Inexact[Array, "..."]) -> dict[str, Array]:
        """Arrays for the fields of `layer` after `change`, complex if there are two parts.

        The axes of `change` are `axes` without `p`, so that a training step has to transpose
        neither `change` nor the fields.
        """
        first = getattr(layer, self.fields[0])
        if _is_complex(first):
            return {self.fields[0]: cast_like(first + change, first)}
        parts = [change]
        if jnp.iscomplexobj(change):
            parts = [jnp.real(change), jnp.imag(change)]
        if "p" in self.axes:
            parts = [jnp.stack(parts, self.axes.index("p"))]
        arrays = [in_compute_dtype(getattr(layer, field)) for field in self.fields]
        sums = [array + part for array, part in zip(arrays, parts, strict=True)]
        return {f: cast_like(new, first) for f, new in zip(self.fields, sums, strict=True)}

    def mesh_axes(self, layer: object) -> MeshAxes:
        """The mesh axes that shard the matrices. Parts and modes come after the stack."""
        mesh_axes = sharded_over(getattr(layer, self.fields[0]))
        stack = self.stack_ndim(layer)
        axes = dict(zip(self.axes, mesh_axes[stack:], strict=True))
        batch = (*mesh_axes[:stack], axes.get("p"), *(axes[letter] for letter in self.modes))
        return MeshAxes(batch, axes["o"], axes["i"])

    @property
    def modes(self) -> str:
        """The letters of the modes' axes."""
        return "".join(letter for letter in self.axes if letter not in "iop")

    def _stored(self) -> str:
        return self.axes if "p" in self.axes else f"p{self.axes}"

    def _canonical(self) -> str:
        return f"p{self.modes}oi"


def _is_complex(array: object) -> bool:
    return eqx.is_array_like(array) and jnp.iscomplexobj(array)


def _largest_frequency(*corners: tuple[bool, ...]) -> Callable[[tuple[int, ...]], np.ndarray]:
    """The largest `|k_j|` over the axes, for modes `0, 1, ...` or, where `True`, `..., -2, -1`.

    If there are several corners, they are on the first axis.
    """

    def frequency(sizes: tuple[int, ...]) -> np.ndarray:
        modes = sizes[-len(corners[0]) :]
        frequencies: list[np.ndarray] = []
        for corner in corners:
            axes = [
                np.arange(size, 0, -1) if is_negative else np.arange(size)
                for size, is_negative in zip(modes, corner, strict=True)
            ]
            frequencies.append(functools.reduce(np.maximum.outer, axes))
        return np.stack(frequencies) if len(sizes) > len(modes) else frequencies[0]

    return frequency


def _negative(dims: int) -> list[tuple[bool, ...]]:
    """Which axes of each corner of the spectrum have negative frequencies (never the last axis)."""
    return [(*axes, False) for axes in itertools.product((False, True), repeat=dims - 1)]


def _pairs(axes: str, *names: str) -> dict[str, ModeWeights]:
    return {
        name: ModeWeights((f"{name}_real", f"{name}_imag"), axes, _largest_frequency(corner))
        for name, corner in zip(names, _negative(len(axes) - 2), strict=True)
    }


def _geometric(axes: str) -> dict[str, ModeWeights]:
    # The weight of the cosine acts as the real part, and the weight of the sine as the imaginary
    # part. The constant mode has a real weight.
    return {
        "weights": ModeWeights(("weights_c", "weights_s"), axes),
        "weights_0": ModeWeights(("weights_0",), axes),
    }


def _corners_stacked(leaf: Any) -> dict[str, ModeWeights]:
    # The sizes are named `(corners, in, out, *modes)`, but the call sums over the third axis. Only
    # the meaning differs, because layers with different numbers of inputs and outputs cannot run.
    dims = leaf.num_spatial_dims
    # The first axis is the fastest among the corners.
    corners = sorted(_negative(dims), key=lambda corner: corner[::-1])
    fields = ("weights_real", "weights_imag")
    return {"weights": ModeWeights(fields, f"coi{'xyz'[:dims]}", _largest_frequency(*corners))}


_FNO = "foundax.architectures.fno"
_Families = Mapping[str, ModeWeights]
_FAMILIES: dict[tuple[str, str], _Families | Callable[[Any], _Families]] = {
    (_FNO, "SpectralConv1d"): _pairs("iox", "weight"),
    # One weight for each corner of the spectrum that the layer uses.
    (_FNO, "SpectralConv2d"): _pairs("ioxy", "weight_1", "weight_2"),
    (_FNO, "SpectralConv3d"): _pairs("ioxyz", "weight_1", "weight_2", "weight_3", "weight_4"),
    ("foundax.architectures.geofno", "SpectralConvGeo"): _geometric("iox"),
    ("foundax.architectures.pcno", "SpectralConv"): _geometric("ioxm"),
    # DPOT uses the same matrix for all modes, one for each block of channels.
    ("jax_dpot.model_eqx", "AFNO2D"): {
        "w1": ModeWeights(("w1",), "pbio"),
        "w2": ModeWeights(("w2",), "pbio"),
    },
    ("pdequinox.conv", "SpectralConv"): _corners_stacked,
}

# The layers whose call is linear in their weights, with the axis of the outputs.
_LINEAR = {
    name: -1 if name[0] == _FNO else 1 for name in _FAMILIES if name[0].startswith("foundax.")
}


def mode_weights_of(leaf: object) -> Mapping[str, ModeWeights] | None:
    """The families of matrices in a layer of a known class, by name, or `None`."""
    families = value_for(leaf, _FAMILIES)
    return families(leaf) if callable(families) else families


# The name of a real or an imaginary part.
_PART = re.compile(r"(?:^|_)(?:re|real|im|imag)(?=_|$)")


def advice_to_declare(leaf: Any) -> str | None:
    """How to declare arrays that look like weights of modes, or `None`.

    Such arrays have three axes or more, and are complex or named as a real or imaginary part, such
    as `w_re` and `w_im`.
    """
    names = [field.name for field in dataclasses.fields(leaf)]
    arrays: dict[str, Any] = {name: getattr(leaf, name, None) for name in names}
    parts = [
        name
        for name, x in arrays.items()
        if eqx.is_inexact_array(x) and x.ndim > 2 and (_is_complex(x) or _PART.search(name))
    ]
    if not parts:
        return None
    return (
        f"its {' and '.join(parts)}, {show_array(arrays[parts[0]])}, may be weights of modes: "
        "declare them by `ModeWeights` in a subclass of CPSpectral (jno_lora_foundax)"
    )


def linear_output_axis(leaf: object) -> int | None:
    """The axis of the outputs of a layer whose call is linear in its weights, by its exact class.

    `None` for other layers.
    """
    return _LINEAR.get((type(leaf).__module__, type(leaf).__name__))
