"""The base class of PEFT's types.

A type reads a `Module` of a file as a `Converted` adapter, and an `Adapter` as a `Written` one.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jno_lora_zoo import METHODS as _METHODS

from ..errors import MisfitError
from ..layouts import Layout, Shape

Tensors = Mapping[str, np.ndarray]
Factors = tuple[np.ndarray, np.ndarray]
Settings = Mapping[str, Any]
METHODS: dict[str, Any] = {str(method.variant): method for method in _METHODS}
# The adapters of jno-lora-routed that also exist in PEFT, by variant.
ROUTED = {
    "activated-lora": "ActivatedLoRA",
    "lily": "Lily",
    "peanut": "PEANuTLinear",
    "poly": "Poly",
}


@dataclasses.dataclass(frozen=True)
class Converted:
    """A module's adapter, converted to an adapter here.

    - `variant`: the method's variant, `None` if only the bias changes; `state`: the method's
        arrays.
    - `bias_shift`: added to the layer's bias; `shared`: arrays of all adapters of the file.
    """

    variant: str | None
    rank: int
    alpha: float
    state: Tensors
    bias_shift: np.ndarray | None = None
    shared: Tensors = dataclasses.field(default_factory=dict)

    def with_arrays(self, **arrays: np.ndarray) -> "Converted":
        return dataclasses.replace(self, state={**self.state, **arrays})


@dataclasses.dataclass(frozen=True)
class Module:
    """An adapted module of a file, with everything that its type's law needs.

    - `name`, `rank`, `alpha`: of the module; `settings`: of the file.
    - `tensors`: of the module; `shared`: of all modules. All are float32 at least.
    - `layer`, `index`, `layout`: its layer here, the index in a stack, and the layer for PEFT.
    """

    name: str
    settings: Settings
    rank: int
    alpha: float
    tensors: Tensors
    shared: Tensors
    layer: Any
    index: Shape
    layout: Layout

    def take(self, shapes: Mapping[str, Shape], ignored: Collection[str] = ()) -> list[np.ndarray]:
        """The tensors of these names. **Raises:** `MisfitError` if names or shapes differ."""
        lines: list[str] = []
        for name, shape in shapes.items():
            if name not in self.tensors:
                lines.append(f"{name}: missing")
            elif (found := self.tensors[name].shape) != shape:
                lines.append(f"{name}: expected shape {shape}, got {found}")
        for name in sorted(self.tensors.keys() - {*shapes, *ignored}):
            lines.append(f"{name}: adapter_config.json describes no such tensor of this layer")
        if lines:
            raise MisfitError(*lines)
        return [self.tensors[name] for name in shapes]

    def shape_of(self, name: str, axes: int) -> Shape:
        """The shape of a tensor. **Raises:** `MisfitError` if it is missing, or has other axes."""
        shape = self.tensors[name].shape if name in self.tensors else ()
        if len(shape) != axes:
            raise MisfitError(f"{name}: missing, or without {axes} axes")
        return shape

    @property
    def W(self) -> np.ndarray:
        """The layer's weight as `(out, in)`, in float64."""
        weight = np.asarray(self.layer.weight[self.index], np.float64)
        weight = weight.T if self.layout.kind == "embedding" else weight
        return weight.reshape(self.layout.matrix)

    def as_method(self, variant: str, names: Mapping[str, tuple[str, Shape]]) -> Converted:
        """A method with these tensors as arrays, given by field as the file's names and shapes."""
        rank, matrix = self.rank, self.layout.matrix
        if METHODS[variant].effective_rank(rank, *matrix) != rank:
            raise MisfitError(f"its rank {rank} is more than the {matrix} of its weight")
        state = dict(zip(names, self.take(dict(names.values())), strict=True))
        return Converted(variant, rank, self.alpha, state)

    def low_rank(self, product: Factors, scale: float = 1.0, variant: str = "lora") -> Converted:
        """`s B A` as an adapter of scale `s`, with the file's alpha if it gives this scale."""
        A, B = product
        outputs, inputs = self.layout.matrix
        if len(A) > min(outputs, inputs):
            # An adapter's rank cannot exceed the rank of its layer's matrix.
            whole = B.astype(np.float64) @ A.astype(np.float64)
            A, B = factors(whole.astype(np.result_type(A, B)))
        elif len(A) == 0:  # AdaLoRA has pruned all components
            A, B = np.zeros((1, inputs), A.dtype), np.zeros((outputs, 1), B.dtype)
        alpha = alpha_for(variant, len(A), scale, self.alpha)
        return Converted(variant, len(A), alpha, {"lora_A": A, "lora_B": B})

    def update(self, U: np.ndarray, scale: float = 1.0) -> Converted:
        """`W + s U` as LoRA, for an update `U` of any rank."""
        return self.low_rank(factors(U), scale)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter to write, with arrays without stack axes.

    - `path`: of its layer, with its index in a stack: `layers/q_proj[3]`; `index`: that index.
    - `scale`: of its update, if it is LoRA; `shared`: arrays of several adapters, by field.
    - `dropout`: the probability by which training drops inputs of its update.
    """

    path: str
    index: Shape
    variant: str
    state: Tensors
    rank: int
    alpha: float  # 1 if the method has no alpha
    layout: Layout
    has_bias: bool
    scale: float = 1.0
    shared: Tensors = dataclasses.field(default_factory=dict)
    dropout: float = 0.0

    def written(self, tensors: Tensors, settings: Settings, **changes: float) -> "Written":
        """The adapter with these tensors in PEFT; `changes` are PEFT's rank and alpha."""
        return Written(dataclasses.replace(self, **changes), tensors, settings)


@dataclasses.dataclass(frozen=True)
class Written:
    """An adapter in PEFT's form; `shared` are the module's slices of tensors of all modules."""

    adapter: Adapter
    tensors: Tensors
    settings: Settings
    shared: Tensors = dataclasses.field(default_factory=dict)


Modules = Mapping[str, Written]


class Setting(NamedTuple):
    """A setting with a number: its name, its default, and the table for single modules.

    - `by_name`: whether PEFT matches whole names in the table, or the ends of names.
    """

    name: str
    default: float
    pattern: str = ""
    by_name: bool = False


class Type:
    """One type of adapter. Its class has the name that PEFT calls `peft_type`.

    The class's docstring describes the equivalent here, for docs/peft-types.md.

    - `tensors`, `shared`: regular expressions for tensors of one module, and for tensors of all.
    - `methods`: the variants that are written as this type, if not the variant of the same name.
    - `layers`: the kinds of layer that PEFT's type supports; if `None`, `read` and `write` check.
    - `rank`, `alpha`: the settings with these numbers.
    - `only`: settings that must have a certain value, the value, and why.
    - `bias`: the value of the setting `bias` for which the adapted layers' biases train.
    """

    tensors = shared = "(?!)"
    methods: tuple[str, ...] = ()
    layers: tuple[str, ...] | None = ("linear",)
    rank: Setting | None = None
    alpha: Setting | None = None
    only: tuple[tuple[str, object, str], ...] = ()
    bias = ""

    def read(self, m: Module) -> Converted:
        """The adapter of a module. **Raises:** `MisfitError`."""
        raise NotImplementedError

    def write(self, adapter: Adapter) -> Written:
        """The adapter in PEFT's form. **Raises:** `MisfitError`."""
        raise NotImplementedError

    def common(self, modules: Modules) -> Settings:
        """The settings that depend on all modules. **Raises:** `MisfitError` if they disagree."""
        return {}

    def shares(self, modules: Modules) -> Tensors:
        """The tensors of all modules, by whole names, as large as the largest slice in a module.

        **Raises:** `MisfitError` if values of modules differ.
        """
        whole: dict[str, np.ndarray] = {}
        for name in next(iter(modules.values())).shared:
            slices = [written.shared[name] for written in modules.values()]
            whole[name] = np.zeros(np.max([x.shape for x in slices], axis=0), slices[0].dtype)
            for x in slices:
                whole[name][tuple(map(slice, x.shape))] = x
            if not all(np.array_equal(whole[name][tuple(map(slice, x.shape))], x) for x in slices):
                raise MisfitError(f"PEFT has one {name!r} for all layers, and these have several")
        return whole

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def numbers(self) -> list[Setting]:
        """The settings that are numbers."""
        return [setting for setting in (self.rank, self.alpha) if setting is not None]

    @property
    def variants(self) -> tuple[str, ...]:
        is_written = type(self).write is not Type.write
        return self.methods or ((self.name.lower(),) if is_written else ())


def widened(array: np.ndarray) -> np.ndarray:
    """An array in float32 at least."""
    return array.astype(np.promote_types(array.dtype, np.float32))


def floating(tensors: Tensors) -> Tensors:
    """The tensors in at least float32, except indices and sizes, which must be whole numbers."""
    wide: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        is_whole = "indices" in name or "_s_size." in name
        kind, words = (jnp.integer, "whole") if is_whole else (jnp.floating, "floating")
        if not jnp.issubdtype(tensor.dtype, kind):
            raise MisfitError(f"{name}: expected {words} numbers, got {tensor.dtype}")
        wide[name] = tensor if is_whole else widened(tensor)
    return wide


def alpha_for(variant: str, rank: int, scale: float, given: float) -> float:
    """The alpha for this scale: the given alpha if it gives the scale up to rounding."""
    scale_for = getattr(METHODS.get(variant), "scale_for", METHODS["lora"].scale_for)
    alpha = scale / scale_for(rank, 1.0)
    return given if math.isclose(alpha, given) else alpha


def factors(kernel: np.ndarray) -> Factors:
    """Factors `A` and `B` of a matrix, or of a kernel as a matrix, of any rank."""
    matrix = kernel.reshape(len(kernel), -1)
    outputs, inputs = matrix.shape
    eye = np.eye(min(outputs, inputs), dtype=matrix.dtype)
    return (matrix, eye) if outputs <= inputs else (eye, matrix)
