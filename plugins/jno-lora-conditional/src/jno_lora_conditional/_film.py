"""FiLM for adapters: a scale and a shift for each output, as functions of the parameter."""

import copyreg
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree

from jno.lora import (
    LoRAWrapper,
    LowRankForm,
    MatrixAdapter,
    PluginError,
    SelectionError,
    Shared,
)
from jno.lora.extending import (
    Composite,
    Member,
    adapted_layers,
    compute_dtype,
    over_stack,
    overrides,
    with_arrays,
)
from jno_lora_zoo import cited, with_attributes

# The name of the adapter that is modulated, in the class and in files.
_NAME = "adapter"


class Film(eqx.Module):
    """Trained directions of the scale and the shift of the outputs of one layer.

    Paper: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer",
    arXiv:1709.07871.
    """

    scale: Float[Array, "K *stack out"]
    shift: Float[Array, "K *stack out"] | None  # `None` for a layer without a bias


def film_of(model: PyTree, size: int) -> dict[str, Film]:
    """By path, zeros for each adapted layer of `model` whose adapter can be modulated.

    These are adapters of the zoo with one matrix, and adapters of spectral weights.

    **Raises:** `SelectionError` if no adapter can be modulated.
    """
    films: dict[str, Film] = {}
    for path, adapter in adapted_layers(model):
        if type(adapter).mergeable and hasattr(type(adapter), "modulated"):
            form, has_bias = _outputs(adapter)
            zeros = jnp.zeros((size, *form.shape), form.dtype)
            films[path] = Film(zeros, jnp.zeros_like(zeros) if has_bias else None)
    if not films:
        raise SelectionError(
            "`film=True` scales and shifts the outputs of layers, but no adapter of this net "
            "defines the axis of its outputs. Adapt linear layers, convolutions or spectral "
            "weights by methods of the zoo, or leave out `film=True`."
        )
    return films


def _outputs(adapter: Any) -> tuple[jax.ShapeDtypeStruct, bool]:
    """The form of an array with one number per output, and whether the outputs have a bias."""
    cls: Any = MatrixAdapter.of(type(adapter))

    def rows(layer: Any) -> tuple[Array, Array | None]:
        matrices = cls.matrices(layer) or {"": cls.matrix(layer)}
        first: Any = next(iter(matrices.values()))
        bias = cls.bias_of(layer) if hasattr(cls, "bias_of") else None
        numbers = first.real.reshape(-1, *first.shape[-2:])[0, :, 0]
        return numbers.astype(compute_dtype(numbers)), bias

    stack = type(adapter).stack_ndim(adapter.base)
    form, bias = eqx.filter_eval_shape(over_stack(rows, stack), adapter.base)
    return form, bias is not None


class Modulated(Composite):
    """An adapted layer whose output `y` becomes `scale y + shift`.

    Law: `W' = diag(scale) W_adapted`, `b' = scale b_adapted + shift`. A layer without a bias gets
    only the scale, so that the merged layer has the structure of the plain layer.

    `of_members` gives the subclass for a class of adapters, and a file names both.

    Paper: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer",
    arXiv:1709.07871.
    """

    adapter_fields = ("adapter", "scale", "shift")
    about = cited("1709.07871", family="scale", formula="2 out")

    base: Any
    adapter: Any  # without its base, which would be stored twice, and without its shared arrays
    shared: dict[str, Shared]  # by field, the frozen arrays that other adapters use, too
    scale: Float[Array, "*stack out"]
    shift: Float[Array, "*stack out"] | None

    def __init__(self, adapter: Any, scale: Any, shift: Any):
        shared = {name: x for name, x in vars(adapter).items() if isinstance(x, Shared)}
        self.base, self.shared, self.scale, self.shift = adapter.base, shared, scale, shift
        self.adapter = with_attributes(adapter, dict.fromkeys(["base", *shared]))

    @classmethod
    def of_members(cls, members: tuple[Member, ...], trains_weights: bool) -> type["Modulated"]:
        """The class for the only one of `members`. The same member always gives the same class."""
        if len(members) != 1:
            raise PluginError(f"Modulated is made of one adapter, but here of {len(members)}")
        return _class_for(members[0])

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        return any(member.wrapper.applies_to(leaf) for member in cls.members)

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return cls.members[0].wrapper.stack_ndim(leaf)

    @classmethod
    def matrix(cls, layer: Any) -> Array | None:
        return MatrixAdapter.of(cls.members[0].wrapper).matrix(layer)

    @classmethod
    def matrices(cls, layer: Any) -> Mapping[str, Array]:
        return MatrixAdapter.of(cls.members[0].wrapper).matrices(layer)

    @property
    def rank(self) -> Any:
        return self.members[0].rank

    @property
    def alpha(self) -> Any:
        return self.members[0].alpha

    @property
    def whole_adapter(self) -> Any:
        """The adapter around its base."""
        return with_attributes(self.adapter, {"base": self.base, **self.shared})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        adapter = self.whole_adapter
        axis = adapter.output_axis(*args)
        if axis is None:
            return with_arrays(self).merge()(*args, **kwargs)  # pyright: ignore[reportCallIssue]
        y = adapter(*args, **kwargs)
        # An output without an axis, or with several axes for the rows of the matrix, is a vector.
        outputs = y if jnp.shape(y)[axis:][:1] == self.scale.shape else y.reshape(-1)
        shape = [1] * outputs.ndim
        shape[axis] = -1
        # In half precision, a scale near 1 would round to 1.
        wide = compute_dtype(y)
        modulated = outputs.astype(wide) * self.scale.astype(wide).reshape(shape)
        if self.shift is not None:
            modulated += self.shift.astype(wide).reshape(shape)
        return modulated.astype(y.dtype).reshape(y.shape)

    def merge(self) -> eqx.Module:
        cls: Any = self.members[0].wrapper
        return cls.modulated(self.whole_adapter.merge(), self.scale, self.shift)

    def low_rank_form(self) -> LowRankForm | None:
        cls: Any = MatrixAdapter.of(self.members[0].wrapper)
        form = cls.low_rank_form(self.whole_adapter)
        if form is None:
            return None
        gain = self.scale if form.gain is None else self.scale * form.gain
        if self.shift is None:
            return form._replace(gain=gain)
        b = jnp.asarray(cls.bias_of(self.base)).astype(self.shift.dtype)
        adapted = b if form.shift is None else b + form.shift
        return form._replace(gain=gain, shift=self.scale * adapted + self.shift - b)

    def penalty(self) -> Array:
        return self.whole_adapter.penalty()

    def partition_specs(self) -> dict[str, PartitionSpec]:
        specs = self.whole_adapter.partition_specs()
        return {f"{_NAME}/{path}": spec for path, spec in specs.items()}

    def state(self) -> dict[str, Any]:
        state = {f"{_NAME}/{key}": x for key, x in self.whole_adapter.state().items()}
        shift = {} if self.shift is None else {"shift": self.shift}
        return {**state, "scale": self.scale, **shift}

    @classmethod
    def from_state(
        cls, base: Any, state: Mapping[str, Array], rank: Any, alpha: Any
    ) -> "Modulated":
        (member,), prefix = cls.members, f"{_NAME}/"
        inner = {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}
        adapter = member.wrapper.from_state(base, inner, member.rank, member.alpha)
        return cls(adapter, state["scale"], state.get("shift"))


class _ModulatedMeta(type(LoRAWrapper)):
    """The type of the classes with a member, which are pickled as the member."""


# Unlimited, because JAX keeps every pytree class forever.
@functools.cache
def _class_for(member: Member) -> type[Modulated]:
    cls: Any = member.wrapper
    facts = {"family": cls.about.family, "cost": cls.about.cost}
    body: dict[str, Any] = {
        "members": (member,),
        "about": dataclasses.replace(Modulated.about, **facts),
        "__module__": __name__,
    }
    if overrides(cls, LoRAWrapper, "unwrap"):  # its base is not the layer before adapting
        body["unwrap"] = lambda self: self.whole_adapter.unwrap()
    make: Any = _ModulatedMeta
    return make(f"Modulated{cls.__name__}", (Modulated,), body)


def _pickled_class(cls: Any) -> Any:
    return _class_for, cls.members


copyreg.pickle(_ModulatedMeta, _pickled_class)  # pyright: ignore[reportArgumentType]


def modulate(adapter: LoRAWrapper, film: Film, phi: Float[Array, " K"]) -> Modulated:
    """The adapter with the scale `1 + phi gamma` and the shift `phi beta`."""
    at_z: Film = jax.tree.map(lambda d: jnp.tensordot(phi.astype(d.dtype), d, axes=1), film)
    member = Member(_NAME, type(adapter), adapter.rank, adapter.alpha, trains=True)
    cls: Any = _class_for(member)
    return cls(adapter, 1 + at_z.scale, at_z.shift)
