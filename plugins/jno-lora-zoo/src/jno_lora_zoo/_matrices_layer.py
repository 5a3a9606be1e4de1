"""Layers with several matrices: every method of the zoo, with arrays for each matrix."""

import abc
import dataclasses
import functools
import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from jno.lora import LoRAWrapper, Shared, Term, WrapperError
from jno.lora.extending import over_stack, run, widest, with_arrays

from ._arrays import in_compute_dtype
from ._layer_kind import Bias, KindOfLayer
from ._method import Method, without_alpha
from ._weighted import with_attributes
from .layers.linear import LinearLayer

# Facts of a method that also apply to each of several matrices.
_FACTS = (
    *("adapter_fields", "optional_fields", "factor_sides", "rank_gate", "rank_axes"),
    *("needs", "about"),
)
# The side of the matrix along each axis of a statistic.
_SIDES = {
    "input_covariance": ("in", "in"),
    "input_mean": ("in",),
    "output_covariance": ("out", "out"),
    "gradient": ("out", "in"),
}


class MatricesLayer(KindOfLayer):
    """A kind of layer with several matrices, which it can read and replace.

    A subclass defines which layers are of its kind (`fits`), `matrices` and `with_matrices`. From
    it, `adapters_for` makes an adapter for each method of the zoo. The adapter has the fields of
    the method, each a dict with the array of each matrix, and treats each matrix as the method
    treats a linear layer. A matrix may have leading axes, whose slices are adapted separately
    (`matrices` of the contract).

    All other members are optional: `stack_ndim` for stacks, `biases_of` and `with_biases` for
    methods that adapt a bias, `computes` and `call` for a fast path, `rows_of_inputs` and
    `rows_of_outputs` for methods that start from data.
    """

    method: ClassVar[type[Method]]
    kind: ClassVar[type["MatricesLayer"]]
    # The method on a linear layer, which adapts a single matrix, and the fields with its arrays.
    of_one_matrix: ClassVar[Any]
    fields_of_one: ClassVar[tuple[str, ...]]

    # Layers of one model have matrices of a few shapes, in many combinations.
    compiles_parts = True

    base: eqx.Module
    rank: int = eqx.field(static=True)
    alpha: Any = eqx.field(static=True)

    def __init__(
        self,
        base: eqx.Module,
        rank: int,
        alpha: float | None,
        *,
        key: PRNGKeyArray,
        statistics: Mapping[str, Array] | None = None,
        **options: Any,
    ):
        linears = self.linear_layers(base)
        blocks = blocks_of(self, base, linears, statistics)
        adapters: dict[str, Any] = {}
        for name, linear in linears.items():
            # By its name, so that a matrix's start does not depend on the layer's remaining
            # matrices.
            number = np.uint32(zlib.crc32(name.encode()))
            # Outside the programs, which would all include it; compiling it takes a third as long
            # as compiling a random start.
            of_name = jax.random.fold_in(key, number)
            given = {"statistics": blocks[name]} if self.needs else {}
            settings = (self.of_one_matrix, rank, alpha, tuple(options.items()))
            adapters[name] = run(constructed, settings, linear, of_name, given)
        fields = [field for adapter in adapters.values() for field in vars(adapter).values()]
        shares = any(isinstance(field, Shared) for field in fields)
        if any(map(modes_of, linears.values())) and (self.needs or shares):
            raise ValueError(
                f"{type(self).__name__} starts from data, or shares arrays between layers, which "
                "it cannot do for each slice of a matrix. Choose another method"
            )
        self._take(base, adapters, alpha)

    @classmethod
    @abc.abstractmethod
    def matrices(cls, layer: Any) -> Mapping[str, Float[Array, "*modes _ _"]]:
        """The matrices of one plain `layer` by name, in at least float32."""

    @classmethod
    @abc.abstractmethod
    def with_matrices(cls, base: Any, matrices: Mapping[str, Array]) -> eqx.Module:
        """`base` with these matrices replaced, up to the rounding of its dtype."""

    @classmethod
    def biases_of(cls, layer: Any) -> Mapping[str, Bias]:
        """The biases that `layer` adds to its products, by name of the matrix. Default: empty."""
        return {}

    @classmethod
    def with_biases(cls, base: Any, biases: Mapping[str, Bias]) -> eqx.Module:
        """`base` with these biases, for kinds with `biases_of`."""
        raise NotImplementedError

    def computes(self, *args: Any, **kwargs: Any) -> bool:
        """Whether `call` with the plain matrices computes `base(*args, **kwargs)`."""
        return False

    def call(self, products: Mapping[str, Callable[[Array], Array]], *args: Any) -> Any:
        """The output of the layer with its matrices replaced by other linear maps.

        - `products`: by name, the map of a vector `(in,)` to a vector `(out,)`, with the bias.
        """
        raise NotImplementedError

    @classmethod
    def rows_of_inputs(cls, layer: Any, *args: Any, **kwargs: Any) -> Mapping[str, Array]:
        """The vectors `(n, in)` that each matrix multiplies in this call, by name; `n` is the same
        for all.

        Needed for methods with `needs`.
        """
        raise WrapperError(f"{cls.__name__} does not say which vectors its matrices multiply")

    @classmethod
    def rows_of_outputs(cls, layer: Any, y: Any) -> Mapping[str, Array]:
        """The output vectors `(n, out)` of each matrix, by name, for the layer's output `y`."""
        raise WrapperError(f"{cls.__name__} does not say which vectors its matrices give")

    @classmethod
    def gradient_factors(cls, layer: Any) -> Mapping[str, float]:
        """By name, the ratio of a matrix's gradient to `matrices(layer gradient)`, if not 1."""
        return {}

    # The members of the contract follow from the members above.

    @classmethod
    def linear_layers(cls, layer: Any) -> dict[str, eqx.nn.Linear]:
        """The matrices of `layer` as linear layers, with any mode axes in front of the weights."""
        biases = cls.biases_of(layer)
        return {name: linear_layer(W, biases.get(name)) for name, W in cls.matrices(layer).items()}

    def adapters(self) -> dict[str, Any]:
        """The adapter of each matrix, around a linear layer."""
        linears = self.linear_layers(self.base)
        return {name: self._adapter_of(name, linear) for name, linear in linears.items()}

    def merge(self) -> eqx.Module:
        return self._with_linears(merged)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The adapted layer's output, for the arguments that the layer itself takes."""
        if self.computes(*args, **kwargs):
            return self.call(self.adapters(), *args)
        return with_arrays(self).merge()(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    def partition_specs(self) -> dict[str, PartitionSpec]:
        linears = over_stack(self.linear_layers, self.stack_ndim(self.base))(self.base)
        return {
            f"{field}/{name}": spec
            for name, linear in linears.items()
            for field, spec in self._adapter_of(name, linear).partition_specs().items()
        }

    def with_directions(self, directions: Mapping[str, Any], weights: Float[Array, " K"]) -> Any:
        adapters: dict[str, Any] = {}
        for name, adapter in self.adapters().items():
            of_matrix = {
                field: values[name]
                for field, values in directions.items()
                if values[name] is not None  # skips a bias that this matrix lacks
            }
            adapters[name] = adapter.with_directions(of_matrix, weights)
            if adapters[name] is None or modes_of(adapter.base):
                return None
        return with_attributes(self, self._fields_of(adapters))

    def state(self) -> dict[str, Any]:
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
        cls, base: eqx.Module, state: Mapping[str, Array], rank: Any, alpha: Any
    ) -> LoRAWrapper:
        linears, states = cls.linear_layers(base), by_matrix(state)
        if linears.keys() != states.keys():
            raise WrapperError(
                f"The saved state is for the matrices {', '.join(sorted(states))}, but this "
                f"{type(base).__name__} has {', '.join(sorted(linears))}"
            )
        restore = functools.partial(cls.of_one_matrix.from_state, rank=rank, alpha=alpha)
        adapters = {
            name: over_stack(restore, modes_of(linear))(linear, states[name])
            for name, linear in linears.items()
        }
        restored = object.__new__(cls)
        restored._take(base, adapters, alpha)
        return restored

    @classmethod
    def matrix(cls, layer: Any) -> Array | None:
        """For methods with `needs`: one block-diagonal matrix of all matrices."""
        if not cls.needs:
            return None
        return jax.scipy.linalg.block_diag(*cls.matrices(layer).values())

    @classmethod
    def inputs_of(cls, layer: Any, *args: Any, **kwargs: Any) -> Float[Array, "n in"]:
        rows = cls.rows_of_inputs(layer, *args, **kwargs)
        return jnp.concatenate([rows[name] for name in cls.matrices(layer)], axis=1)

    @classmethod
    def outputs_of(cls, layer: Any, y: Any) -> Float[Array, "n out"]:
        rows = cls.rows_of_outputs(layer, y)
        return jnp.concatenate([rows[name] for name in cls.matrices(layer)], axis=1)

    def _take(self, base: Any, adapters: Mapping[str, Any], alpha: float | None) -> None:
        """Set the fields of this new adapter from the adapters of the matrices."""
        values = self._fields_of(adapters)
        values["rank"], values["alpha"] = max(a.rank for a in adapters.values()), alpha
        if self._changes_base():
            base = self.with_matrices(base, {n: a.base.weight for n, a in adapters.items()})
        values["base"] = base
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def _changes_base(cls) -> bool:
        """Whether the method starts by changing the matrices of the base (PiSSA)."""
        return cls.of_one_matrix.unwrap is not LoRAWrapper.unwrap

    @classmethod
    def _fields_of(cls, adapters: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the method, each a dict by matrix name; `None` if all values are `None`."""
        dicts = {f: {n: getattr(a, f) for n, a in adapters.items()} for f in cls.fields_of_one}
        return {f: None if all(v is None for v in d.values()) else d for f, d in dicts.items()}

    def _adapter_of(self, name: str, linear: Any) -> Any:
        """The adapter of a single matrix, around the linear layer with this matrix."""
        dicts = {field: getattr(self, field) for field in self.fields_of_one}
        values = {f: None if d is None else item_of(d, name) for f, d in dicts.items()}
        rank = self.of_one_matrix.effective_rank(self.rank, *linear.weight.shape[-2:])
        values |= {"base": linear, "rank": rank, "alpha": self.alpha}
        return with_attributes(object.__new__(self.of_one_matrix), values)

    def _with_linears(self, function: Callable[[Any], Any]) -> eqx.Module:
        """The base with the matrices and biases of the linear layers that `function` returns."""
        linears = {name: run(function, a) for name, a in self.adapters().items()}
        layer = self.with_matrices(self.base, {n: linear.weight for n, linear in linears.items()})
        biases = {n: linear.bias for n, linear in linears.items() if linear.bias is not None}
        return self.with_biases(layer, biases) if biases else layer


def item_of(values: Mapping[str, Any], name: str) -> Any:
    """The value for one matrix. An array that several matrices share is stored only once."""
    value = values[name]
    if not isinstance(value, Shared) or value.value is not None or value.held is not None:
        return value
    kept = (s.value for s in values.values() if s.name == value.name and s.value is not None)
    array = next(kept, None)
    return eqx.tree_at(lambda s: s.value, value, array, is_leaf=lambda x: x is None)


def linear_layer(W: Float[Array, "*modes out in"], bias: Any = None) -> eqx.nn.Linear:
    """A linear layer with this matrix; mode axes in front are treated like a stack."""
    sizes = {"in_features": W.shape[-1], "out_features": W.shape[-2]}
    arrays = {"weight": W, "bias": bias, "use_bias": bias is not None}
    return with_attributes(object.__new__(eqx.nn.Linear), {**sizes, **arrays})


def modes_of(linear: Any) -> int:
    return linear.weight.ndim - 2


def constructed(settings: Any, linear: Any, key: Any, given: Any) -> Any:
    """The adapter of one matrix. Each slice of a matrix with modes gets its own key."""
    cls, rank, alpha, options = settings
    modes = linear.weight.shape[:-2]

    def construct(linear: Any, key: Any) -> Any:
        return cls(linear, rank, alpha, key=key, **dict(options), **given)

    keys = jax.random.split(key, modes) if modes else key
    return over_stack(construct, len(modes))(linear, keys)


def merged(adapter: Any) -> Any:
    return over_stack(lambda a: a.merge(), modes_of(adapter.base))(adapter)


def _unwrapped(adapter: Any) -> Any:
    return over_stack(lambda a: a.unwrap(), modes_of(adapter.base))(adapter)


def by_matrix(state: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """The state of each matrix, from the layer's state, which has the keys `field/matrix`."""
    states: dict[str, dict[str, Array]] = {}
    for path, array in state.items():
        field, _, name = path.partition("/")
        states.setdefault(name, {})[field] = array
    return states


def blocks_of(
    cls: Any, base: Any, matrices: Mapping[str, Any], statistics: Mapping[str, Array] | None
) -> dict[str, dict[str, Array]]:
    """The statistics of each matrix by name, which are blocks of the statistics of `cls.matrix`.

    **Raises:** `KeyError` for statistics that are not built in, whose blocks are not known.
    """
    blocks: dict[str, dict[str, Array]] = {}
    starts = {"out": 0, "in": 0}
    factors = cls.gradient_factors(base)
    for name, linear in matrices.items():
        sizes = dict(zip(("out", "in"), linear.weight.shape[-2:], strict=True))
        stops = {side: starts[side] + size for side, size in sizes.items()}
        places = {side: slice(starts[side], stops[side]) for side in starts}
        blocks[name] = {
            need: array[tuple(places[side] for side in _SIDES[need])]
            for need, array in (statistics or {}).items()
        }
        if "gradient" in blocks[name]:
            blocks[name]["gradient"] = factors.get(name, 1.0) * blocks[name]["gradient"]
        starts = stops
    return blocks


def with_products(cls: Any, layer: Any, factors: Mapping[str, tuple[Array, Array]]) -> Any:
    """The adapter of class `cls` that adds `B A` to each of the matrices of a plain `layer`.

    - `factors`: by name, `A` `(*modes, r, in)` and `B` `(*modes, out, r)`, with one `r`.
    """
    rank = next(iter(factors.values()))[0].shape[-2]
    state: dict[str, Array] = {}
    for name, (A, B) in factors.items():
        # A small matrix gets only as many directions as it needs.
        A, B = _with_directions(min(rank, A.shape[-1], B.shape[-2]), A, B)
        scale = cls.of_one_matrix.low_rank_scale(A.shape[-2], float(rank))
        state |= {f"lora_A/{name}": A, f"lora_B/{name}": B / scale}
    return cls.from_state(layer, state, rank, float(rank))


def sum_of(cls: Any, terms: Sequence[Term], rank: int | None = None) -> Term:
    """The weighted sum of adapters of class `cls`, with each matrix's directions side by side."""
    total = max(sum(term.rank for term in terms), rank or 0)
    states = [by_matrix(term.state) for term in terms]
    if any(fields.keys() != {"lora_A", "lora_B"} for s in states for fields in s.values()):
        raise ValueError(
            "only factors have a sum, and an adapter among these also trains a bias. Train without "
            '`bias="train"`, or merge the adapters'
        )
    state: dict[str, Array] = {}
    for name in states[0]:
        pairs = [(s[name]["lora_A"], s[name]["lora_B"]) for s in states]
        scaled = [_scaled(cls, *pair, term) for pair, term in zip(pairs, terms, strict=True)]
        A = jnp.concatenate([in_compute_dtype(A) for A, _ in pairs], axis=-2)
        B = jnp.concatenate(scaled, axis=-1)
        # As many directions as an adapter with the total rank has for this matrix.
        A, B = _with_directions(min(total, B.shape[-2], A.shape[-1]), A, B)
        B = B / cls.of_one_matrix.low_rank_scale(A.shape[-2], float(total))
        state[f"lora_A/{name}"] = A.astype(widest(A.dtype for A, _ in pairs))
        state[f"lora_B/{name}"] = B.astype(widest(B.dtype for _, B in pairs))
    return Term(state, total, float(total))


def _scaled(cls: Any, A: Array, B: Array, term: Term) -> Array:
    wide = in_compute_dtype(B)
    scale = term.weight * cls.of_one_matrix.low_rank_scale(A.shape[-2], term.alpha)
    return wide * jnp.asarray(scale, wide.dtype)


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


def adapter_of_several(
    kind: type[MatricesLayer], method: type[Method], name: str, body: Mapping[str, Any]
) -> Any:
    """The adapter class of `method` for a kind of layer with several matrices.

    It has the fields of the method's adapter of a linear layer.
    """
    of_one_matrix = _of_one_matrix(method)
    names = [field.name for field in dataclasses.fields(of_one_matrix)]
    fields = tuple(name for name in names if name not in ("base", "rank", "alpha"))

    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("dropout"):
            raise ValueError(f"`dropout` cannot be used by {name}: its layers pass no key on")
        kind.__init__(self, *args, **without_alpha(method, args), **kwargs)

    signature = inspect.signature(of_one_matrix.__init__)
    options = [p for n, p in signature.parameters.items() if n != "dropout"]
    setattr(construct, "__signature__", signature.replace(parameters=options))  # noqa: B010
    facts: dict[str, Any] = {fact: getattr(method, fact) for fact in _FACTS}
    if method.penalty is not LoRAWrapper.penalty:
        facts["penalty"] = _penalty
    if of_one_matrix.unwrap is not LoRAWrapper.unwrap:  # the start changes the matrices
        facts["unwrap"] = _unwrap
    if of_one_matrix.low_rank_scale(1, 1.0) is not None:
        facts |= {"with_products": classmethod(with_products), "sum_of": classmethod(sum_of)}
    attributes = {
        "__annotations__": dict.fromkeys(fields, Any),
        "__doc__": inspect.getdoc(method),
        "__init__": construct,
        "method": method,
        "kind": kind,
        "of_one_matrix": of_one_matrix,
        "default_alpha": staticmethod(method.default_alpha),
        "fields_of_one": fields,
        **facts,
    }
    return type(name, (kind,), {**attributes, **body})


@functools.cache
def _of_one_matrix(method: type[Method]) -> Any:
    return type(f"{method.__name__}OfOneMatrix", (method, LinearLayer), {})


def _penalty(layer: MatricesLayer) -> Array:
    """The sum of the penalties of all matrices."""
    terms = [
        jnp.sum(over_stack(lambda a: a.penalty(), adapter.base.weight.ndim - 2)(adapter))
        for adapter in layer.adapters().values()
    ]
    return sum(terms[1:], terms[0])


def _unwrap(layer: MatricesLayer) -> eqx.Module:
    """The base with the matrices that it had before adapting."""
    return layer._with_linears(_unwrapped)
