"""One walk over a model: which adapter each layer gets, and why the remaining layers get none."""

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._contract import LoRAWrapper, is_adapter, is_coded, takes
from .._errors import SelectionError, WrapperError, warn
from .._paths import FEW, KeyPath, bullets, path_str, show_array, show_path
from .._registry import Registry, how_to_block
from .._tree import NORMALISED, default_adapters, fields_of, holds_adapters, modules_in, why_not
from ._masks import Selector
from ._plan import PlanRow
from ._roles import has_experts, role_of
from ._specs import LAYERS_OWN, Rule

AdapterClass: TypeAlias = type[LoRAWrapper]

_NORMS = tuple(NORMALISED)
_CELLS = (eqx.nn.GRUCell, eqx.nn.LSTMCell)
_WITH_MATRICES = (eqx.nn.Linear, eqx.nn.Embedding, eqx.nn.Conv, eqx.nn.ConvTranspose, *_CELLS)

# Plugins may not register default adapters for the layers of these packages, because a call that
# names no adapter would change as soon as a plugin is imported.
_CLOSED = {"builtins", "collections", "equinox", "jax"}


class Claim(NamedTuple):
    """The first tier that claims a layer, and the classes in it that claim the layer."""

    order: int  # the index of the tier among the tiers of all rules: the smaller index wins
    rule: int
    classes: list[AdapterClass]


class Walk:
    """The layers of a model, and what the rules of a call do with each layer.

    Afterwards `rows` has a row for each candidate, and `matched` contains the indices of the rules
    that match a layer.

    If a class that the user named fails on a layer, the call fails. A failing class from a variant,
    `"auto"` or a registration is left out of the whole call, with one warning.
    """

    def __init__(
        self, registry: Registry, model: PyTree, rules: tuple[Rule, ...], selects: Selector
    ):
        self.registry, self.model, self.rules, self.selects = registry, model, rules, selects
        self.named = {cls for rule in rules for cls in rule.named}
        self.tiers = [(index, tier) for index, rule in enumerate(rules) for tier in rule.tiers]
        self.classes = tuple(dict.fromkeys(cls for _, tier in self.tiers for cls in tier))
        self.asks_layers = any(tier == LAYERS_OWN for _, tier in self.tiers)
        self._meets_adapters = holds_adapters(model)  # else no layer is searched for adapters
        self._warned: set[Any] = set()  # functions of `default_adapters` that are left out
        self._failed: set[AdapterClass] = set()
        while True:  # again without the classes that failed
            known_to_fail = len(self._failed)
            self.rows: list[PlanRow] = []
            self.matched: set[int] = set()
            self._mixtures: set[KeyPath] = set()  # modules with a field for experts
            self._visit((), model)
            if len(self._failed) == known_to_fail:
                break

    # --- questions to adapter classes

    def claim(self, path: str, layer: Any) -> Claim | None:
        """The claim of the first rule with a matching target and a wrapper that applies."""
        applying: dict[tuple[AdapterClass, ...], list[AdapterClass]] = {}  # by tier
        for order, (rule, tier) in enumerate(self.tiers):
            if not self.rules[rule].matches(path):
                continue
            if tier not in applying:
                applying[tier] = self.applying(tier, path, layer)
            if applying[tier]:
                return Claim(order, rule, applying[tier])
        return None

    def applying(self, tier: tuple[AdapterClass, ...], path: str, layer: Any) -> list[AdapterClass]:
        """The classes of a tier that apply to the layer at `path`."""
        classes = self._layers_own(path, layer) if tier == LAYERS_OWN else tier
        return [cls for cls in classes if self._applies(cls, path, layer)]

    def _applies(self, cls: AdapterClass, path: str, layer: Any) -> bool:
        if cls in self._failed:
            return False
        try:
            return bool(cls.applies_to(layer))
        except Exception as err:
            failure = (
                f"{cls.__name__}.applies_to raised {type(err).__name__} on the "
                f"{type(layer).__name__} at {show_path(path)!r}: {err}\nIt is asked about every "
                "module of a model, and must answer False to what it does not know."
            )
            if cls in self.named:
                raise WrapperError(failure) from err
            self._failed.add(cls)
            block = how_to_block(self._distribution(cls))
            warn(f"{failure}\nThis call continues without {self._origin(cls)}.{block}")
            return False

    def _layers_own(self, path: str, layer: Any) -> tuple[AdapterClass, ...]:
        """The adapters that are registered for the class of the layer at `path`."""
        function = default_adapters.dispatch(type(layer))
        if function is default_adapters.dispatch(object):
            return ()
        registered = [cls for cls, f in default_adapters.registry.items() if f is function]
        closed = _CLOSED.intersection(cls.__module__.partition(".")[0] for cls in registered)
        why = (
            f"layers of {', '.join(closed)} get adapters by default from jno-lora alone. Name the "
            "adapter in the call, or register a layer class of your own."
        )
        try:
            if not closed:
                return default_adapters(layer)
        except Exception as err:
            why = f"it raised {type(err).__name__} at {show_path(path)!r}: {err}"
        if function not in self._warned:
            self._warned.add(function)
            warn(
                f"The function that {function.__module__} registered with `default_adapters` is "
                f"left out for a {type(layer).__name__}: {why}"
            )
        return ()

    # --- rows

    def _visit(self, keys: KeyPath, node: Any) -> None:
        """Add the rows of `node`, and of candidates inside of it."""
        # By its type: `isinstance` of a module is slow, and most nodes are arrays.
        if issubclass(type(node), eqx.Module):
            if is_coded(node):  # an array of its layer
                return
            if has_experts(type(node)):
                self._mixtures.add(keys)
            row = self._row(keys, node)
            if row is not None:
                self.rows.append(row)
                if row.status in ("wrapped", "already adapted"):
                    return
            if issubclass(type(node), _NORMS):
                self._refuse_layers_in(keys, node)
                return
        for key, child in jtu.tree_leaves_with_path(node, is_leaf=lambda child: child is not node):
            if key:  # a leaf is its own child, without a key
                self._visit((*keys, *key), child)

    def _row(self, keys: KeyPath, node: eqx.Module) -> PlanRow | None:
        """The row of `node`, or `None` if it is not a candidate."""
        path = path_str(keys)
        layer: Any = node.base if is_adapter(node) else node
        claim = self.claim(path, layer)
        row = functools.partial(PlanRow, path, type(layer).__name__, keys=keys)
        if is_adapter(node):
            cls, spec = type(node), self._note(claim, keys)
            origin = self._distribution(cls)
            return row("already adapted", cls, origin, rank=node.rank, alpha=node.alpha, spec=spec)
        if claim is None:
            classes = self.classes + (self._layers_own(path, node) if self.asks_layers else ())
            if any(self._applies(cls, path, node) for cls in classes):
                return row("target does not match")
            reasons = filter(None, [_why_quantized(node), *(why_not(c, node) for c in classes)])
            # A layer that an adapter rejects may hold its arrays in nodes of another library.
            if (reason := next(reasons, None)) is None and not _owns_arrays(node):
                return None
            return row("no wrapper applies", reason=reason)
        cls = self._chosen(claim, keys, node)
        if cls is None:
            return None
        spec = self._note(claim, keys)
        if self._meets_adapters and holds_adapters(node):
            return row("already adapted", spec=spec)
        if spec is not None and (reason := _why_not_stacked(cls, node)):
            return row("refused", cls, self._distribution(cls), reason=reason, spec=spec)
        rule, arguments = self.rules[claim.rule], takes(cls)
        alpha = rule.alpha
        if alpha is None:
            alpha = 1.0 if rule.rank is None else cls.default_alpha(rule.rank)
        return row(
            "mask does not select" if spec is None else "wrapped",
            cls,
            self._distribution(cls),
            rule.rank if "rank" in arguments else None,
            alpha if "alpha" in arguments else None,
            options=rule.options,
            role=None if spec is None else role_of(path, keys[:-1] in self._mixtures),
            spec=claim.rule,
            alpha_is_default=rule.alpha is None,
        )

    def _refuse_layers_in(self, keys: KeyPath, norm: eqx.Module) -> None:
        """Add rows for the layers inside a norm that is not adapted itself."""
        refusal = next(status for cls, status in NORMALISED.items() if isinstance(norm, cls))
        for inner, layer in modules_in(norm, keys, enter_norms=False)[1:]:
            path = path_str(inner)
            if claim := self.claim(path, layer):
                status = refusal
                if not self.selects(inner):
                    status = "mask does not select"
                    self.matched.add(claim.rule)
                row = PlanRow(path, type(layer).__name__, status, keys=inner, spec=claim.rule)
                self.rows.append(row)

    def _note(self, claim: Claim | None, keys: KeyPath) -> int | None:
        """Note that a rule matched. Returns its index if the mask selects the layer at `keys`."""
        if claim is None:
            return None
        self.matched.add(claim.rule)
        return claim.rule if self.selects(keys) else None

    def _chosen(self, claim: Claim, keys: KeyPath, node: eqx.Module) -> AdapterClass | None:
        """The class that wraps `node`, or `None` if layers inside of it are adapted instead.

        They are adapted instead if an earlier rule or tier claims one of them. If classes of equal
        priority claim `node` or a layer inside of it, plugins decide.
        """
        path = path_str(keys)
        claimed_paths = dict.fromkeys(claim.classes, path)
        has_no_rival = claim.order == 0 and len(self.tiers[0][1]) == 1
        if not has_no_rival and not issubclass(type(node), _NORMS):
            for inner, layer in modules_in(node, keys, enter_norms=False)[1:]:
                rival = self.claim(path_str(inner), layer) if self.selects(inner) else None
                if rival is None or rival.order > claim.order:
                    continue
                if rival.order < claim.order:
                    return None
                for cls in rival.classes:
                    claimed_paths.setdefault(cls, path_str(inner))
        classes = list(claimed_paths)
        chosen = classes[0] if len(classes) == 1 else self.registry.select(path, node, classes)
        if chosen is None:
            lines = (f"{self._origin(c)}, for {show_path(p)!r}" for c, p in claimed_paths.items())
            raise SelectionError(
                f"Several adapters of equal priority claim {show_path(path)!r}, a "
                f"{type(node).__name__}:\n{bullets(lines, FEW)}\n"
                "Name the adapter you want (a list in `wrapper=` is in order of priority), or "
                "register a `jno_lora_select` hook that chooses."
            )
        return chosen if chosen in claim.classes else None

    def _origin(self, cls: AdapterClass) -> str:
        """A class in a message: the `wrapper=` that selects only this class, if it has a name."""
        provider = self.registry.provider(cls)
        if provider is None:
            return f"{cls.__module__}.{cls.__name__}"
        return f'{cls.__name__} (wrapper="{provider.qualified_name}")'

    def _distribution(self, cls: AdapterClass) -> str | None:
        provider = self.registry.provider(cls)
        return None if provider is None else provider.distribution


def _owns_arrays(node: eqx.Module) -> bool:
    """Whether an array is a direct field of `node`, or in a dict that is a field."""
    fields = fields_of(node).values()
    values = (x for field in fields for x in (field.values() if type(field) is dict else (field,)))
    return any(eqx.is_inexact_array(x) or is_coded(x) or _is_integer_matrix(x) for x in values)


def _why_quantized(node: eqx.Module) -> str | None:
    """Why a layer with integer weights, such as a quantised layer, is left out."""
    for name, value in fields_of(node).items():
        if _is_integer_matrix(value):
            return f"its {name} is {show_array(value)}, and adapters need floating weights"
    return None


def _why_not_stacked(cls: Any, layer: Any) -> str | None:
    """Why a class cannot adapt a layer that it claims: a stack, and the class knows no stacks."""
    if cls.stack_ndim.__func__ is not LoRAWrapper.stack_ndim.__func__:
        return None
    for name, value in fields_of(layer).items():
        if getattr(value, "ndim", 0) > _own_ndim(layer, name):
            what = f"its {name} is {show_array(value)}, a stack of layers"
            return f"{what}, and {cls.__name__} does not define `stack_ndim`"
    return None


def _own_ndim(layer: Any, name: str) -> float:
    """How many axes an array of one layer has, if its class or annotation says; else infinity."""
    axes = getattr(type(layer).__dataclass_fields__[name].type, "dim_str", "...")
    if not {*"*."} & {*axes}:
        return len(axes.split())
    if isinstance(layer, _WITH_MATRICES) and name.startswith("weight"):
        return 2 + getattr(layer, "num_spatial_dims", 0)
    is_norm = isinstance(layer, eqx.nn.LayerNorm | eqx.nn.RMSNorm)
    return len(layer.shape) if is_norm else math.inf


def _is_integer_matrix(value: Any) -> bool:
    return eqx.is_array(value) and value.ndim > 1 and jnp.issubdtype(value.dtype, jnp.integer)
