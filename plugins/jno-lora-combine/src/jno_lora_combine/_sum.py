"""Sums of adapters: `AdapterSum` in one layer, and sets that are added up in a whole model."""

import contextlib
import copyreg
import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jno.lora import (
    AdapterSet,
    JnoLoraError,
    LooseAdapter,
    LoRAWrapper,
    LowRankForm,
    MatrixAdapter,
    SelectionError,
    Term,
    WrapperError,
    extract_adapters,
    unwrap_lora,
)
from jno.lora.extending import (
    Member,
    SeveralAdapters,
    Weights,
    adds_up,
    at_least_float32,
    bullets,
    check_adapter_name,
    check_fit,
    check_number,
    default_registry,
    enclosing,
    expect_model,
    held_dtype,
    nearest,
    overrides,
    put_around,
    refuse_coded,
    safely_applies,
    show_path,
    widest,
)
from jno_lora_zoo import Factors, kind_for

from ._factors import side_by_side, within_full_rank

M = TypeVar("M")
_ADVICE = (
    "Merge one of them, and adapt the merged model: then the second acts on the result of the "
    "first. Or convert them to products: extract_adapters(to_lora(model, rank=...)[0])."
)


class _Part(NamedTuple):
    """An adapter around the base of a sum, and its weight; `None` if its weight is folded in."""

    adapter: LoRAWrapper
    weight: Array | None = None


class AdapterSum(SeveralAdapters):
    """Several adapters of one layer: `W' = W + sum_i w_i U_i`, with one base.

    The update of an adapter is `U_i = W_i - W`, where `W_i` is the merged layer. A call multiplies
    by one low-rank product, whose factors are the members' factors side by side; updates that are
    not products are added to the weight.

    `sum_adapters` and `Net.activate` make sums. Each combination of members has its own class
    (`AdapterSum.of_members`), and a file names them.

    - `trained`, `frozen`: the members by name, without their base.
    - `weights`: `w`, in the order of `members`.
    """

    adapter_fields = ("trained", "weights")

    base: eqx.Module
    trained: dict[str, LoRAWrapper]
    frozen: dict[str, LoRAWrapper]
    weights: Float[Array, " n"]

    @classmethod
    def of_members(cls, members: tuple[Member, ...], trains_weights: bool) -> type["AdapterSum"]:
        """The class of sums of these members. The same members always give the same class."""
        return _sum_class(members, trains_weights)

    @classmethod
    def applies_to(cls, leaf: object) -> bool:
        return bool(cls.members) and all(safely_applies(m.wrapper, leaf) for m in cls.members)

    @classmethod
    def stack_ndim(cls, leaf: Any) -> int:
        return cls.members[0].wrapper.stack_ndim(leaf)

    @classmethod
    def matrix(cls, layer: Any) -> Array | None:
        """The matrix of the first member, if all members see the same matrix."""
        views = {_view_of(member.wrapper, layer) for member in cls.members}
        return MatrixAdapter.of(cls.members[0].wrapper).matrix(layer) if len(views) == 1 else None

    def __check_init__(self):
        hidden = {"trained", "frozen", "weights"} & {*getattr(self.base, "__dict__", ())}
        if hidden:
            raise WrapperError(
                f"A sum of adapters would hide the fields {sorted(hidden)} of the "
                f"{type(self.base).__name__}. Merge one adapter, and adapt the merged model."
            )

    def member(self, name: str) -> LoRAWrapper:
        """The member of that name, as an adapter of the layer before adapting."""
        adapter = self._around_base(name)
        cls = type(adapter)
        if not overrides(cls, LoRAWrapper, "unwrap"):
            return adapter
        # The class replaces the weight of its layer (PiSSA): the member needs a residual.
        return cls.from_state(self.base, adapter.state(), adapter.rank, adapter.alpha)

    def joined(self) -> Any:
        """One adapter, or one plain layer, that computes what the sum computes."""
        parts = self._parts()
        unweighted = [part.adapter for part in parts if part.weight is None]
        # An adapter that cannot be merged has to be outermost. There is at most one (`_problems`).
        unmergeable = [adapter for adapter in unweighted if not type(adapter).mergeable]
        outermost = next(iter([*unmergeable, *unweighted]), None)
        inner = [part for part in parts if part.adapter is not outermost]
        layer = _changed(self.base, inner) if inner else self.base
        return layer if outermost is None else eqx.tree_at(lambda a: a.base, outermost, layer)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.joined()(*args, **kwargs)

    def merge(self) -> eqx.Module:
        layer = self.joined()
        return layer.merge() if isinstance(layer, LoRAWrapper) else layer

    def low_rank_form(self) -> LowRankForm | None:
        forms = self._forms()
        is_known = len(forms) == len(self.members) and all(f.gain is None for f in forms.values())
        if not is_known or len({_view_of(m.wrapper, self.base) for m in self.members}) > 1:
            return None
        shifts = [form.shift for form in forms.values() if form.shift is not None]
        A, B = side_by_side([Factors(form.A, form.B) for form in forms.values()])
        return LowRankForm(A, B, shift=sum(shifts[1:], shifts[0]) if shifts else None)

    def penalty(self) -> Array:
        """The penalties of the members that train."""
        numbers = [jnp.asarray(self.member(name).penalty()) for name in self.trained]
        dtype = widest([jnp.dtype(jnp.float32), *(number.dtype for number in numbers)])
        return sum((number.astype(dtype) for number in numbers), start=jnp.zeros((), dtype))

    def partition_specs(self) -> dict[str, PartitionSpec]:
        return {
            f"{field}/{name}/{path}": spec
            for field in ("trained", "frozen")
            for name in getattr(self, field)
            for path, spec in self._around_base(name).partition_specs().items()
        }

    def state(self) -> dict[str, Array]:
        states = {m.name: self._around_base(m.name).state() for m in self.members}
        arrays = {f"{name}/{key}": x for name, state in states.items() for key, x in state.items()}
        return {"weights": self.weights, **arrays}

    @classmethod
    def from_state(
        cls, base: eqx.Module, state: Mapping[str, Array], rank: object, alpha: object
    ) -> "AdapterSum":
        fields: dict[str, dict[str, LoRAWrapper]] = {"trained": {}, "frozen": {}}
        for m in cls.members:
            adapter = m.wrapper.from_state(base, _state_of(m.name, state), m.rank, m.alpha)
            bare = eqx.tree_at(lambda w: w.base, adapter, None)
            fields["trained" if m.trains else "frozen"][m.name] = bare
        return cls(base, **fields, weights=state["weights"])  # pyright: ignore

    def _around_base(self, name: str) -> LoRAWrapper:
        bare = (self.trained | self.frozen)[name]
        return eqx.tree_at(lambda m: m.base, bare, self.base, is_leaf=lambda x: x is None)

    def _forms(self) -> dict[str, LowRankForm]:
        """By name, the forms of the members that have one, with their weights in `B` and shift."""
        forms: dict[str, LowRankForm] = {}
        for member, weight in zip(self.members, self.weights, strict=True):
            adapter = at_least_float32(self.member(member.name))
            form = MatrixAdapter.of(member.wrapper).low_rank_form(adapter)
            if form is not None:
                shift = None if form.shift is None else form.shift * weight.astype(form.shift.dtype)
                B = form.B * weight.astype(form.B.dtype)
                forms[member.name] = form._replace(B=B, shift=shift)
        return forms

    def _parts(self) -> list[_Part]:
        """As few adapters as possible whose changes add up to the change of the sum."""
        remaining = dict(zip(self.members, self.weights, strict=True))
        parts: list[_Part] = []
        forms = {name: form for name, form in self._forms().items() if form.is_product}
        lora = _plain_lora([m.wrapper for m in remaining if m.name in forms], self.base)
        if lora is not None:
            view = _view_of(lora, self.base)
            products = [
                m for m in remaining if m.name in forms and _view_of(m.wrapper, self.base) is view
            ]
            factors = [Factors(forms[m.name].A, forms[m.name].B) for m in products]
            update = within_full_rank(side_by_side(factors))
            parts.append(_Part(lora.from_state(self.base, *update.as_adapter(lora))))
            remaining = {m: weight for m, weight in remaining.items() if m not in products}
        for cls in dict.fromkeys(m.wrapper for m in remaining if adds_up(m.wrapper)):
            of_class = [m for m in remaining if m.wrapper is cls]
            states = {m: self._around_base(m.name).state() for m in of_class}
            terms = [Term(states[m], m.rank, m.alpha, remaining.pop(m)) for m in of_class]
            total = MatrixAdapter.of(cls).sum_of(terms)
            assert total is not None
            parts.append(_Part(cls.from_state(self.base, total.state, total.rank, total.alpha)))
        return parts + [_Part(self.member(m.name), weight) for m, weight in remaining.items()]


class _SumMeta(type(LoRAWrapper)):
    """The type of the classes of sums, which are pickled as the members that define them."""


# Unlimited, because JAX keeps every pytree class forever.
@functools.cache
def _sum_class(members: tuple[Member, ...], trains_weights: bool) -> type[AdapterSum]:
    fields = ("trained",) if any(member.trains for member in members) else ()
    body = {
        "members": members,
        "adapter_fields": (*fields, "weights") if trains_weights else fields,
        "mergeable": all(member.wrapper.mergeable for member in members),
        "__module__": __name__,
    }
    make: Any = _SumMeta
    return make(f"Sum({', '.join(member.name for member in members)})", (AdapterSum,), body)


def _pickled_sum_class(cls: type[AdapterSum]) -> tuple[object, tuple[object, ...]]:
    return _sum_class, (cls.members, "weights" in cls.adapter_fields)


copyreg.pickle(_SumMeta, _pickled_sum_class)  # pyright: ignore[reportArgumentType]


def _state_of(name: str, state: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays of one member, from the arrays of its sum."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}


def _view_of(cls: type[LoRAWrapper], layer: Any) -> Any:
    """The function that reads the matrix. Adapters of one layer kind have one function."""
    kind = kind_for(cls, layer) or MatrixAdapter.of(cls)
    return getattr(kind.matrix, "__func__", None)


def _plain_lora(products: Sequence[type[LoRAWrapper]], layer: object) -> type[LoRAWrapper] | None:
    """A class of plain LoRA for `layer` that updates the matrix of one of these classes."""
    views = {_view_of(cls, layer) for cls in products}

    def suits(cls: type[LoRAWrapper]) -> bool:
        is_product = MatrixAdapter.of(cls).low_rank_scale(1, 1.0) is not None
        return is_product and safely_applies(cls, layer) and _view_of(cls, layer) in views

    lora = next(filter(suits, products), None)
    if lora is None and products:
        with contextlib.suppress(JnoLoraError):  # the zoo is blocked
            lora = next(filter(suits, default_registry().resolve("lora")), None)
    return lora


def _changed(base: eqx.Module, parts: Sequence[_Part]) -> eqx.Module:
    """`base` plus the weighted changes of all its arrays, in the dtypes of `base`."""
    refuse_coded(base)
    wide = at_least_float32(base)
    widened = {id(x): y for x, y in zip(*map(jtu.tree_leaves, (base, wide)), strict=True)}

    def merged(adapter: LoRAWrapper) -> eqx.Module:
        # Contains the same array objects as `wide` wherever an adapter left an array unchanged.
        return at_least_float32(jtu.tree_map(lambda x: widened.get(id(x), x), adapter)).merge()

    changes = [(merged(part.adapter), part.weight) for part in parts]

    def add(old: Any, start: Any, *new: Any) -> Any:
        if not eqx.is_inexact_array(start) or all(x is start for x in new):
            return old
        total = start
        for x, (_, w) in zip(new, changes, strict=True):
            total = total + (x - start if w is None else w.astype(held_dtype(start)) * (x - start))
        return total.astype(held_dtype(old))

    return jtu.tree_map(add, base, wide, *(layer for layer, _ in changes))


def sum_adapters(
    model: M,
    sets: Mapping[str, AdapterSet],
    *,
    weights: Weights = None,
    train: Collection[str] = (),
) -> M:
    """`model` with the sum of several named sets of adapters: `W' = W + sum_i w_i U_i`.

    The update of a set is `U_i = W_i - W`, where `W` is the layer before adapting and `W_i` the
    merged layer. Low-rank updates become one product in a call. A set without an adapter at a layer
    adds nothing there. May run inside `jit`, with traced weights.

    **Arguments:**

    - `model`: a plain model, or an adapted model, whose adapters are dropped.
    - `sets`: the sets by name. Names may not contain a slash.
    - `weights`: numbers by name, which may be traced; 1 for names without a number. With `"train"`,
        one number for each set and layer trains, starting at 1.
    - `train`: the names of the sets whose adapters train. All other sets are frozen.

    **Returns:** an adapted model. `split_adapters` takes the sets out again.

    **Raises:** `SelectionError` if an argument makes no sense, if a set does not fit the model, or
    that lists the layers at which the updates cannot be added: two rotations of one weight, two
    adapters that cannot be merged, and adapters that share arrays. A call raises a `WrapperError`
    if an update that is not a product meets a quantised weight.
    """
    expect_model(model, "sum_adapters")
    if not isinstance(weights, Mapping | None) and weights != "train":
        raise SelectionError(
            f"`weights` must be a dict of numbers by name, or 'train', but is {weights!r}."
        )
    numbers = dict(weights) if isinstance(weights, Mapping) else {}
    for name, weight in numbers.items():
        check_number(f"weights[{name!r}]", weight)
    _check_names(sets, (*numbers, *train))
    plain = unwrap_lora(model)
    for name, adapters in sets.items():
        check_fit(plain, adapters, f"The adapters {name!r}")
    paths = list(dict.fromkeys(itertools.chain(*sets.values())))
    problems = [line for path in paths for line in _problems(path, sets)]
    problems += [
        f"{show_path(path)}: inside the adapted {show_path(outer)!r}"
        for path, outer in enclosing(paths, paths)
    ]
    if problems:
        raise SelectionError(f"These adapters cannot be added:\n{bullets(problems)}\n{_ADVICE}")
    summed = {path: _sum_at(path, sets, numbers, train, weights == "train") for path in paths}
    return put_around(plain, AdapterSet(summed))


def _check_names(sets: Mapping[str, AdapterSet], names: Iterable[str]) -> None:
    """**Raises:** `SelectionError` if a set has a bad name, or if one of `names` has no set."""
    for name in sets:
        check_adapter_name(name)
        if not name or "/" in name or not name.isprintable():
            raise SelectionError(
                f"The name {name!r} must be a printable text without a slash, and not empty."
            )
    for name in names:
        if name not in sets:
            near = "".join(f" Did you mean {option!r}?" for option in nearest(name, sets, n=1))
            raise SelectionError(f"{name!r} is not among the adapters to add.{near}")


def _problems(path: str, sets: Mapping[str, AdapterSet]) -> Iterator[str]:
    """Why the adapters of these sets cannot be added at a layer."""
    members = {name: s[path].wrapper for name, s in sets.items() if path in s.adapters}

    def line(names: Iterable[str], reason: str) -> str:
        shown = " and ".join(f"{name!r} ({members[name].__name__})" for name in names)
        return f"{show_path(path)}: {shown} {reason}"

    rotations = [name for name, cls in members.items() if cls.about.family == "rotation"]
    unmergeable = {cls: name for name, cls in members.items() if not cls.mergeable}
    if len(rotations) > 1:
        reason = "A sum of rotations is not a rotation, and a product depends on the order"
        yield line(rotations, f"rotate one weight. {reason}")
    if len(unmergeable) > 1:
        yield line(unmergeable.values(), "do not change the weight")
    for name, cls in members.items():
        if issubclass(cls, AdapterSum):
            yield line([name], "is a sum itself. Give its sets: split_adapters(...)")
        elif not cls.mergeable and not adds_up(cls):
            yield line([name], "does not change the weight, so that a sum cannot scale it")
        if sets[name].shared:
            yield line([name], "shares arrays between layers")


def _sum_at(
    path: str,
    sets: Mapping[str, AdapterSet],
    numbers: Mapping[str, ArrayLike],
    train: Collection[str],
    trains_weights: bool,
) -> LooseAdapter:
    here = {name: s[path] for name, s in sets.items() if path in s.adapters}
    members = (Member(n, a.wrapper, a.rank, a.alpha, n in train) for n, a in here.items())
    first = next(iter(here.values()))
    dtypes = {x.dtype for a in here.values() for x in a.state.values()}
    floats = [jnp.finfo(dtype).dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    dtype = widest([jnp.dtype(jnp.float32), *floats])
    weights = jnp.stack([jnp.asarray(numbers.get(name, 1.0), dtype) for name in here])
    ndim, arrays = first.layer.stack_ndim, first.layer.arrays
    stack = arrays[0][1][:ndim] if ndim else ()
    state: dict[str, Array] = {"weights": jnp.broadcast_to(weights, (*stack, len(here)))}
    for name, adapter in here.items():
        state |= {f"{name}/{key}": array for key, array in adapter.state.items()}
    return LooseAdapter(
        state, AdapterSum.of_members(tuple(members), trains_weights), None, None, first.layer
    )


def split_adapters(model: PyTree) -> dict[str, AdapterSet]:
    """The sets that `sum_adapters` added in `model`, by name, with their current values.

    **Arguments:** `model`: a model whose adapters are sums; or an `AdapterSet` of sums, such as
    `read_adapters` returns.

    **Raises:** `SelectionError` if an adapter is not a sum; and as `extract_adapters`.
    """
    adapters = model
    if not isinstance(model, AdapterSet):
        expect_model(model, "split_adapters")
        adapters = extract_adapters(model)
    sets: dict[str, dict[str, LooseAdapter]] = {}
    for path, adapter in adapters.adapters.items():
        cls = adapter.wrapper
        if not issubclass(cls, AdapterSum):
            raise SelectionError(
                f"split_adapters takes sums of adapters, but {show_path(path)!r} has a "
                f"{cls.__name__}. Use extract_adapters(model)."
            )
        for m in cls.members:
            state = _state_of(m.name, adapter.state)
            loose = LooseAdapter(state, m.wrapper, m.rank, m.alpha, adapter.layer)
            sets.setdefault(m.name, {})[path] = loose
    return {name: AdapterSet(of_name) for name, of_name in sets.items()}
