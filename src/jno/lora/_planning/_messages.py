"""The plan of a call, and what is said about layers that are not adapted."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from jaxtyping import PyTree

from .._contract import is_adapter
from .._errors import warn
from .._paths import FEW, bullets, nearest, path_str, show_path
from .._registry import Registry
from .._tree import (
    NORMALISED,
    claims,
    count_plain,
    fields_of,
    is_parameter,
    layers_left_out,
    modules_in,
    why_not,
)
from ._masks import Selector
from ._plan import Plan, PlanRow
from ._roles import LinearInBlocks, NamedLayers
from ._specs import Rule
from ._walk import Walk

_NAMED = 4  # how many adapters the advice in a row names

_NO_BLOCKS = (
    "It means the linear layers in repeated blocks (modules of one class in a list, or a stack), "
    "and this model has none. Leave `target` out to adapt every layer, or give a regex on paths, "
    "or a list of names."
)
_WHY_REFUSED = (
    "Layers inside eqx.nn.WeightNorm and SpectralNorm are not adapted: the norm rewrites the "
    "weight that the adapter adds to, and would rescale or bypass the adapter. To adapt the norm "
    "and its layer as one, with the update inside the norm, ask for it: "
    'wrapper=["lora", "lora-in-norm"].'
)
_MORE_ADAPTERS = (
    '`wrapper="auto"` asks every installed adapter that has `auto = True`; a name or variant asks '
    "for any adapter (`jno-lora adapters` lists them). To adapt a layer of your own, say what the "
    'axes of its arrays mean: "Your own spectral layer", in docs/operators.md, shows how.'
)
_NO_MODULE = (
    "The model holds no Equinox module with arrays. To adapt bare arrays, such as the parameters "
    "of Flax or Haiku, declare them (docs/flax-and-haiku.md). To adapt a skeleton of shapes: "
    "eqx.filter_eval_shape(lambda model: apply_lora(model, ...), skeleton)."
)


def make_plan(
    registry: Registry, model: PyTree, rules: tuple[Rule, ...], selects: Selector
) -> Plan:
    """The plan of a call: one walk over the model, with the error of a rule that finds nothing."""
    walk = Walk(registry, model, rules, selects)
    notes = tuple(_continued_numbers(walk))
    by_default = walk.asks_layers or not walk.named
    return Plan(tuple(walk.rows), _problem_of(walk), notes=notes, by_default=by_default)


def _problem_of(walk: Walk) -> str | None:
    """The error of the first rule that matches no layer at all, masked or not."""
    for index, rule in enumerate(walk.rules):
        if index not in walk.matched:
            return "\n".join(_explain(walk, index))
        paths = [row.path for row in walk.rows]
        missing = rule.target.missing_from(paths) if isinstance(rule.target, NamedLayers) else []
        if missing:
            # Names are compared with as many names at the end of each path.
            length = missing[0].count("/") + 1
            ends = ["/".join(path.split("/")[-length:]) for path in paths]
            head = (
                f"{rule.label}: no layer has a path (its names are joined by slashes) that ends in "
                f"{missing[0]!r}. The nearest paths end in:\n{bullets(nearest(missing[0], ends))}"
            )
            return "\n".join([head, *_adaptable_layers(walk)])
    return None


def _explain(walk: Walk, index: int) -> Iterator[str]:
    """Why the rule selects no layer: the layers that it matches, or the nearest paths."""
    rule, rows = walk.rules[index], {row.path: row for row in walk.rows}
    target = "every layer" if rule.target is None else f"target {rule.target.pattern!r}"
    names = ", ".join(cls.__name__ for tier in rule.tiers for cls in tier)
    yield f"{rule.label} ({target}, wrapper {names}) selects no layer."
    matching = list(_matching(walk, index))
    if isinstance(rule.target, LinearInBlocks) and not rule.target.paths:
        yield _NO_BLOCKS
    elif matching:
        yield "It matches these layers, and adapts none of them:"
        yield bullets(matching, FEW)
        if any(row.spec == index for row in walk.rows):
            yield _WHY_REFUSED
        if any(row.status == "no wrapper applies" and rule.matches(row.path) for row in walk.rows):
            yield _MORE_ADAPTERS
    elif rows and rule.target is not None:
        near = nearest(rule.target.pattern, rows, n=len(rows))
        near.sort(key=lambda path: not _is_adaptable(rows[path]))
        yield "The nearest paths are:"
        yield bullets(
            show_path(path) if _is_adaptable(rows[path]) else f"{path}: {_describe(rows[path])}"
            for path in near[:5]
        )
    yield from _adaptable_layers(walk)


def _matching(walk: Walk, index: int) -> Iterator[str]:
    """Lines for the layers that the rule's target matches, with the reason why it adapts none."""
    rule, rows = walk.rules[index], {row.path: row for row in walk.rows}
    for keys, node in modules_in(walk.model):
        path = path_str(keys)
        row = rows.get(path)
        layer: Any = node.base if is_adapter(node) else node
        if not rule.matches(path):
            continue
        if row is not None and row.spec == index:  # inside a norm
            yield f"{show_path(path)}: {row.status}"
        elif any(walk.applying(tier, path, layer) for tier in rule.tiers):
            yield f"{show_path(path)}: taken by {_taker(walk, path)}"
        elif row is not None and row.status in ("no wrapper applies", "already adapted"):
            yield f"{show_path(path)}: {_describe(row)}"
        elif row is not None:  # a wrapper of another spec applies
            yield f"{show_path(path)}: {row.layer}, no wrapper applies"


def _taker(walk: Walk, path: str) -> str:
    """The earlier rule that claims the layer at `path`, or a layer around it."""
    for row in walk.rows:
        if row.spec is not None and (row.path in ("", path) or path.startswith(f"{row.path}/")):
            inside = "" if row.path == path else f", inside {show_path(row.path)}"
            return f"{walk.rules[row.spec].label}, which wins{inside}"
    return "earlier specs, by the layers inside of it"


def _describe(row: PlanRow) -> str:
    return f"{row.layer}, {row.explanation}"


def _adaptable_layers(walk: Walk) -> Iterator[str]:
    """Lines with the layers that the wrappers of the call adapt if the layers are selected."""
    if adaptable := list(filter(_is_adaptable, walk.rows)):
        yield f"The layers that the wrappers of this call can adapt are:\n{_paths(adaptable)}"
    elif walk.rows:
        yield "The wrappers of this call can adapt none of the model's layers."
    else:
        yield _NO_MODULE


def _is_adaptable(row: PlanRow) -> bool:
    return row.status in ("wrapped", "target does not match", "mask does not select")


def _paths(rows: Iterable[PlanRow]) -> str:
    return bullets((show_path(row.path) for row in rows), FEW)


def _continued_numbers(walk: Walk) -> Iterator[str]:
    """For each target such as `layers/1`, which of the selected paths are like `layers/10`."""
    for index, rule in enumerate(walk.rules):
        target = rule.target
        # "layers/1", "layers/(1|2)" and "layers/[01]", but not "layers/[0-9]".
        if not isinstance(target, re.Pattern) or not re.search(r"(?<!-)\d[\])]*$", target.pattern):
            continue
        whole = f"(?:{target.pattern})" if "|" in target.pattern else target.pattern
        ends_here = re.compile(rf"{whole}(?!\d)", target.flags)
        selected = [row for row in walk.rows if row.spec == index]
        if longer := [row for row in selected if not ends_here.search(row.path)]:
            yield (
                f"The target {target.pattern!r} ends in a number, and also selects paths in which "
                f"the number goes on:\n{_paths(longer)}\n"
                f"To leave them out, write {whole + '(/|$)'!r}."
            )


def warn_of_omissions(plan: Plan) -> None:
    """Warn about the layers in norms, and if everything that is selected has an adapter or none."""
    refusals: Any = NORMALISED.values()
    if refused := plan.having(*refusals):
        warn(f"{_WHY_REFUSED} These were not adapted:\n{_paths(refused)}")
    if plan.wrapped:
        return
    carriers = plan.having("already adapted")
    if selected := [row for row in carriers if row.spec is not None]:
        warn(
            "Every selected layer carries an adapter already, so nothing was adapted. Merge or "
            f"unwrap first to adapt them again:\n{_paths(selected)}"
        )
    elif masked := plan.having("mask does not select") or carriers:
        warn(f"The mask selects none of these layers, so nothing was adapted:\n{_paths(masked)}")


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

    def advice_for(row: PlanRow, layer: Any) -> str | None:
        values = fields_of(layer).items()
        matrices = [name for name, x in values if is_parameter(x) and len(x.shape) > 1]
        if not matrices:
            return None
        wrappers = [wrapper for record in records() for wrapper in record.wrappers]
        if applying := [wrapper for wrapper in wrappers if claims(wrapper.cls, layer)]:
            # The adapters of `wrapper="auto"` first: the plugin itself prefers them.
            applying.sort(key=lambda wrapper: not wrapper.cls.auto)
            names = [wrapper.cls.__name__ for wrapper in applying]
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            origins = ", ".join(dict.fromkeys(wrapper.distribution for wrapper in applying))
            return f"none of this call; {', '.join(names[:_NAMED])}{more} ({origins})"
        if row.reason is not None or not asks_all:
            return None
        reasons = filter(None, (why_not(wrapper.cls, layer) for wrapper in wrappers))
        declare = f"declare {', '.join(matrices)} (docs/operators.md)"
        return f"no installed adapter applies; {next(reasons, declare)}"

    rows = (
        dataclasses.replace(row, advice=advice_for(row, layers[row.keys]))
        if row.status == "no wrapper applies"
        else row
        for row in plan.rows
    )
    return dataclasses.replace(plan, rows=tuple(rows), left_out=left_out)
