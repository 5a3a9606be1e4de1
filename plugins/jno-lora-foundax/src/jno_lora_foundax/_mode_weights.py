"""The layers that hold one matrix for each mode, and how their arrays are laid out."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jno.lora.extending import show_array
from jno_lora_zoo import cast_like, in_compute_dtype, is_float_array, sharded_over

from ._classes import value_for


class MatrixAxes(NamedTuple):
    """Mesh axes: of a stack, the parts and the modes together, of the outputs and of the inputs."""

    batch: tuple[Any, ...]
    outputs: Any
    inputs: Any


class ModeWeights(NamedTuple):
    """A family of matrices, one for each mode, complex as a rule, in real arrays.

    **Arguments:**

    - `fields`: the layer's fields that hold them: real part, then imaginary part. One field is
        enough for real matrices, or if it has an axis for the two parts.
    - `axes`: what the axes of each of those arrays are, one letter each: `i` for the inputs, `o`
        for the outputs, `p` for the parts, any other letter for modes.
    - `frequency`: gives, for the sizes of the modes' axes, an integer array of these sizes: how
        high the frequency of each mode is, on a grid that is fine enough for all of them (on a
        coarser one, foundax's layers use negative modes at lower frequencies). `None` if the
        modes are not in such an order.
    """

    fields: tuple[str, ...]
    axes: str
    frequency: Callable[[tuple[int, ...]], np.ndarray] | None = None

    def fits(self, layer: Any) -> bool:
        """Whether the layer's arrays can be these: floating, of one shape, with all the axes."""
        return self.misfit(layer) is None

    def misfit(self, layer: Any) -> str | None:
        """Why the layer's arrays cannot be these; `None` if they can."""
        missing = [field for field in self.fields if not hasattr(layer, field)]
        if missing:
            return f"its weights are declared in a field {missing[0]!r}, which it lacks"
        arrays = [getattr(layer, field) for field in self.fields]
        for field, array in zip(self.fields, arrays, strict=True):
            if eqx.is_array(array) and jnp.iscomplexobj(array):
                return (
                    f"{field} is {show_array(array)}: keep its real and imaginary parts in two "
                    "real arrays"
                )
            if not is_float_array(array):
                came = show_array(array) if eqx.is_array(array) else f"a {type(array).__name__}"
                return f"{field} is {came}, and adapters need real floating arrays"
        shapes, dtypes = {array.shape for array in arrays}, {array.dtype for array in arrays}
        if len(shapes) > 1 or len(dtypes) > 1:
            return f"{' and '.join(self.fields)} differ: {', '.join(map(show_array, arrays))}"
        first = f"{self.fields[0]} is {show_array(arrays[0])}"
        if 0 in arrays[0].shape:
            return f"{first}, which is empty"
        if arrays[0].ndim < len(self.axes):
            return f"{first}, but is declared with the {len(self.axes)} axes {self.axes!r}"
        parts = arrays[0].shape[self._axis("p")] if "p" in self.axes else len(arrays)
        if parts not in (1, 2):
            return f"{first}: it has {parts} parts, and complex numbers have two"
        return None

    def stack_ndim(self, layer: Any) -> int:
        """The axes of a stack, before those of one layer."""
        return getattr(layer, self.fields[0]).ndim - len(self.axes)

    def read(self, layer: Any) -> Float[Array, "parts *modes out in"]:
        """The matrices, in float32 at least. The first axis has the real and imaginary parts."""
        arrays = [in_compute_dtype(getattr(layer, field)) for field in self.fields]
        stacked = arrays[0] if "p" in self.axes else jnp.stack(arrays)
        return jnp.einsum(f"{self._stored()}->{self._canonical()}", stacked)

    def written(
        self, layer: Any, matrices: Float[Array, "parts *modes out in"]
    ) -> dict[str, Shaped[Array, "..."]]:
        """The layer's arrays, by field, in its own layout and dtype, that hold these matrices."""
        stacked = jnp.einsum(f"{self._canonical()}->{self._stored()}", matrices)
        stacked = cast_like(stacked, getattr(layer, self.fields[0]))
        arrays = [stacked] if "p" in self.axes else [stacked[i] for i in range(len(self.fields))]
        return dict(zip(self.fields, arrays, strict=True))

    def mesh_axes(self, layer: Any) -> MatrixAxes:
        """The mesh axes that the matrices lie on."""
        found = sharded_over(getattr(layer, self.fields[0]))
        stack = self.stack_ndim(layer)
        axes = dict(zip(self.axes, found[stack:], strict=True))
        batch = (*found[:stack], axes.get("p"), *(axes[letter] for letter in self.modes))
        return MatrixAxes(batch, axes["o"], axes["i"])

    @property
    def modes(self) -> str:
        """The letters of the modes' axes."""
        return "".join(letter for letter in self.axes if letter not in "iop")

    def _stored(self) -> str:
        return self.axes if "p" in self.axes else f"p{self.axes}"

    def _canonical(self) -> str:
        return f"p{self.modes}oi"

    def _axis(self, letter: str) -> int:
        return self.axes.index(letter) - len(self.axes)


def _largest_frequency(*corners: tuple[bool, ...]) -> Callable[[tuple[int, ...]], np.ndarray]:
    """The largest `|k_j|` over the axes, for modes `0, 1, ...` or, where `True`, `..., -2, -1`.

    Several corners lie on an axis of their own, the first.
    """

    def frequency(sizes: tuple[int, ...]) -> np.ndarray:
        found: list[np.ndarray] = []
        for corner in corners:
            k = np.indices(sizes[-len(corner) :])
            last = np.reshape(sizes[-len(corner) :], (-1, *(1,) * len(corner)))
            negative = np.reshape(corner, last.shape)
            found.append(np.max(np.where(negative, last - k, k), axis=0))
        return np.stack(found) if len(sizes) > len(corners[0]) else found[0]

    return frequency


def _negative(dims: int) -> list[tuple[bool, ...]]:
    """Which axes of each corner of the spectrum have negative frequencies: never the last."""
    return [(*axes, False) for axes in itertools.product((False, True), repeat=dims - 1)]


def _pairs(axes: str, *names: str) -> dict[str, ModeWeights]:
    return {
        name: ModeWeights((f"{name}_real", f"{name}_imag"), axes, _largest_frequency(corner))
        for name, corner in zip(names, _negative(len(axes) - 2), strict=True)
    }


def _geometric(axes: str) -> dict[str, ModeWeights]:
    # The cosine's weight is the real part and the sine's the imaginary one, by how the layers
    # multiply with them. The constant mode has a real weight.
    return {
        "weights": ModeWeights(("weights_c", "weights_s"), axes),
        "weights_0": ModeWeights(("weights_0",), axes),
    }


def _corners_stacked(leaf: Any) -> dict[str, ModeWeights]:
    # The sizes are named `(corners, in, out, *modes)`, but the call sums over the third axis. A
    # layer with other outputs than inputs cannot run, so only the meaning differs.
    dims = leaf.num_spatial_dims
    # The first axis is the fastest among the corners.
    corners = sorted(_negative(dims), key=lambda corner: corner[::-1])
    fields = ("weights_real", "weights_imag")
    return {"weights": ModeWeights(fields, f"coi{'xyz'[:dims]}", _largest_frequency(*corners))}


_FNO = "foundax.architectures.fno"
_Families = Mapping[str, ModeWeights]
_FAMILIES: dict[tuple[str, str], _Families | Callable[[Any], _Families]] = {
    (_FNO, "SpectralConv1d"): _pairs("iox", "weight"),
    # One weight for each corner of the spectrum that is kept.
    (_FNO, "SpectralConv2d"): _pairs("ioxy", "weight_1", "weight_2"),
    (_FNO, "SpectralConv3d"): _pairs("ioxyz", "weight_1", "weight_2", "weight_3", "weight_4"),
    ("foundax.architectures.geofno", "SpectralConvGeo"): _geometric("iox"),
    ("foundax.architectures.pcno", "SpectralConv"): _geometric("ioxm"),
    # DPOT: the same matrix for all modes, one for each block of channels.
    ("jax_dpot.model_eqx", "AFNO2D"): {
        "w1": ModeWeights(("w1",), "pbio"),
        "w2": ModeWeights(("w2",), "pbio"),
    },
    ("pdequinox.conv", "SpectralConv"): _corners_stacked,
}


def mode_weights_of(leaf: Any) -> Mapping[str, ModeWeights] | None:
    """The families of matrices that a layer of a known class holds, by name; otherwise `None`."""
    families = value_for(leaf, _FAMILIES)
    return families(leaf) if callable(families) else families
