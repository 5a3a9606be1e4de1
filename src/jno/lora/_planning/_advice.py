"""What a plan says about layers with matrices that the call leaves without an adapter."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from .._contract import LoRAWrapper
from .._paths import show_array
from .._registry import PluginRecord, Registry
from .._tree import claims, count_plain, is_parameter, layers_left_out, modules_in
from ._plan import Plan, PlanRow

_NAMED = 4  # how many adapters of a distribution a row names


def advised(plan: Plan, model: PyTree, registry: Registry) -> Plan:
    """`plan`, with the layers that it leaves out, and with advice in their rows.

    Asks the adapters of all installed plugins, which it loads if a layer with matrices is left out.
    (If the call names classes, it loads nothing, and asks the plugins that are loaded: the answers
    of the remaining plugins are not known, so there is no advice on how to declare.) So
    `apply_lora` and `net.lora` do not ask. A plan does not ask when it prints either: it would have
    to keep the model, and would change as plugins are loaded.
    """
    adapted = {row.keys for row in plan.having("wrapped", "already adapted")}
    left_out = layers_left_out(model, count_plain(model), adapted)
    layers = dict(modules_in(model))
    asks_all = plan.by_default or not registry.discover
    records = functools.partial(registry.records, strict=False) if asks_all else registry.loaded
    rows = tuple(_advised_row(row, layers.get(row.keys), records, asks_all) for row in plan.rows)
    return dataclasses.replace(plan, rows=rows, left_out=left_out)


def _advised_row(
    row: PlanRow, layer: Any, records: Callable[[], tuple[PluginRecord, ...]], asks_all: bool
) -> PlanRow:
    matrices = {} if row.status != "no wrapper applies" else matrices_of(layer)
    if not matrices:
        return row
    wrappers = [wrapper for record in records() for wrapper in record.wrappers]
    fitting: dict[str, list[type[LoRAWrapper]]] = {}
    for wrapper in wrappers:
        if claims(wrapper.cls, layer):
            fitting.setdefault(wrapper.distribution, []).append(wrapper.cls)
    if fitting:
        names = "; ".join(_names(*adapters) for adapters in fitting.items())
        do = "does" if sum(map(len, fitting.values())) == 1 else "do"
        return dataclasses.replace(row, advice=f"none of this call; {names} {do}")
    if row.reason is not None or not asks_all:
        return row
    reasons = (_reason(wrapper.cls, layer) for wrapper in wrappers)
    advice = next(filter(None, reasons), f"declare {', '.join(matrices)} (jno_lora_arrays)")
    return dataclasses.replace(row, advice=f"no installed adapter applies; {advice}")


def _reason(cls: type[LoRAWrapper], layer: Any) -> str | None:
    """The answer of `why_not`. A class that raises has none: a call of the class warns of that."""
    try:
        return cls.why_not(layer)
    except Exception:
        return None


def _names(distribution: str, classes: list[type[LoRAWrapper]]) -> str:
    # The adapters of `wrapper="auto"` first: the plugin itself prefers them.
    names = [cls.__name__ for cls in sorted(classes, key=lambda cls: not cls.auto)]
    if len(names) > _NAMED:
        names = [*names[:_NAMED], f"{len(names) - _NAMED} more"]
    return f"{', '.join(names)} ({distribution})"


def matrices_of(layer: Any) -> dict[str, str]:
    """The direct fields of `layer` with matrices, arrays of two axes or more: dtypes and shapes."""
    names = [field.name for field in dataclasses.fields(layer)]
    fields: dict[str, Any] = {name: getattr(layer, name, None) for name in names}
    arrays = {name: value for name, value in fields.items() if is_parameter(value)}
    return {name: show_array(array) for name, array in arrays.items() if len(array.shape) > 1}
