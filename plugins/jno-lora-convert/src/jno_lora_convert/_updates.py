"""The LoRA of one weight of a source, and the updates of its modules, in NumPy."""

import dataclasses
import itertools
import math
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from jno.lora import PeftFormatError
from jno.lora.extending import show_path
from jno_lora_peft.errors import MisfitError
from jno_lora_peft.layouts import Shape

from ._laws import Index, Law, distinct, slice_of
from ._pairs import Pair


@dataclasses.dataclass(frozen=True)
class Module:
    """A module that a LoRA adapts.

    - `name`: in PEFT; `title`: before `rename`.
    - `index`: of the module in the weight, which may hold several.
    - `is_embedding`: whether its weight is a table.
    - `is_transposed`: whether Torch's weight is `(in, out)`, unless its shape says otherwise;
        `None` for layers that are not linear.
    - `is_renamed`: whether `rename` has a rule for it.
    """

    name: str
    title: str
    index: Index
    is_embedding: bool
    is_transposed: bool | None
    is_renamed: bool


@dataclasses.dataclass(frozen=True)
class Update:
    """The update of one module: `scale` times the einsum of its factors."""

    module: Module
    A: np.ndarray
    B: np.ndarray
    law: Law
    scale: float

    @property
    def rank(self) -> int:
        """The rank in Torch, which has one product for all heads."""
        sizes = self.law.sizes(self.A, self.B)
        return sizes["r"] * sizes.get(self.law.heads, 1)

    def dense(self, axes: str, dtype: DTypeLike) -> np.ndarray:
        """The update with these axes."""
        A, B, scale = (np.asarray(x, dtype) for x in (self.A, self.B, self.scale))
        return np.einsum(f"{self.law.a},{self.law.b}->{axes}", A, B, optimize=True) * scale

    @property
    def place(self) -> tuple[int | slice, ...]:
        """Where the module is in its weight."""
        return slice_of(self.law.weight, self.module.index)

    def in_torch(self, weight: np.ndarray) -> np.ndarray:
        """The module's part of the weight, with Torch's axes for a linear layer."""
        is_flipped = self.law.weight == "io" and not self.module.is_embedding
        return weight[self.place].T if is_flipped else weight[self.place]

    def added_to(self, weight: np.ndarray, dtype: DTypeLike) -> np.ndarray:
        """The sum of the module's part of the weight and the update."""
        axes = "".join(axis for axis in self.law.weight if axis not in self.module.index)
        return weight.astype(dtype) + self.dense(axes, dtype).reshape(weight.shape)


@dataclasses.dataclass(frozen=True)
class LayerLoRA:
    """A LoRA of the source, for one weight, which may hold several modules.

    - `laws`: the possible laws. They differ in the axes of the weight, whose shape tells the law.
    - `weights`: the possible names of the weight, by `weight_path`.
    - `is_tied`: whether PEFT uses the LoRA of a table in a head, too.
    """

    pair: Pair
    A: np.ndarray
    B: np.ndarray
    laws: list[Law]
    scale: float
    modules: list[Module]
    weights: list[str]
    is_tied: bool

    @property
    def name(self) -> str:
        """Its name in messages."""
        return show_path(self.pair.key)

    def update(self, module: Module, law: Law | None = None) -> Update:
        """The update of one of its modules, by default with the first law."""
        law = law or self.laws[0]
        A, B = self.A[slice_of(law.a, module.index)], self.B[slice_of(law.b, module.index)]
        return Update(module, A, B, law.of_module(), self.scale)

    def update_of_weight(self, module: Module, name: str, shape: Shape) -> Update:
        """The update of a weight of this shape. **Raises:** `MisfitError` unless one law fits."""
        laws = distinct(self.laws, lambda law: law.weight)
        flipped = [Law(x.a, x.b, "io") for x in laws if module.is_transposed and x.weight == "oi"]
        shapes = {law: self._weight_shape(law) for law in (*flipped, *laws)}
        fitting = [law for law in shapes if shapes[law] == shape]
        if not (fitting or module.index):
            fitting = [law for law in shapes if _is_split(shapes[law], shape)]
        if flipped:  # before the others, because a square weight fits both
            fitting = fitting[:1]
        return self.update(module, _only(fitting, name, shape, shapes.values()))

    def update_in_torch(self, module: Module, name: str, shape: Shape | None) -> Update:
        """The update of Torch's weight, whose shape may be unknown.

        **Raises:** `MisfitError` unless one law fits.
        """
        laws = distinct(self.laws, lambda law: law.in_torch)
        shapes = {law: law.torch_shape(law.sizes(self.A, self.B)) for law in laws}
        step = -1 if module.is_embedding or module.is_transposed else 1
        fitting = [law for law, x in shapes.items() if shape in (None, x, x[::step])]
        return self.update(module, _only(fitting, name, shape, shapes.values()))

    def _weight_shape(self, law: Law) -> Shape:
        sizes = law.sizes(self.A, self.B)
        return tuple(sizes[axis] for axis in law.weight)


def expect_close(name: str, new: np.ndarray, wanted: np.ndarray, update: np.ndarray) -> float:
    """The largest difference. **Raises:** `PeftFormatError` if it is more than rounding."""
    info, difference = jnp.finfo(new.dtype), np.abs(new - wanted)
    limit = float(info.eps) * np.maximum(np.abs(wanted), float(info.tiny))
    # Sums of many products are less exact than float32.
    if not (difference <= limit + 1e-5 * np.max(np.abs(update), initial=0)).all():
        raise PeftFormatError(f"{name} was written with numbers off by {difference.max():g}")
    return float(np.max(difference, initial=0))


def _only(fitting: list[Law], name: str, shape: Shape | None, shapes: Iterable[Shape]) -> Law:
    """The only law that fits. **Raises:** `MisfitError` if there is none, or there are several."""
    if len(fitting) != 1:
        raise MisfitError(
            f"{name} has {f'the shape {shape}' if shape else 'no known shape: give a base'}. "
            f"{len(fitting)} layouts of its factors fit: {', '.join(map(str, shapes))}"
        )
    return fitting[0]


def _is_split(shape: Shape, axes: Shape) -> bool:
    """Whether an array of this shape is one with these axes, some of which are one axis in it.

    Qwix's factors have one axis for all inputs of a weight.
    """
    products, finer = ({*itertools.accumulate(x, int.__mul__)} for x in (shape, axes))
    return math.prod(shape) == math.prod(axes) and products <= finer
