"""Evaluate a traced function in which some values are virtual weights, and report their uses."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from jax.extend.core import JaxprEqn, Var
from jaxtyping import Array

from jno.lora import JnoLoraError, Table, merge_lora
from jno.lora.extending import Printed, table
from jno_lora_zoo import in_taylor_mode

from .._box import is_declared, refuse_dropout, unadapted
from .._views import DeclinedError, Value, Virtual, dense, virtual
from . import _jax
from ._calls import CALLS
from ._marks import Mark
from ._rules import RULES

_NO_RULES = "this adapter has no rules"


class Use(NamedTuple):
    """One use of a weight that a function reads from an adapted layer.

    - `adapter`, `shape`: the adapter's class, and the shape of the weight where it is used.
    - `operation`: the operation of JAX, such as `dot_general`.
    - `reason`: why the use needs the merged weight; `None` if the adapter computes it.
    """

    adapter: str
    shape: tuple[int, ...]
    operation: str
    reason: str | None


@dataclasses.dataclass(frozen=True, repr=False)
class UseReport(Printed[Use]):
    """The uses of weights in a function. Prints as a table, with one row for equal uses."""

    rows: tuple[Use, ...]

    def _table(self) -> Table:
        counted = collections.Counter(self.rows)
        columns = [("adapter", "left"), ("weight", "left"), ("operation", "left")]
        columns += [("uses", "right"), ("computed", "left")]
        rows = (
            (adapter, str(shape), operation, str(count), reason or "by the adapter")
            for (adapter, shape, operation, reason), count in counted.items()
        )
        merged = sum(use.reason is not None for use in self.rows)
        caption = f"{merged} of {len(self.rows)} uses need the merged weight."
        return table("Weights that are read from adapted layers", columns, rows, caption)


class Evaluation:
    """One evaluation of a traced function, and the uses of virtual weights that it found."""

    def __init__(self, strict: bool = False):
        self.strict = strict
        self.uses: list[Use] = []

    def run_dense(self, traced: _jax.Traced, args: Sequence[Value]) -> list[Array]:
        return list(map(dense, self.run(traced, args)))

    def run(self, traced: _jax.Traced, args: Sequence[Value]) -> list[Value]:
        """The results of a traced function. Arguments and results may be virtual."""
        jaxpr, consts = _jax.opened(traced)
        env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        plain: list[JaxprEqn] = []  # without virtual weights: JAX evaluates them together
        # Taylor mode treats all arguments of a nested jit as varying, so loops over some fail.
        opens_jit = any(map(in_taylor_mode, args))
        for eqn in jaxpr.eqns:
            has_weight = any(isinstance(_jax.read(env, var), Virtual) for var in eqn.invars)
            is_opened = opens_jit and CALLS.get(eqn.primitive.name) is CALLS["jit"]
            if not (has_weight or is_opened or _jax.marks_in(eqn)):
                plain.append(eqn)
                continue
            if plain:
                env.update(_jax.evaluate_plainly(jaxpr, plain, env))
                plain = []
            values = [_jax.read(env, var) for var in eqn.invars]
            results = self._results(eqn, values)
            if results is None:
                pairs = zip(eqn.invars, values, strict=True)
                merged = {var: dense(x) for var, x in pairs if isinstance(var, Var)}
                env.update(_jax.evaluate_plainly(jaxpr, [eqn], {**env, **merged}))
            else:
                env.update(zip(eqn.outvars, results, strict=True))
        env.update(_jax.evaluate_plainly(jaxpr, plain, env))
        return [_jax.read(env, var) for var in jaxpr.outvars]

    def value_of(self, leaf: Value) -> Value:
        """The real values of a declared array, or of its adapter, in the evaluation."""
        if not is_declared(leaf):
            return leaf
        if unadapted(leaf) is leaf:
            return leaf.in_order()
        refuse_dropout(leaf)
        weight = virtual(leaf)
        if weight is not None:
            return weight
        merged = merge_lora(leaf).in_order()
        self._note(Use(type(leaf).__name__, merged.shape, "read", _NO_RULES))
        return merged

    def merged(self, value: Value, operation: str, reason: str) -> Value:
        """`value` as an array. A virtual weight is merged, and its use is recorded."""
        if isinstance(value, Virtual):
            self._note(Use(value.name, value.shape, operation, reason))
        return dense(value)

    def _results(self, eqn: JaxprEqn, values: list[Value]) -> Sequence[Value] | None:
        """The results of one equation; `None` if JAX should compute them with merged weights."""
        with _jax.context_of(eqn):
            mark = _jax.mark_in(eqn)
            if mark is not None:
                return self._read(eqn, mark, values)
            try:
                if eqn.primitive.name in CALLS:
                    return CALLS[eqn.primitive.name](self, eqn, values)
                results = _by_rule(eqn, values)
            except DeclinedError as declined:
                self._note_uses(eqn, values, declined.reason, declined.is_choice)
                return None
            if not all(isinstance(result, Virtual) for result in results):
                self._note_uses(eqn, values, None)
            return results

    def _note_uses(
        self, eqn: JaxprEqn, values: list[Value], reason: str | None, is_choice: bool = False
    ) -> None:
        """Record a use of each adapted weight that an equation reads."""
        name = eqn.primitive.name
        for mark in _jax.marks_in(eqn):
            inside = "a function with a rule of its own reads it"
            self._note(Use(mark.adapter_name, (), name, inside))
        for weight in values:
            if isinstance(weight, Virtual):
                self._note(Use(weight.name, weight.shape, name, reason), is_choice)

    def _read(self, eqn: JaxprEqn, mark: Mark, values: list[Value]) -> Sequence[Value] | None:
        reason = "differentiated or mapped by vmap inside of the function"
        if not _jax.is_changed(eqn, mark):
            weight = virtual(mark.adapter(list(map(dense, values))))
            if weight is not None:
                return [weight]
            reason = _NO_RULES
        self._note(Use(mark.adapter_name, _jax.out(eqn).shape, "read", reason))
        return None

    def _note(self, use: Use, is_choice: bool = False) -> None:
        """Record a use. **Raises:** `JnoLoraError` with `strict`, unless merging is a choice."""
        self.uses.append(use)
        if self.strict and use.reason is not None and not is_choice:
            raise JnoLoraError(
                f"{use.operation} of the weight {use.shape} of a {use.adapter} needs the merged "
                f"weight: {use.reason}. Without `strict`, it is merged there."
            )


def _by_rule(eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """The results of an operation. **Raises:** `DeclinedError` if it needs merged weights."""
    if eqn.primitive.name not in RULES:
        raise DeclinedError("no rule")
    result = RULES[eqn.primitive.name](eqn, values)
    return result if isinstance(result, list) else [result]
