"""`AdapterSum`: several adapters of one layer, whose updates are added."""

import contextlib
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from .._compute import at_least_float32
from .._contract import LoRAWrapper, Term, adds_up
from .._errors import JnoLoraError, WrapperError
from .._registry import default_registry
from .._tree import claims
from ._products import Factors, is_product_class, widest

# A function that builds an adapter around a layer.
Build = Callable[[Any], LoRAWrapper]


class Member(NamedTuple):
    """One adapter of a sum: its name, class, rank and alpha, and whether it trains."""

    name: str
    wrapper: type[LoRAWrapper]
    rank: int | None
    alpha: float | None
    trains: bool = False


class AdapterSum(LoRAWrapper):
    """Several adapters of one layer: `W' = W + sum_i w_i U_i`, with one base.

    The update of each adapter is what it does to the base: `U_i = W_i - W`, where `W_i` is the
    layer that it merges to. A call multiplies by one low-rank product, whose factors are the
    members' factors side by side; updates that are no products are added to the weight.

    `sum_adapters` and `Net.activate` make sums. A sum has a class for its members (`sum_class`).

    - `trained`, `frozen`: the members by name, without their base.
    - `weights`: `w`, in the order of `members`.
    """

    members: ClassVar[tuple[Member, ...]] = ()
    adapter_fields = ()

    base: Any
    trained: dict[str, Any]
    frozen: dict[str, Any]
    weights: Float[Array, " n"]

    @classmethod
    def applies_to(cls, leaf: Any) -> bool:
        return bool(cls.members) and all(claims(m.wrapper, leaf) for m in cls.members)

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return cls.members[0].wrapper.stack_ndim(leaf)

    @classmethod
    def matrix(cls, layer: Any) -> Array | None:
        """The matrix of the first member, if all members see the same matrix."""
        views = {view_of(member.wrapper) for member in cls.members}
        return cls.members[0].wrapper.matrix(layer) if len(views) == 1 else None

    def member(self, name: str) -> LoRAWrapper:
        """The member of that name, around the base of the sum.

        A member that replaced the weight of its layer (PiSSA) does not compute its update here: its
        own base would be a residual.
        """
        bare = (self.trained | self.frozen)[name]
        return eqx.tree_at(lambda m: m.base, bare, self.base, is_leaf=lambda x: x is None)

    def joined(self) -> Any:
        """One adapter, or one plain layer, that computes what the sum computes."""
        groups, single = self._groups()
        outer = next((g for g in groups if not g.mergeable), groups[0] if groups else None)
        changes = [(at_least_float32(self.member(m.name)).merge(), w) for m, w in single]
        for group in groups:
            if group is not outer:
                merged = at_least_float32(group.build(self.base)).merge()
                changes.append((merged, jnp.ones((), self.weights.dtype)))
        layer = _changed(self.base, changes) if changes else self.base
        return layer if outer is None else outer.build(layer)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.joined()(*args, **kwargs)

    def merge(self) -> Any:
        layer = self.joined()
        return layer.merge() if isinstance(layer, LoRAWrapper) else layer

    def low_rank_update(self) -> tuple[Array, Array] | None:
        weights = list(self.weights)
        factors = [self._factors(m, w) for m, w in zip(self.members, weights, strict=True)]
        if len({view_of(m.wrapper) for m in self.members}) > 1 or None in factors:
            return None
        return _side_by_side([pair for pair in factors if pair is not None])

    def penalty(self) -> Array:
        """The penalties of the members that train."""
        adapters = [self.member(name) for name in self.trained]
        values = [at_least_float32(jnp.asarray(adapter.penalty())) for adapter in adapters]
        dtype = widest(value.dtype for value in (jnp.zeros(()), *values))
        return sum((value.astype(dtype) for value in values), start=jnp.zeros((), dtype))

    def partition_specs(self) -> dict[str, PartitionSpec]:
        return {
            f"{field}/{name}/{path}": spec
            for field in ("trained", "frozen")
            for name in getattr(self, field)
            for path, spec in self.member(name).partition_specs().items()
        }

    def state(self) -> dict[str, Any]:
        states = {member.name: self.member(member.name).state() for member in self.members}
        arrays = {f"{name}/{key}": x for name, state in states.items() for key, x in state.items()}
        return {"weights": self.weights, **arrays}

    @classmethod
    def from_state(
        cls, base: Any, state: Mapping[str, Array], rank: Any, alpha: Any
    ) -> "AdapterSum":
        fields: dict[str, dict[str, Any]] = {"trained": {}, "frozen": {}}
        for member in cls.members:
            prefix = f"{member.name}/"
            arrays = {
                key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)
            }
            adapter = member.wrapper.from_state(base, arrays, member.rank, member.alpha)
            bare = eqx.tree_at(lambda w: w.base, adapter, None)
            fields["trained" if member.trains else "frozen"][member.name] = bare
        missing = {"weights"} - state.keys()
        if missing or state["weights"].shape != (len(cls.members),):
            raise WrapperError(f"The saved state has no `weights` of {len(cls.members)} members.")
        return cls(base, **fields, weights=state["weights"])  # pyright: ignore

    def _factors(self, member: Member, weight: Array) -> tuple[Array, Array] | None:
        factors = at_least_float32(self.member(member.name)).low_rank_update()
        if factors is None:
            return None
        A, B = factors
        return A, B * weight.astype(B.dtype)

    def _groups(self) -> tuple[list["_Group"], list[tuple[Member, Array]]]:
        """The members that become one adapter together, and all other members."""
        pairs = list(zip(self.members, list(self.weights), strict=True))
        groups: list[_Group] = []
        factors = {member.name: self._factors(member, weight) for member, weight in pairs}
        products = [member.wrapper for member in self.members if factors[member.name] is not None]
        holder = _holder(products, self.base)
        if holder is not None:
            view = view_of(holder)
            held = [
                m for m, _ in pairs if factors[m.name] is not None and view_of(m.wrapper) is view
            ]
            A, B = _side_by_side([factors[member.name] for member in held])
            groups.append(_Group(functools.partial(_product_around, holder, A, B), True))
            pairs = [(member, weight) for member, weight in pairs if member not in held]
        for wrapper in dict.fromkeys(m.wrapper for m, _ in pairs if adds_up(m.wrapper)):
            of_class = [(member, weight) for member, weight in pairs if member.wrapper is wrapper]
            terms = [Term(self.member(m.name).state(), m.rank, m.alpha, w) for m, w in of_class]
            total = wrapper.sum_of(terms)
            assert total is not None
            build = functools.partial(_term_around, wrapper, total)
            groups.append(_Group(build, wrapper.mergeable))
            pairs = [(member, weight) for member, weight in pairs if member.wrapper is not wrapper]
        for member, _ in pairs:
            if member.wrapper.unwrap is not LoRAWrapper.unwrap:
                raise WrapperError(
                    f"{member.name!r} ({member.wrapper.__name__}) replaces the weight of its "
                    "layer, and no plain LoRA here holds its update"
                )
        return groups, pairs


class _Group(NamedTuple):
    """Members that become one adapter: how to build it around a layer, and whether it merges."""

    build: Build
    mergeable: bool


@functools.cache
def sum_class(members: tuple[Member, ...], trains_weights: bool = False) -> type[AdapterSum]:
    """The class of the sums of these members. The same members have the same class."""
    fields = ("trained",) if any(member.trains for member in members) else ()
    fields += ("weights",) if trains_weights else ()
    names = ", ".join(member.name for member in members)
    body: dict[str, Any] = {"__module__": __name__, "members": members, "adapter_fields": fields}
    body["mergeable"] = all(member.wrapper.mergeable for member in members)
    return types.new_class(
        f"Sum({names})", (AdapterSum,), exec_body=lambda space: space.update(body)
    )


def view_of(cls: type[LoRAWrapper]) -> Any:
    """The function that reads the matrix. Adapters of one layer kind inherit one function."""
    return getattr(cls.matrix, "__func__", None)


def _holder(products: Sequence[type[LoRAWrapper]], layer: Any) -> type[LoRAWrapper] | None:
    """A class of plain LoRA for `layer` that sees the matrix of one of these classes."""
    if not products:
        return None
    with contextlib.suppress(JnoLoraError):  # no plain LoRA is installed
        products = [*products, *default_registry(None).resolve("lora")]
    views = {view_of(cls) for cls in products}
    return next(
        (c for c in products if is_product_class(c) and view_of(c) in views and claims(c, layer)),
        None,
    )


def _side_by_side(factors: Sequence[Any]) -> tuple[Array, Array]:
    dtype = widest(x.dtype for pair in factors for x in pair)
    A, B = ([x.astype(dtype) for x in column] for column in zip(*factors, strict=True))
    return jnp.concatenate(A), jnp.concatenate(B, axis=1)


def _product_around(cls: type[LoRAWrapper], A: Array, B: Array, layer: Any) -> LoRAWrapper:
    update = Factors(A, B)
    if update.rank > update.largest_rank:  # no adapter has a rank above the rank of its matrix
        product, (outputs, inputs) = B @ A, (B.shape[0], A.shape[1])
        identity = jnp.eye(update.largest_rank, dtype=A.dtype)
        update = Factors(product, identity) if outputs <= inputs else Factors(identity, product)
    return cls.from_state(layer, *update.as_adapter(cls))


def _term_around(cls: type[LoRAWrapper], term: Term, layer: Any) -> LoRAWrapper:
    return cls.from_state(layer, term.state, term.rank, term.alpha)


def _changed(base: Any, changes: Sequence[tuple[Any, Array]]) -> Any:
    """`base` plus the weighted changes of all its arrays, in the dtypes of `base`."""
    wide = at_least_float32(base)
    merged, weights = [layer for layer, _ in changes], [weight for _, weight in changes]

    def add(old: Any, start: Any, *new: Any) -> Any:
        if not eqx.is_inexact_array(start) or all(x is start for x in new):
            return old
        total = start
        for x, w in zip(new, weights, strict=True):
            total = total + w.astype(start.dtype) * (x - start)
        return total.astype(old.dtype)

    return jtu.tree_map(add, base, wide, *merged)
