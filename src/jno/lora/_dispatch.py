"""The dispatcher: walks a model once, asks who claims each layer, and puts adapters in place."""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from ._contract import LoRAWrapper, check_contract, is_wrapper
from ._errors import JnoLoraError, JnoLoraWarning, SelectionError, WrapperError
from ._paths import KeyPath, bullets, nearest, path_str, show_path, stable_hash
from ._plan import Plan, PlanRow, PlanStatus
from ._registry import Registry, default_registry
from ._selection import Mask, MaskLike, Spec, SpecLike, Tiers, WrapperLike, parse_mask, parse_specs
from ._sharding import place_like_base
from ._stacking import keys_for_stack, over_stack

M = TypeVar("M")

# Containers that read and rewrite the weight of the layer inside, so that an adapter in there
# would be normalised away or bypassed.
_NORMALISED: dict[type, PlanStatus] = {
    eqx.nn.WeightNorm: "inside WeightNorm",
    eqx.nn.SpectralNorm: "inside SpectralNorm",
}

_WHY_REFUSED = (
    "Layers inside eqx.nn.WeightNorm and SpectralNorm are not adapted: those rewrite the very "
    "weight that an adapter would add to, so that the adapter would be rescaled or bypassed."
)


def apply_lora(
    model: M,
    rank: int = 0,
    alpha: float = 1.0,
    *,
    key: PRNGKeyArray,
    target: str | None = None,
    specs: Iterable[SpecLike] | None = None,
    wrappers: WrapperLike = None,
    param_mask: MaskLike | None = None,
    options: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> M:
    """`model` with adapters around the selected layers.

    **Arguments:**

    - `model`: any pytree that holds Equinox modules. It is not changed.
    - `rank`: the rank of the adapters. With `0`, the default, and no `specs`, the model is
        returned unchanged.
    - `alpha`: the numerator of the scale (most methods scale their update by `alpha / rank`).
    - `key`: a typed key or a raw `PRNGKey`. Each adapter's own key is derived from it and from the
        layer's path, so that adapting one layer more never changes another's initial values.
    - `target`: a regex, searched in the slash-joined path of each layer.
    - `specs`: dicts with the keys `target`, `rank`, `alpha`, `wrapper`, `options`; what one lacks
        comes from the call. The first spec whose target matches and whose wrapper applies wins.
    - `wrappers`: an adapter class, a registered name or variant, a list of those in order of
        priority, `"auto"`, or `None` for `LoRALinear` and `LoRAConv`.
    - `param_mask`: bools in the structure of `model`, or a regex on paths: only layers with a
        selected leaf are wrapped.
    - `options`: further keyword arguments for the adapters' constructors, such as
        `{"adapter_dtype": jnp.bfloat16}`; a spec may have `options` of its own.
    - `registry`: where names are looked up, instead of among the installed plugins.

    **Returns:** the adapted model. Layers that carry an adapter already stay as they are; if
    nothing else is selected, that is a warning.

    **Raises:** `SelectionError` if a target or spec selects nothing or an argument makes no sense,
    `PluginError` if a named plugin cannot be used, `WrapperError` if an adapter's constructor
    fails (naming the path).
    """
    _check_rank(rank)
    if rank == 0 and specs is None:
        return model
    if specs is not None:
        specs = list(specs)
    plan = plan_lora(
        model,
        rank,
        alpha,
        target=target,
        specs=specs,
        wrappers=wrappers,
        param_mask=param_mask,
        options=options,
        registry=registry,
    )
    return carry_out(model, plan, key=key)


def plan_lora(
    model: PyTree,
    rank: int = 0,
    alpha: float = 1.0,
    *,
    target: str | None = None,
    specs: Iterable[SpecLike] | None = None,
    wrappers: WrapperLike = None,
    param_mask: MaskLike | None = None,
    options: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> Plan:
    """What `apply_lora` would do with the same arguments, and why not for every other candidate.

    **Returns:** a `Plan`; `print` it for a table.

    **Raises:** as `apply_lora`, but for what only happens when an adapter is built.
    """
    _check_rank(rank)
    if rank == 0 and specs is None:
        return Plan(())
    registry = default_registry() if registry is None else registry
    rules = parse_specs(
        registry,
        rank=rank,
        alpha=alpha,
        target=target,
        wrapper=wrappers,
        specs=specs,
        options=options,
    )
    mask = Mask.of(None if param_mask is None else parse_mask(model, param_mask))
    walk = _Walk(registry, rules, mask)
    rows = walk.over(model)
    _check_every_spec_matched(rules, walk, rows)
    return Plan(tuple(rows))


def carry_out(model: M, plan: Plan, *, key: PRNGKeyArray) -> M:
    """Build the adapters of `plan` and put them into `model`."""
    chosen = {row.keys: row for row in plan.wrapped}
    _warn_of_what_was_left_out(plan)
    if not chosen:
        return model
    clamped: list[str] = []

    def adapt(path: KeyPath, node: Any) -> Any:
        row = chosen.get(path)
        if row is None:
            return node
        own_key = jax.random.fold_in(key, np.uint32(stable_hash(row.path)))
        wrapper = _construct(row, node, own_key)
        assert row.rank is not None
        if wrapper.rank < row.rank:
            clamped.append(f"{show_path(row.path)}: {row.rank} -> {wrapper.rank}")
        return wrapper

    adapted = jtu.tree_map_with_path(
        adapt, model, is_leaf=lambda path, _: path in chosen, is_leaf_takes_path=True
    )
    if clamped:
        warnings.warn(
            "The rank is larger than these layers allow, and was clamped:\n" + bullets(clamped),
            JnoLoraWarning,
            stacklevel=3,
        )
    return adapted


@dataclasses.dataclass(frozen=True)
class _Match:
    """The spec and the tier by which an adapter claims a layer."""

    spec: int
    tier: int
    cls: type[LoRAWrapper]

    @property
    def priority(self) -> tuple[int, int]:
        """Smaller wins."""
        return (self.spec, self.tier)


class _Walk:
    """One walk over a model: decides per node, after target and mask, whether it is a leaf."""

    def __init__(self, registry: Registry, specs: tuple[Spec, ...], mask: Mask):
        self.registry = registry
        self.specs = specs
        self.mask = mask
        self.all_tiers = tuple(dict.fromkeys(spec.tiers for spec in specs))
        self.rows: list[PlanRow] = []
        self.matched: set[int] = set()  # specs that won a layer, whatever the mask says
        self.claimed_nodes: dict[str, tuple[KeyPath, eqx.Module]] = {}

    def over(self, model: PyTree) -> list[PlanRow]:
        """The rows of every candidate in `model`."""

        def is_leaf(keys: KeyPath, node: Any) -> bool:
            if not isinstance(node, eqx.Module):
                return False
            row = self.decide(keys, node)
            if row is not None:
                self.rows.append(row)
                if row.status in ("wrapped", "already adapted"):
                    return True
            for container, reason in _NORMALISED.items():
                if isinstance(node, container):
                    self.rows.extend(self.refuse_inside(keys, node, reason))
                    return True
            return False

        jtu.tree_flatten_with_path(model, is_leaf=is_leaf, is_leaf_takes_path=True)
        return self.rows

    def decide(self, keys: KeyPath, node: eqx.Module) -> PlanRow | None:
        """The row of `node`, or `None` if it is no candidate."""
        path = path_str(keys)
        layer = type(node).__name__
        if isinstance(node, LoRAWrapper):
            return self.row_of_wrapper(path, keys, node)
        match = self.first_match(path, node)
        if match is None:
            if self.claimed_by_any(path, node):
                return PlanRow(path, layer, "target does not match", keys=keys)
            if _owns_arrays(node):
                return PlanRow(path, layer, "no wrapper applies", keys=keys)
            return None
        if self.stronger_match_inside(match, keys, node):
            return None  # go on to the layers inside
        spec_index, cls = match.spec, match.cls
        self.matched.add(spec_index)
        if _holds_adapters(node):
            selected = spec_index if self.mask.selects(keys) else None
            return PlanRow(path, layer, "already adapted", keys=keys, spec=selected)
        spec = self.specs[spec_index]
        status: PlanStatus = "wrapped" if self.mask.selects(keys) else "mask does not select"
        self.claimed_nodes[path] = (keys, node)
        return PlanRow(
            path,
            layer,
            status,
            cls,
            self.distribution(cls),
            spec.rank,
            spec.alpha,
            spec.options,
            keys=keys,
            spec=spec_index,
        )

    def row_of_wrapper(self, path: str, keys: KeyPath, node: LoRAWrapper) -> PlanRow:
        cls = type(node)
        match = self.first_match(path, node.base)
        index = None
        if match is not None:
            self.matched.add(match.spec)
            index = match.spec if self.mask.selects(keys) else None
        return PlanRow(
            path,
            type(node.base).__name__,
            "already adapted",
            cls,
            self.distribution(cls),
            node.rank,
            node.alpha,
            keys=keys,
            spec=index,
        )

    def refuse_inside(self, keys: KeyPath, node: eqx.Module, reason: PlanStatus) -> list[PlanRow]:
        """Rows for the layers below a normalised container, none of which is wrapped."""
        rows: list[PlanRow] = []
        for inner, child in _modules_inside(keys, node):
            path = path_str(inner)
            match = self.first_match(path, child)
            if match is not None:
                status: PlanStatus = reason if self.mask.selects(inner) else "mask does not select"
                row = PlanRow(path, type(child).__name__, status, keys=inner, spec=match.spec)
                rows.append(row)
        return rows

    def stronger_match_inside(self, match: "_Match", keys: KeyPath, node: eqx.Module) -> bool:
        """Whether a layer inside `node` is claimed by an earlier spec, or by an earlier tier."""
        if match.priority == (0, 0):
            return False
        for inner, child in _modules_inside(keys, node):
            other = self.first_match(path_str(inner), child)
            if other is not None and other.priority < match.priority and self.mask.selects(inner):
                return True
        return False

    def taken_before(self, spec: int) -> list[str]:
        """What `spec` would match, had an earlier one not taken it or what contains it."""
        rule = self.specs[spec]
        lines: list[str] = []
        for row in self.rows:
            if row.spec is None or row.spec >= spec or row.path not in self.claimed_nodes:
                continue
            keys, node = self.claimed_nodes[row.path]
            for inner, child in ((keys, node), *_modules_inside(keys, node)):
                path = path_str(inner)
                if rule.matches(path) and self.claim(rule.tiers, path, child) is not None:
                    within = "" if inner == keys else f", inside {show_path(row.path)}"
                    label = self.specs[row.spec].label
                    lines.append(f"{show_path(path)}: {label}{within}")
        return lines

    def first_match(self, path: str, node: Any) -> "_Match | None":
        """The first spec whose target matches and one of whose wrappers applies."""
        claims: dict[Tiers, tuple[int, type[LoRAWrapper]] | None] = {}
        for index, spec in enumerate(self.specs):
            if spec.matches(path):
                if spec.tiers not in claims:
                    claims[spec.tiers] = self.claim(spec.tiers, path, node)
                claim = claims[spec.tiers]
                if claim is not None:
                    return _Match(index, *claim)
        return None

    def claim(self, tiers: Tiers, path: str, node: Any) -> tuple[int, type[LoRAWrapper]] | None:
        """The first tier that claims `node`, and its adapter; plugins break a tie in a tier."""
        for index, tier in enumerate(tiers):
            claimants = [cls for cls in tier if _applies(cls, path, node)]
            if len(claimants) == 1:
                return index, claimants[0]
            if claimants:
                return index, self.select(path, node, claimants)
        return None

    def select(self, path: str, node: Any, claimants: list[type[LoRAWrapper]]) -> type[LoRAWrapper]:
        chosen = self.registry.select(path, node, claimants)
        if chosen is None:
            names = (
                f"{cls.__name__} (from {self.distribution(cls) or cls.__module__})"
                for cls in claimants
            )
            raise SelectionError(
                f"Several adapters of equal priority claim {show_path(path)!r}, a "
                f"{type(node).__name__}:\n{bullets(names)}\n"
                "Name the one you want with `wrapper=` (a list is in order of priority), or "
                "register a `jno_lora_select` hook that chooses."
            )
        return chosen

    def claimed_by_any(self, path: str, node: Any) -> bool:
        """Whether some wrapper in play would take `node` if its target matched."""
        return any(
            _applies(cls, path, node) for tiers in self.all_tiers for tier in tiers for cls in tier
        )

    def distribution(self, cls: type[LoRAWrapper]) -> str | None:
        provider = self.registry.provider(cls)
        return None if provider is None else provider.distribution


def _applies(cls: type[LoRAWrapper], path: str, node: Any) -> bool:
    try:
        return bool(cls.applies_to(node))
    except Exception as err:
        raise WrapperError(
            f"{cls.__name__}.applies_to raised {type(err).__name__} on the "
            f"{type(node).__name__} at {show_path(path)!r}: {err}\n"
            "It is asked about every module of a model, and must answer False to what it does "
            "not know."
        ) from err


def _construct(row: PlanRow, layer: Any, key: PRNGKeyArray) -> LoRAWrapper:
    cls, rank, alpha = row.wrapper, row.rank, row.alpha
    assert cls is not None and rank is not None and alpha is not None
    try:
        ndim = cls.stack_ndim(layer)
        make = over_stack(lambda base, key: cls(base, rank, alpha, key=key, **row.options), ndim)
        wrapper = make(layer, keys_for_stack(key, layer, ndim))
    except Exception as err:
        what = (
            f"{cls.__name__} could not be built around the {row.layer} at {show_path(row.path)!r}"
        )
        if isinstance(err, JnoLoraError):
            raise type(err)(f"{what}: {err}") from err
        raise WrapperError(f"{what}: {type(err).__name__}: {err}") from err
    if not isinstance(wrapper, cls):
        check_contract(cls)
        raise WrapperError(f"{cls.__name__}(...) made a {type(wrapper).__name__} at {row.path!r}")
    return place_like_base(wrapper, layer)


def _modules_inside(keys: KeyPath, node: eqx.Module) -> list[tuple[KeyPath, eqx.Module]]:
    """The modules below `node`, which is at `keys`, with their paths from the root."""
    found: list[tuple[KeyPath, eqx.Module]] = []

    def look(inner: KeyPath, child: Any) -> bool:
        if inner and isinstance(child, eqx.Module):
            found.append(((*keys, *inner), child))
        return is_wrapper(child)

    jtu.tree_flatten_with_path(node, is_leaf=look, is_leaf_takes_path=True)
    return found


def _owns_arrays(node: eqx.Module) -> bool:
    """Whether an array is a direct field of `node`, which makes it a layer of its own."""
    return any(eqx.is_inexact_array(getattr(node, f.name, None)) for f in dataclasses.fields(node))


def _holds_adapters(node: eqx.Module) -> bool:
    return any(is_wrapper(leaf) for leaf in jax.tree.leaves(node, is_leaf=is_wrapper))


def _check_rank(rank: Any) -> None:
    if isinstance(rank, int | np.integer) and rank < 0:
        raise SelectionError(f"`rank` must not be negative, but is {rank}.")


def _check_every_spec_matched(specs: tuple[Spec, ...], walk: _Walk, rows: list[PlanRow]) -> None:
    """**Raises:** `SelectionError` for a spec that matches no layer at all (mask or not)."""
    refused = [row for row in rows if row.status in _NORMALISED.values()]
    accounted = walk.matched | {row.spec for row in rows if row not in refused}
    for index, spec in enumerate(specs):
        if index in accounted:
            continue
        open_to = ("wrapped", "target does not match", "mask does not select")
        adaptable = [row.path for row in rows if row.status in open_to]
        lines = [f"{spec.describe()} selects no layer."]
        inside = [row for row in refused if row.spec == index]
        if inside:
            lines.append(f"{_WHY_REFUSED} It matches only:")
            lines.append(bullets(f"{show_path(r.path)}: {r.status}" for r in inside))
        taken = walk.taken_before(index)
        if taken:
            lines.append("Earlier specs, which win, have taken what it matches:")
            lines.append(bullets(taken))
        if spec.target is not None and not any(spec.matches(row.path) for row in rows):
            near = nearest(spec.target.pattern, [row.path for row in rows])
            if near:
                lines.append("The nearest paths are:\n" + bullets(show_path(p) for p in near))
        if adaptable:
            lines.append(
                "The layers that the wrappers of this call can adapt are:\n"
                + bullets(show_path(p) for p in adaptable)
            )
        elif rows:
            lines.append(
                "The wrappers of this call can adapt none of the model's layers:\n"
                + bullets(f"{show_path(row.path)}: {row.layer}" for row in rows)
            )
        else:
            lines.append("The model holds no Equinox module with arrays.")
        lines.append("`plan_lora(...)` (or `net.plan(...)`) explains every candidate.")
        raise SelectionError("\n".join(lines))


def _warn_of_what_was_left_out(plan: Plan) -> None:
    def warn(message: str, rows: tuple[PlanRow, ...]) -> None:
        listed = bullets(show_path(row.path) for row in rows)
        warnings.warn(f"{message}\n{listed}", JnoLoraWarning, stacklevel=5)

    refused = plan.having("inside WeightNorm", "inside SpectralNorm")
    if refused:
        warn(f"{_WHY_REFUSED} These were not adapted:", refused)
    if plan.wrapped:
        return
    masked = plan.having("mask does not select")
    adapted = tuple(row for row in plan.having("already adapted") if row.spec is not None)
    if adapted:
        warn(
            "Every selected layer carries an adapter already, so nothing was adapted. Merge or "
            "unwrap first to adapt them anew:",
            adapted,
        )
    elif masked:
        warn("The mask selects none of these layers, so nothing was adapted:", masked)
