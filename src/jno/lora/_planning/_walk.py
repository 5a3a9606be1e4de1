"""One walk over a model: which adapter each layer gets, and why the others get none."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._contract import LoRAWrapper, is_adapter, is_coded, takes
from .._errors import SelectionError, WrapperError
from .._paths import FEW, KeyPath, bullets, path_str, show_array, show_path
from .._registry import Registry
from .._tree import NORMALISED, default_adapters, holds_adapters, modules_in
from ._plan import PlanRow
from ._roles import has_experts, role_of
from ._specs import LAYERS_OWN, Rule

AdapterClass = type[LoRAWrapper]


class Claim(NamedTuple):
    """The first tier that claims a layer, and the classes in it that do."""

    order: int  # the index of the tier among those of all rules: the smaller one wins
    rule: int
    classes: list[AdapterClass]


class Walk:
    """One walk over a model, which decides at each node whether to go on inside."""

    def __init__(
        self, registry: Registry, rules: tuple[Rule, ...], selects: Callable[[KeyPath], bool]
    ):
        self.registry, self.rules = registry, rules
        self.selects = selects  # what the mask says of the node at these keys
        self.tiers = [(index, tier) for index, rule in enumerate(rules) for tier in rule.tiers]
        self.in_play = tuple(dict.fromkeys(cls for _, tier in self.tiers for cls in tier))
        self.asks_layers = any(tier == LAYERS_OWN for _, tier in self.tiers)
        self.rows: list[PlanRow] = []
        self.matched: set[int] = set()  # the rules that matched a layer, whatever the mask says
        self.mixtures: set[KeyPath] = set()  # modules with a field for experts
        self.model: PyTree = None
        self.meets_adapters = True  # else the layers need not be searched for adapters

    def over(self, model: PyTree) -> list[PlanRow]:
        """The rows of every candidate in `model`."""
        self.model, self.meets_adapters = model, holds_adapters(model)
        self.rules = tuple(rule.on(model) for rule in self.rules)
        jtu.tree_flatten_with_path(model, is_leaf=self._visit, is_leaf_takes_path=True)
        return self.rows

    def _visit(self, keys: KeyPath, node: Any) -> bool:
        """Add the rows of `node`. Returns whether the walk ends here."""
        # By its type: `isinstance` of a module is slow, and most nodes are arrays.
        if not issubclass(type(node), eqx.Module):
            return False
        if is_coded(node):  # an array of its layer
            return True
        if has_experts(type(node)):
            self.mixtures.add(keys)
        row = self._decide(keys, node)
        if row is not None:
            self.rows.append(row)
            if row.status in ("wrapped", "already adapted"):
                return True
        reason = next((why for norm, why in NORMALISED.items() if isinstance(node, norm)), None)
        if reason is None:
            return False
        for inner, child in modules_in(node, keys, enter_norms=False)[1:]:  # not wrapped
            path, layer, status = path_str(inner), type(child).__name__, reason
            claim = self.claim(path, child)
            if claim is not None:
                if not self.selects(inner):
                    status = "mask does not select"
                    self.matched.add(claim.rule)
                self.rows.append(PlanRow(path, layer, status, keys=inner, spec=claim.rule))
        return True

    def _decide(self, keys: KeyPath, node: eqx.Module) -> PlanRow | None:
        """The row of `node`, or `None` if it is not a candidate."""
        path = path_str(keys)
        layer = node.base if is_adapter(node) else node
        row = functools.partial(PlanRow, path, type(layer).__name__, keys=keys)
        claim = self.claim(path, layer)
        if is_adapter(node):
            provider, spec = self._distribution(type(node)), self._note(claim, keys)
            return row("already adapted", type(node), provider, node.rank, node.alpha, spec=spec)
        if claim is None:
            in_play = self.in_play + (default_adapters(node) if self.asks_layers else ())
            if any(_ask(cls, "applies_to", path, node) for cls in in_play):
                return row("target does not match")
            if not _owns_arrays(node):
                return None
            answers = (
                _quantized(node),
                *(_ask(cls, "why_not", path, node) for cls in in_play),
            )
            reason = next((str(answer) for answer in answers if answer is not None), None)
            return row("no wrapper applies", reason=reason)
        cls = self._chosen(claim, keys, node)
        if cls is None:
            return None
        spec = self._note(claim, keys)
        if self.meets_adapters and holds_adapters(node):
            return row("already adapted", spec=spec)
        rule, taken = self.rules[claim.rule], takes(cls)
        return row(
            "mask does not select" if spec is None else "wrapped",
            cls,
            self._distribution(cls),
            rule.rank if "rank" in taken else None,
            rule.alpha if "alpha" in taken else None,
            options=rule.options,
            role=None if spec is None else role_of(path, keys[:-1] in self.mixtures),
            spec=claim.rule,
        )

    def _note(self, claim: Claim | None, keys: KeyPath) -> int | None:
        """Note that a rule matched. Returns its index if the mask selects the layer at `keys`."""
        if claim is None:
            return None
        self.matched.add(claim.rule)
        return claim.rule if self.selects(keys) else None

    def alone(self, index: int) -> list[PlanRow]:
        """The rows of the same model, if one rule were the only one."""
        return Walk(self.registry, self.rules[index : index + 1], self.selects).over(self.model)

    def claim(self, path: str, node: Any) -> Claim | None:
        """The claim of the first rule whose target matches and one of whose wrappers applies."""
        found: dict[tuple[AdapterClass, ...], list[AdapterClass]] = {}
        for order, (rule, tier) in enumerate(self.tiers):
            if self.rules[rule].matches(path):
                if tier not in found:
                    classes = default_adapters(node) if tier == LAYERS_OWN else tier
                    found[tier] = [cls for cls in classes if _ask(cls, "applies_to", path, node)]
                if found[tier]:
                    return Claim(order, rule, found[tier])
        return None

    def _chosen(self, claim: Claim, keys: KeyPath, node: eqx.Module) -> AdapterClass | None:
        """The class that gets `node`, or `None` if layers inside of it are adapted instead.

        That is so if an earlier rule or tier claims one of them. Between classes of equal priority
        that claim `node` or a layer inside of it, plugins decide.
        """
        path = path_str(keys)
        places = dict.fromkeys(claim.classes, path)
        has_no_rival = claim.order == 0 and len(self.tiers[0][1]) == 1
        is_settled = has_no_rival or isinstance(node, tuple(NORMALISED))
        for inner, child in () if is_settled else modules_in(node, keys, enter_norms=False)[1:]:
            other = self.claim(path_str(inner), child) if self.selects(inner) else None
            if other is not None and other.order < claim.order:
                return None
            if other is not None and other.order == claim.order:
                places |= {c: path_str(inner) for c in other.classes if c not in places}
        cls = self._select(path, node, places)
        return cls if cls in claim.classes else None

    def _select(self, path: str, node: Any, places: dict[AdapterClass, str]) -> AdapterClass:
        """The class that plugins choose. `places` are the paths of the layers that each claims."""
        classes = list(places)
        chosen = classes[0] if len(classes) == 1 else self.registry.select(path, node, classes)
        if chosen is not None:
            return chosen
        names = (
            f"{cls.__name__} (from {self._distribution(cls) or cls.__module__})"
            + ("" if place == path else f", for {show_path(place)!r} inside of it")
            for cls, place in places.items()
        )
        raise SelectionError(
            f"Several adapters of equal priority claim {show_path(path)!r}, a "
            f"{type(node).__name__}:\n{bullets(names, FEW)}\n"
            "Name the one you want with `wrapper=` (a list is in order of priority), or "
            "register a `jno_lora_select` hook that chooses."
        )

    def _distribution(self, cls: AdapterClass) -> str | None:
        provider = self.registry.provider(cls)
        return None if provider is None else provider.distribution


def _ask(cls: AdapterClass, question: str, path: str, node: Any) -> Any:
    try:
        return getattr(cls, question)(node)
    except Exception as err:
        raise WrapperError(
            f"{cls.__name__}.{question} raised {type(err).__name__} on the "
            f"{type(node).__name__} at {show_path(path)!r}: {err}\n"
            "It is asked about every module of a model, and must answer False (or None) to what "
            "it does not know."
        ) from err


def _owns_arrays(node: eqx.Module) -> bool:
    # A direct field that is an array makes a layer of its own.
    fields = (getattr(node, f.name, None) for f in dataclasses.fields(node))
    return any(eqx.is_inexact_array(x) or is_coded(x) or _is_integer_matrix(x) for x in fields)


def _quantized(node: eqx.Module) -> str | None:
    """The reason for a layer whose weights are integers, such as a quantised one."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name, None)
        if _is_integer_matrix(value):
            return f"its {field.name} is {show_array(value)}, and adapters need floating weights"
    return None


def _is_integer_matrix(value: Any) -> bool:
    return eqx.is_array(value) and value.ndim > 1 and jnp.issubdtype(value.dtype, jnp.integer)
