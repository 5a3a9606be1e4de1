"""Adapters of layers with several matrices: a method, with arrays for each matrix."""

import dataclasses
import functools
import inspect
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jno.lora import LoRAWrapper, Shared, Term, WrapperError
from jno.lora.extending import over_stack, overrides, run, widest, with_arrays

from ._arrays import in_compute_dtype
from ._matrices_layer import MatricesLayer
from ._method import Method, without_alpha
from ._weighted import with_attributes
from .layers.linear import LinearLayer


@functools.cache
def per_matrix(method: type[Method]) -> "type[MethodPerMatrix]":
    """`method` on each matrix of a layer, as a base class beside a `MatricesLayer`."""
    of_one_matrix = type(f"{method.__name__}OfOneMatrix", (method, LinearLayer), {})
    is_product = of_one_matrix.low_rank_scale(1, 1.0) is not None
    names = [field.name for field in dataclasses.fields(of_one_matrix)]
    method_fields = tuple(name for name in names if name not in _OTHER_FIELDS)
    members: dict[str, Any] = {
        "__annotations__": dict.fromkeys(method_fields, Any),
        "__doc__": inspect.getdoc(method),
        "__init__": _constructor(of_one_matrix),
        "method": method,
        "of_one_matrix": of_one_matrix,
        "method_fields": method_fields,
        "default_alpha": classmethod(lambda cls, rank: method.default_alpha(rank)),
        **{name: getattr(method, name) for name in _SAME_FOR_EACH_MATRIX},
    }
    # Tools ask whether a class defines these.
    if overrides(method, LoRAWrapper, "penalty"):
        members["penalty"] = _penalty
    if overrides(of_one_matrix, LoRAWrapper, "unwrap"):
        members["unwrap"] = _unwrap
    base = ProductPerMatrix if is_product else MethodPerMatrix
    return cast(Any, type(f"{method.__name__}PerMatrix", (base,), members))


# There is no dropout, because a layer passes no key on to its matrices.
_OTHER_FIELDS = ("base", "rank", "alpha", "dropout")
_SAME_FOR_EACH_MATRIX = (
    *("adapter_fields", "optional_fields", "factor_sides", "rank_gate", "rank_axes"),
    *("needs", "about"),
)


class MethodPerMatrix(MatricesLayer):
    """A method on each matrix of a layer: `per_matrix` makes the subclass of a method.

    Each field of the method is a dict with the value of each matrix, or `None` if all are `None`.
    `adapters()` takes the dicts apart into an adapter for each matrix, which computes everything.
    """

    method: ClassVar[type[Method]]
    # The method on a linear layer, which adapts a single matrix, and its fields.
    of_one_matrix: ClassVar[type[Method]]
    method_fields: ClassVar[tuple[str, ...]]
    # Layers of one model have matrices of a few shapes, in many combinations.
    compiles_parts = True

    rank: int = eqx.field(static=True)
    alpha: Any = eqx.field(static=True)

    def __init__(
        self,
        base: eqx.Module,
        rank: int,
        alpha: float | None,
        *,
        key: PRNGKeyArray,
        names: Iterable[str] | None = None,
        statistics: Mapping[str, Array] | None = None,
        **options: Any,
    ):
        linears = self.linear_layers(base)
        if names is not None:
            linears = {name: linears[name] for name in names}
        blocks = self.statistics_by_matrix(base, statistics or {}) if self.needs else {}
        adapters: dict[str, Method] = {}
        for name, linear in linears.items():
            # By its name, so that a matrix's start does not depend on the layer's remaining
            # matrices. Outside the program, because it differs for each name.
            own_key = jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))
            given = {**options, "statistics": blocks[name]} if self.needs else options
            adapters[name] = run(
                _adapter_of, self.of_one_matrix, linear, rank, alpha, own_key, given
            )
        if any(map(_modes, adapters.values())) and (self.needs or _share_arrays(adapters)):
            raise ValueError(
                f"{type(self).__name__} starts from data, or shares arrays between layers, which "
                "it cannot do for each slice of a matrix. Choose another method"
            )
        for field, value in self._fields(base, adapters, alpha).items():
            setattr(self, field, value)

    def adapters(self) -> dict[str, Method]:
        """The adapter of each adapted matrix, around a linear layer."""
        return self._adapters_around(self.linear_layers(self.base))

    def merge(self) -> eqx.Module:
        return self._with_each("merge")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The adapted layer's output, for the arguments that the layer itself takes."""
        if self.computes(*args, **kwargs):
            return self.call(self.adapters(), *args, **kwargs)
        return with_arrays(self).merge()(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    def partition_specs(self) -> dict[str, PartitionSpec]:
        linears = over_stack(self.linear_layers, self.stack_ndim(self.base))(self.base)
        return {
            f"{field}/{name}": spec
            for name, adapter in self._adapters_around(linears).items()
            for field, spec in adapter.partition_specs().items()
        }

    def with_directions(
        self, directions: Mapping[str, Mapping[str, Array | None]], weights: Float[Array, " K"]
    ) -> LoRAWrapper | None:
        moved: dict[str, LoRAWrapper] = {}
        for name, adapter in self.adapters().items():
            of_matrix = {
                field: values[name]
                for field, values in directions.items()
                if values[name] is not None  # skips a bias that this matrix lacks
            }
            with_sums = adapter.with_directions(of_matrix, weights)
            if with_sums is None or _modes(adapter):
                return None
            moved[name] = with_sums
        return with_attributes(self, self._dicts(moved))

    def state(self) -> dict[str, Array]:
        return {
            f"{field}/{name}": array
            for name, adapter in self.adapters().items()
            for field, array in adapter.state().items()
        }

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for of_matrix in by_matrix(state).values():
            options |= cls.of_one_matrix.options_of(of_matrix)
        return options

    @classmethod
    def from_state(
        cls, base: eqx.Module, state: Mapping[str, Array], rank: int, alpha: float | None
    ) -> LoRAWrapper:
        linears, states = cls.linear_layers(base), by_matrix(state)
        fits = states.keys() <= linears.keys() and len(states) > 0
        if not fits or (cls.adapts_all and len(states) < len(linears)):
            raise WrapperError(
                f"The saved state is for the matrices {', '.join(sorted(states))}, but this "
                f"{type(base).__name__} has {', '.join(sorted(linears))}"
            )
        restore = functools.partial(cls.of_one_matrix.from_state, rank=rank, alpha=alpha)
        adapters = {
            name: over_stack(restore, LinearLayer.stack_ndim(linears[name]))(linears[name], arrays)
            for name, arrays in states.items()
        }
        return with_attributes(object.__new__(cls), cls._fields(base, adapters, alpha))

    @classmethod
    def _fields(
        cls, base: eqx.Module, adapters: Mapping[str, LoRAWrapper], alpha: float | None
    ) -> dict[str, Any]:
        """The fields of a new adapter around `base`, from the adapters of its matrices."""
        if overrides(cls.of_one_matrix, LoRAWrapper, "unwrap"):  # the start changes the matrices
            base = cls.with_linear_layers(base, {n: a.base for n, a in adapters.items()})
        rank = max(adapter.rank for adapter in adapters.values())
        return {"base": base, "rank": rank, "alpha": alpha, **cls._dicts(adapters)}

    @classmethod
    def _dicts(cls, adapters: Mapping[str, LoRAWrapper]) -> dict[str, dict[str, Any] | None]:
        """The fields of the method, from the adapters of the matrices."""
        dicts: dict[str, dict[str, Any] | None] = {}
        for field in cls.method_fields:
            values = {name: getattr(adapter, field) for name, adapter in adapters.items()}
            dicts[field] = None if all(v is None for v in values.values()) else values
        return dicts

    def _adapters_around(self, linears: Mapping[str, eqx.nn.Linear]) -> dict[str, Method]:
        """The adapter of each adapted matrix, around one of these linear layers."""
        dicts = {field: getattr(self, field) for field in self.method_fields}
        adapted = dicts[self.adapter_fields[0]]
        adapters: dict[str, Method] = {}
        for name, linear in linears.items():
            if name in adapted:
                rank = self.of_one_matrix.effective_rank(self.rank, *linear.weight.shape[-2:])
                values = {f: None if d is None else _item(d, name) for f, d in dicts.items()}
                values |= {"base": linear, "rank": rank, "alpha": self.alpha, "dropout": None}
                adapters[name] = with_attributes(object.__new__(self.of_one_matrix), values)
        return adapters

    def _with_each(self, method: str) -> eqx.Module:
        """The base with the linear layers that a method of the adapter of each matrix returns."""
        linears = {name: run(_each_slice, method, a) for name, a in self.adapters().items()}
        return self.with_linear_layers(self.base, linears)


class ProductPerMatrix(MethodPerMatrix):
    """Plain LoRA on each matrix of a layer."""

    @classmethod
    def with_products(
        cls, layer: eqx.Module, factors: Mapping[str, tuple[Array, Array]]
    ) -> LoRAWrapper:
        rank = next(iter(factors.values()))[0].shape[-2]
        state: dict[str, Array] = {}
        for name, (A, B) in factors.items():
            # A small matrix gets only as many directions as it needs.
            A, B = _with_directions(min(rank, A.shape[-1], B.shape[-2]), A, B)
            B = B / cls._scale(A.shape[-2], float(rank))
            state |= {f"lora_A/{name}": A, f"lora_B/{name}": B}
        return cls.from_state(layer, state, rank, float(rank))

    @classmethod
    def sum_of(cls, terms: Sequence[Term], rank: int | None = None) -> Term:
        """The weighted sum, in which the directions of each matrix lie side by side."""
        total = max(sum(term.rank for term in terms), rank or 0)
        states = [by_matrix(term.state) for term in terms]
        if any(fields.keys() != {"lora_A", "lora_B"} for s in states for fields in s.values()):
            raise ValueError(
                "only factors have a sum, and an adapter among these also trains a bias. Train "
                'without `bias="train"`, or merge the adapters'
            )
        state: dict[str, Array] = {}
        for name in dict.fromkeys(name for s in states for name in s):
            # An adapter may not adapt this matrix.
            adapted = [(s[name], term) for s, term in zip(states, terms, strict=True) if name in s]
            As, Bs = ([fields[field] for fields, _ in adapted] for field in ("lora_A", "lora_B"))
            A = jnp.concatenate([in_compute_dtype(A) for A in As], axis=-2)
            B = jnp.concatenate([cls._scaled(*item) for item in adapted], axis=-1)
            # As many directions as an adapter with the total rank has for this matrix.
            A, B = _with_directions(min(total, B.shape[-2], A.shape[-1]), A, B)
            B = B / cls._scale(A.shape[-2], float(total))
            state[f"lora_A/{name}"] = A.astype(widest(A.dtype for A in As))
            state[f"lora_B/{name}"] = B.astype(widest(B.dtype for B in Bs))
        return Term(state, total, float(total))

    @classmethod
    def _scaled(cls, fields: Mapping[str, Array], term: Term) -> Array:
        """`B`, with the scale and the weight of a term of a sum."""
        B = in_compute_dtype(fields["lora_B"])
        scale = term.weight * cls._scale(fields["lora_A"].shape[-2], term.alpha)
        return B * jnp.asarray(scale, B.dtype)

    @classmethod
    def _scale(cls, rank: int, alpha: float) -> float:
        """The factor of `B A`, for the rank of one matrix."""
        scale = cls.of_one_matrix.low_rank_scale(rank, alpha)
        assert scale is not None
        return scale


def by_matrix(state: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """The state of each matrix, from the layer's state, which has the keys `field/matrix`."""
    states: dict[str, dict[str, Array]] = {}
    for path, array in state.items():
        field, _, name = path.partition("/")
        states.setdefault(name, {})[field] = array
    return states


def _constructor(of_one_matrix: type[Method]) -> Callable[..., None]:
    """`MethodPerMatrix.__init__` with the options of the method in its signature."""

    def construct(self: MethodPerMatrix, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("dropout"):
            name = type(self).__name__
            raise ValueError(f"`dropout` cannot be used by {name}: its layers pass no key on")
        MethodPerMatrix.__init__(self, *args, **without_alpha(of_one_matrix, args, kwargs))

    signature = inspect.signature(of_one_matrix.__init__)
    parameters = [p for name, p in signature.parameters.items() if name != "dropout"]
    setattr(construct, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
    return construct


def _adapter_of(
    cls: type[Method],
    linear: eqx.nn.Linear,
    rank: int,
    alpha: float | None,
    key: PRNGKeyArray,
    options: Mapping[str, Any],
) -> Method:
    """The adapter of one matrix. Each slice of a matrix with modes gets its own key."""

    def construct(linear: eqx.nn.Linear, key: PRNGKeyArray) -> Method:
        return cls(linear, rank, alpha, key=key, **options)

    modes = linear.weight.shape[:-2]
    keys = jax.random.split(key, modes) if modes else key
    return over_stack(construct, len(modes))(linear, keys)


def _modes(adapter: Method) -> int:
    """The number of axes in front of the matrix of an adapter."""
    return LinearLayer.stack_ndim(adapter.base)


def _each_slice(method: str, adapter: Method) -> PyTree:
    """The result of a method of the adapter, for each slice of a matrix with modes."""
    return over_stack(lambda one: getattr(one, method)(), _modes(adapter))(adapter)


def _unwrap(layer: MethodPerMatrix) -> eqx.Module:
    """The base with the matrices that it had before adapting."""
    return layer._with_each("unwrap")


def _penalty(layer: MethodPerMatrix) -> Float[Array, ""]:
    """The sum of the penalties of all matrices."""
    terms = [jnp.sum(_each_slice("penalty", adapter)) for adapter in layer.adapters().values()]
    return sum(terms[1:], terms[0])


def _share_arrays(adapters: Mapping[str, Method]) -> bool:
    fields = (field for adapter in adapters.values() for field in vars(adapter).values())
    return any(isinstance(field, Shared) for field in fields)


def _item(values: Mapping[str, Any], name: str) -> Any:
    """The value for one matrix. An array that several matrices share is stored only once."""
    value = values[name]
    if not isinstance(value, Shared) or value.value is not None or value.held is not None:
        return value
    kept = (s.value for s in values.values() if s.name == value.name and s.value is not None)
    array = next(kept, None)
    return eqx.tree_at(lambda s: s.value, value, array, is_leaf=lambda x: x is None)


def _with_directions(
    rank: int, A: Float[Array, "*modes k in"], B: Float[Array, "*modes out k"]
) -> tuple[Array, Array]:
    """Factors of the same product with `rank` directions, which suffice for it."""
    if A.shape[-2] <= rank:
        stack, zeros = [(0, 0)] * (A.ndim - 2), (0, rank - A.shape[-2])
        return jnp.pad(A, [*stack, zeros, (0, 0)]), jnp.pad(B, [*stack, (0, 0), zeros])
    product = B @ A
    identity = jnp.broadcast_to(jnp.eye(rank, dtype=A.dtype), (*A.shape[:-2], rank, rank))
    return (identity, product) if A.shape[-1] == rank else (product, identity)
