"""The claims of a call's adapters on the modules of a model."""

import dataclasses

from jaxtyping import PyTree

from .._contract.calling import why_not
from .._contract.wrapper import is_adapter
from .._errors import WrapperError, warn
from .._paths import KeyPath
from .._registry.plugins import how_to_block
from .._registry.registry import Registry
from .candidates import Candidate, Selector, candidates_of
from .messages import failed_claim
from .specs import AdapterClass, Rule, Tier


@dataclasses.dataclass(frozen=True)
class Claim:
    """The claim of a call's adapters on a candidate.

    - `is_selected`: whether the mask selects the candidate.
    - `rule`: the first rule that claims it; `None` if nobody does.
    - `place`: the places of this rule and of its tier. The smaller ones win.
    - `classes`: the adapters of this tier that apply.
    - `inside`: the claims on the modules inside of the candidate.
    """

    candidate: Candidate
    is_selected: bool
    rule: Rule | None = None
    place: tuple[int, int] = (0, 0)
    classes: tuple[AdapterClass, ...] = ()
    inside: "list[Claim]" = dataclasses.field(default_factory=list)

    def can_act(self) -> bool:
        """Whether an adapter may go around the candidate itself."""
        is_free = self.candidate.inside_norm is None and not is_adapter(self.candidate.module)
        return self.rule is not None and self.is_selected and is_free


class Questions:
    """Asks the adapter classes of a call about modules.

    If a class that the user named fails, so does the call. If another class fails, its answer is
    `False`, and the first time there is a warning.
    """

    def __init__(self, registry: Registry, rules: tuple[Rule, ...]):
        self.registry, self.rules = registry, rules
        self.named = frozenset(cls for rule in rules for cls in rule.named)
        self._failed: set[AdapterClass] = set()

    def claims(self, model: PyTree, selects: Selector) -> list[Claim]:
        """A claim for each module of `model`, outer modules first."""
        claims: dict[KeyPath, Claim] = {}
        for candidate in candidates_of(model):
            claims[candidate.keys] = claim = self._claim(candidate, selects(candidate.keys))
            outer = candidate.parent
            while outer is not None:
                claims[outer.keys].inside.append(claim)
                outer = outer.parent
        return [*claims.values()]

    def _claim(self, candidate: Candidate, is_selected: bool) -> Claim:
        """The claim of the first rule whose target matches, by its first tier that applies."""
        for index, rule in enumerate(self.rules):
            if not rule.matches(candidate.path):
                continue
            for number, tier in enumerate(rule.tiers):
                if classes := self._applying(tier, candidate):
                    return Claim(candidate, is_selected, rule, (index, number), classes)
        return Claim(candidate, is_selected)

    def misses_target(self, candidate: Candidate) -> bool:
        """Whether a rule would claim the unclaimed candidate, but its target does not match."""
        rules = [rule for rule in self.rules if not rule.matches(candidate.path)]
        tiers = dict.fromkeys(tier for rule in rules for tier in rule.tiers)
        return any(self._applying(tier, candidate) for tier in tiers)

    def reason_against(self, candidate: Candidate) -> str | None:
        """The first reason of an adapter against a layer that it nearly claims."""
        tiers = dict.fromkeys(tier for rule in self.rules for tier in rule.tiers)
        classes = (cls for tier in tiers for cls in tier.classes_for(candidate.layer))
        reasons = (why_not(cls, candidate.layer) for cls in dict.fromkeys(classes))
        return next(filter(None, reasons), None)

    def name(self, cls: AdapterClass) -> str:
        """How to name the class in a call."""
        provider = self.registry.provider(cls)
        return cls.__name__ if provider is None else f'wrapper="{provider.qualified_name}"'

    def _applying(self, tier: Tier, candidate: Candidate) -> tuple[AdapterClass, ...]:
        classes = tier.classes_for(candidate.layer)
        return tuple(cls for cls in classes if self._applies(cls, candidate))

    def _applies(self, cls: AdapterClass, candidate: Candidate) -> bool:
        try:
            return bool(cls.applies_to(candidate.layer))
        except Exception as err:
            failure = failed_claim(cls, candidate, err)
            if cls in self.named:
                raise WrapperError(failure) from err
            if cls not in self._failed:
                self._failed.add(cls)
                block = how_to_block(self.registry.distribution(cls))
                warn(f"{failure} This call takes its failures as False.{block}")
            return False
