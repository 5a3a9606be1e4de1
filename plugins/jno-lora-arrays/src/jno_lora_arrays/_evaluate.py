"""Evaluating a traced function, in which some values are virtual weights."""

from collections.abc import Sequence
from typing import Any

from jno.lora import JnoLoraError, WrapperError, merge_lora
from jno.lora.extending import jaxprs_in
from jno_lora_zoo import in_taylor_mode

from ._calls import CALLS
from ._jax import (
    context_of,
    evaluate_plainly,
    is_changed,
    mark_in,
    marks_in,
    opened,
    read,
)
from ._report import Use
from ._rules import RULES
from ._views import Declined
from ._virtual import Virtual, dense, virtual
from .layer import is_declared, unadapted


class Evaluation:
    """One evaluation of a traced function, and the uses of virtual weights that it met."""

    def __init__(self, strict: bool = False):
        self.strict = strict
        self.uses: list[Use] = []

    def run_dense(self, traced: Any, args: Sequence[Any]) -> list[Any]:
        """As `run`, but the results are arrays."""
        return list(map(dense, self.run(traced, args)))

    def run(self, traced: Any, args: Sequence[Any]) -> list[Any]:
        """The results of a traced function. Arguments may be virtual, and results too."""
        jaxpr, consts = opened(traced)
        env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        plain: list[Any] = []  # equations without virtual weights, to evaluate at once
        # Taylor mode takes all arguments of a nested jit for varying, and fails at loops over some.
        opens_jit = any(map(in_taylor_mode, args))
        for eqn in jaxpr.eqns:
            values = [read(env, var) for var in eqn.invars]
            mark = mark_in(eqn)
            inner = [] if mark else [it for one in jaxprs_in(eqn) for it in marks_in(one)]
            opens = opens_jit and CALLS.get(eqn.primitive.name) is CALLS["jit"]
            if not (mark or inner or opens or any(isinstance(x, Virtual) for x in values)):
                plain.append(eqn)
                continue
            if plain:
                env.update(evaluate_plainly(jaxpr, plain, env))
                values, plain = [read(env, var) for var in eqn.invars], []
            with context_of(eqn):
                if mark is not None:
                    results = self._read(eqn, mark, values)
                else:
                    results = self._results(eqn, values, inner)
            if results is None:
                env.update(evaluate_plainly(jaxpr, [eqn], {**env, **_dense_of(eqn, env)}))
            else:
                env.update(zip(eqn.outvars, results, strict=True))
        env.update(evaluate_plainly(jaxpr, plain, env))
        return [read(env, var) for var in jaxpr.outvars]

    def value_of(self, leaf: Any) -> Any:
        """The value that stands for a declared array, or its adapter, in the evaluation."""
        if not is_declared(leaf):
            return leaf
        if unadapted(leaf) is leaf:
            return leaf.plain()
        dropout = getattr(leaf, "dropout", None)
        if dropout is not None and not dropout.inference:
            raise WrapperError(
                f"A {type(leaf).__name__} was built with `dropout`, which acts on the inputs of "
                "one use of a layer, and an array has any number of uses. Leave `dropout` out, or "
                "switch it off by `eqx.nn.inference_mode(model)`."
            )
        weight = virtual(leaf)
        if weight is None:
            plain = merge_lora(leaf).plain()
            reason = "this adapter has no rules"
            self._note(Use(type(leaf).__name__, plain.shape, "read", reason))
            return plain
        return weight

    def merged(self, value: Any, operation: str, reason: str) -> Any:
        """An array: the merged weight if `value` is a virtual one, whose use is noted."""
        if isinstance(value, Virtual):
            self._note(Use(value.name, value.shape, operation, reason))
        return dense(value)

    def _results(self, eqn: Any, values: list[Any], inner: list[Any]) -> Sequence[Any] | None:
        """The results of one equation; `None` if JAX is to compute it with merged weights."""
        is_virtual = [x for x in values if isinstance(x, Virtual)]
        name = eqn.primitive.name
        result: Any = Declined("no rule")
        if name in CALLS:
            result = CALLS[name](self, eqn, values)
            if not isinstance(result, Declined):
                return result
        for one in inner:
            reason = "a function with a rule of its own reads it"
            self._note(Use(one.adapter_name, (), name, reason))
        if not is_virtual:
            return None
        if name in RULES:
            result = RULES[name](eqn, values)
        results = result if isinstance(result, list) else [result]
        if all(isinstance(one, Virtual) for one in results):
            return results
        declined = result if isinstance(result, Declined) else None
        for weight in is_virtual:
            reason = None if declined is None else declined.reason
            self._note(Use(weight.name, weight.shape, name, reason), declined)
        return results if declined is None else None

    def _read(self, eqn: Any, mark: Any, values: list[Any]) -> Sequence[Any] | None:
        reason = "differentiated or mapped by vmap inside of the function"
        if not is_changed(eqn, mark):
            weight = virtual(mark.adapter(list(map(dense, values))))
            if weight is not None:
                return [weight]
            reason = "this adapter has no rules"
        self._note(Use(mark.adapter_name, eqn.outvars[0].aval.shape, "read", reason))
        return None

    def _note(self, use: Use, declined: Declined | None = None) -> None:
        self.uses.append(use)
        is_choice = declined is not None and declined.is_choice
        if self.strict and use.reason is not None and not is_choice:
            raise JnoLoraError(
                f"{use.operation} of the weight {use.shape} of a {use.adapter} needs the merged "
                f"weight: {use.reason}. Without `strict`, it is merged there."
            )


def _dense_of(eqn: Any, env: dict[Any, Any]) -> dict[Any, Any]:
    """The merged weights among the operands."""
    variables = (var for var in eqn.invars if isinstance(read(env, var), Virtual))
    return {var: dense(env[var]) for var in variables}
