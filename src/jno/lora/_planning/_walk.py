"""One walk over a model: who claims each layer, and why not every other candidate."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._contract import LoRAWrapper, is_wrapper
from .._errors import SelectionError, WrapperError
from .._paths import FEW, KeyPath, bullets, path_str, show_path
from .._registry import Registry
from .._tree import NORMALISED, holds_adapters
from ._masks import Mask
from ._plan import PlanRow, PlanStatus
from ._specs import Spec, Tiers


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


class Walk:
    """One walk over a model: decides per node, after target and mask, whether it is a leaf."""

    def __init__(self, registry: Registry, specs: tuple[Spec, ...], mask: Mask):
        self.registry = registry
        self.specs = specs
        self.mask = mask
        self.all_tiers = tuple(dict.fromkeys(spec.tiers for spec in specs))
        self.in_play = tuple(
            dict.fromkeys(cls for tiers in self.all_tiers for tier in tiers for cls in tier)
        )
        self.rows: list[PlanRow] = []
        self.matched: set[int] = set()  # specs that won a layer, whatever the mask says
        self.meets_adapters = True  # whether it is worth looking for them in each layer
        self.claimed_nodes: dict[str, tuple[KeyPath, eqx.Module]] = {}

    def over(self, model: PyTree) -> list[PlanRow]:
        """The rows of every candidate in `model`."""

        def is_leaf(keys: KeyPath, node: Any) -> bool:
            # By its type: `isinstance` of a module is slow, and most nodes are arrays.
            if not issubclass(type(node), eqx.Module):
                return False
            row = self.decide(keys, node)
            if row is not None:
                self.rows.append(row)
                if row.status in ("wrapped", "already adapted"):
                    return True
            for container, reason in NORMALISED.items():
                if isinstance(node, container):
                    self.rows.extend(self.refuse_inside(keys, node, reason))
                    return True
            return False

        self.meets_adapters = holds_adapters(model)
        jtu.tree_flatten_with_path(model, is_leaf=is_leaf, is_leaf_takes_path=True)
        return self.rows

    def decide(self, keys: KeyPath, node: eqx.Module) -> PlanRow | None:
        """The row of `node`, or `None` if it is no candidate."""
        path = path_str(keys)
        layer = type(node).__name__
        if is_wrapper(node):
            return self.row_of_wrapper(path, keys, node)
        match = self.first_match(path, node)
        if match is None:
            if self.claimed_by_any(path, node):
                return PlanRow(path, layer, "target does not match", keys=keys)
            if _owns_arrays(node):
                reason = self.why_not(path, node)
                return PlanRow(path, layer, "no wrapper applies", reason=reason, keys=keys)
            return None
        if self.goes_inside(match, keys, node):
            return None  # go on to the layers inside
        spec_index, cls = match.spec, match.cls
        self.matched.add(spec_index)
        if self.meets_adapters and holds_adapters(node):
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
            options=spec.options,
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

    def goes_inside(self, match: "_Match", keys: KeyPath, node: eqx.Module) -> bool:
        """Whether layers inside `node` are adapted, and not `node` itself as `match` would.

        That is so if one of them is claimed by an earlier spec, or by an earlier tier. If one is
        claimed by another class of equal priority, plugins decide.
        """
        alone = len(self.specs[match.spec].tiers[match.tier]) == 1
        if (match.priority == (0, 0) and alone) or isinstance(node, tuple(NORMALISED)):
            return False
        rivals: dict[type[LoRAWrapper], str] = {}
        for inner, child in _modules_inside(keys, node):
            if not self.mask.selects(inner):
                continue
            path = path_str(inner)
            priority, claimants = self.first_claimants(path, child)
            if claimants and priority < match.priority:
                return True
            if priority == match.priority:
                rivals |= {cls: path for cls in claimants if cls not in (match.cls, *rivals)}
        if not rivals:
            return False
        chosen = self.select(path_str(keys), node, [match.cls, *rivals], rivals)
        return chosen is not match.cls

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
                if rule.matches(path) and self.claimants(rule.tiers, path, child)[1]:
                    within = "" if inner == keys else f", inside {show_path(row.path)}"
                    label = self.specs[row.spec].label
                    lines.append(f"{show_path(path)}: {label}{within}")
        return lines

    def unclaimed_by(self, spec: int) -> list[PlanRow]:
        """The rows that the target of `spec` matches, and that none of its wrappers adapts."""
        rule = self.specs[spec]

        def may_claim(path: str) -> bool:
            _, node = self.claimed_nodes.get(path, ((), None))
            return node is not None and bool(self.claimants(rule.tiers, path, node)[1])

        return [
            row
            for row in self.rows
            if rule.matches(row.path)
            and row.status not in NORMALISED.values()
            and not may_claim(row.path)
        ]

    def first_match(self, path: str, node: Any) -> "_Match | None":
        """The first spec whose target matches and one of whose wrappers applies.

        Plugins break a tie in a tier.
        """
        (spec, tier), claimants = self.first_claimants(path, node)
        if not claimants:
            return None
        one = claimants[0] if len(claimants) == 1 else self.select(path, node, claimants)
        return _Match(spec, tier, one)

    def first_claimants(
        self, path: str, node: Any
    ) -> tuple[tuple[int, int], list[type[LoRAWrapper]]]:
        """Spec and tier of the first that claim `node`, and which of its classes do."""
        claims: dict[Tiers, tuple[int, list[type[LoRAWrapper]]]] = {}
        for index, spec in enumerate(self.specs):
            if spec.matches(path):
                if spec.tiers not in claims:
                    claims[spec.tiers] = self.claimants(spec.tiers, path, node)
                tier, classes = claims[spec.tiers]
                if classes:
                    return (index, tier), classes
        return (-1, -1), []

    def claimants(self, tiers: Tiers, path: str, node: Any) -> tuple[int, list[type[LoRAWrapper]]]:
        """The first tier that claims `node`, and those of its classes that do; else none."""
        for index, tier in enumerate(tiers):
            classes = [cls for cls in tier if _ask(cls, "applies_to", path, node)]
            if classes:
                return index, classes
        return -1, []

    def select(
        self,
        path: str,
        node: Any,
        claimants: list[type[LoRAWrapper]],
        inside: Mapping[type[LoRAWrapper], str] = MappingProxyType({}),
    ) -> type[LoRAWrapper]:
        """Which of the classes that claim `node`, or a layer `inside` of it, is to have it."""
        chosen = self.registry.select(path, node, claimants)
        if chosen is None:
            names = (
                f"{cls.__name__} (from {self.distribution(cls) or cls.__module__})"
                + (f", for {show_path(inside[cls])!r} inside of it" if cls in inside else "")
                for cls in claimants
            )
            raise SelectionError(
                f"Several adapters of equal priority claim {show_path(path)!r}, a "
                f"{type(node).__name__}:\n{bullets(names, FEW)}\n"
                "Name the one you want with `wrapper=` (a list is in order of priority), or "
                "register a `jno_lora_select` hook that chooses."
            )
        return chosen

    def claimed_by_any(self, path: str, node: Any) -> bool:
        """Whether some wrapper in play would take `node` if its target matched."""
        return any(_ask(cls, "applies_to", path, node) for cls in self.in_play)

    def why_not(self, path: str, node: Any) -> str | None:
        """What the wrappers in play have to say about not claiming `node`."""
        answers = (_ask(cls, "why_not", path, node) for cls in self.in_play)
        return next((str(answer) for answer in answers if answer is not None), None)

    def distribution(self, cls: type[LoRAWrapper]) -> str | None:
        provider = self.registry.provider(cls)
        return None if provider is None else provider.distribution


def _ask(cls: type[LoRAWrapper], question: str, path: str, node: Any) -> Any:
    try:
        return getattr(cls, question)(node)
    except Exception as err:
        raise WrapperError(
            f"{cls.__name__}.{question} raised {type(err).__name__} on the "
            f"{type(node).__name__} at {show_path(path)!r}: {err}\n"
            "It is asked about every module of a model, and must answer False (or None) to what "
            "it does not know."
        ) from err


def _modules_inside(keys: KeyPath, node: eqx.Module) -> list[tuple[KeyPath, eqx.Module]]:
    """The modules below `node`, which is at `keys`, with their paths from the root.

    Not those inside an adapter, nor those inside a norm that is itself inside `node`.
    """
    found: list[tuple[KeyPath, eqx.Module]] = []

    def look(inner: KeyPath, child: Any) -> bool:
        if inner and issubclass(type(child), eqx.Module):
            found.append(((*keys, *inner), child))
        return is_wrapper(child) or (bool(inner) and isinstance(child, tuple(NORMALISED)))

    jtu.tree_flatten_with_path(node, is_leaf=look, is_leaf_takes_path=True)
    return found


def _owns_arrays(node: eqx.Module) -> bool:
    """Whether an array is a direct field of `node`, which makes it a layer of its own."""
    return any(eqx.is_inexact_array(getattr(node, f.name, None)) for f in dataclasses.fields(node))
