"""Write the tables of `docs/evidence/physics.md` from the records of the runs."""

import pathlib
import textwrap
from collections.abc import Callable

from .._pages import DOCS, fill
from . import _darcy as darcy
from ._equations import EQUATIONS, Equation
from ._pinn_runs import LM
from ._results import CONDITIONAL, EQUATIONS_MET, WITH_INPUT, Cell, Study, load
from ._ways import WAYS

Ratio = Callable[[Study, Equation], float | None]


def write_page(results: pathlib.Path, docs: pathlib.Path = DOCS) -> pathlib.Path:
    """Fill the marked sections of `physics.md`, and return the page's path."""
    study = load(results)
    page = docs / "physics.md"
    sections = {
        "goal": _goal(study),
        "claims": _claims(study),
        "families": "\n".join(_family(study, equation) for equation in EQUATIONS),
        "instances": _instances(study),
        "jacobian": _jacobian(study),
        "darcy": _darcy(study),
    }
    fill(page, sections)
    return page


def _table(head: str, rows: list[str]) -> str:
    if not rows:
        return "Not run yet.\n"
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows]) + "\n"


def _goal(study: Study) -> str:
    words = {True: "yes", False: "**no**", None: "open: runs are missing"}
    rows = [f"| {text} | {value} | {words[met]} |" for text, value, met in study.goal()]
    ends, number = study.edges()
    note = (
        f"\nFor networks, the goal holds if it is met in {EQUATIONS_MET} of the equations. {ends} "
        f"of the {number} rates that validation chose for Adam are an end of their grid after the "
        "grid grew.\n"
    )
    return _table("| goal | measured | met |", rows) + note


def _family(study: Study, equation: Equation) -> str:
    rows = []
    for by in (LM, "Adam"):
        for way in WAYS:
            cell = None if way.each else study.pinn(equation, way.name, by)
            if cell is None:
                continue
            groups = ((equation.source,), equation.trained, equation.inside, equation.outside)
            errors = " | ".join(_number(cell.error(group)) for group in groups)
            rows.append(
                f"| {way.name} | {by} | {cell.records[0]['trained']:,} | {errors} "
                f"| {_number(cell.median('residual'))} | {cell.median('seconds'):.1f} "
                f"| {cell.median('temporary') / 2**20:.1f} |"
            )
    base = study.pinn(equation, "base")
    if base is not None:
        errors = ((equation.source,), equation.trained, equation.inside, equation.outside)
        columns = " | ".join(_number(base.error(group)) for group in errors)
        trained = base.records[0]["trained"]
        rows.insert(0, f"| the base, untouched | | {trained:,} | {columns} | | | |")
    trained = ", ".join(f"{z:g}" for z in equation.trained)
    inside = ", ".join(f"{z:g}" for z in equation.inside)
    outside = ", ".join(f"{z:g}" for z in equation.outside)
    text = textwrap.fill(
        f"{equation.text} Trained values: the source, {trained}. Untrained values: inside "
        f"{inside}; outside {outside}.",
        110,
        break_on_hyphens=False,
    )
    head = (
        "| way | solver | trained | source | trained values | inside | outside | residual "
        "| seconds | MiB |"
    )
    return f"### {equation.title}\n\n{text}\n\n{_table(head, rows)}"


def _instances(study: Study) -> str:
    rows = []
    for equation in EQUATIONS:
        values = (equation.trained[-1], equation.inside[1], equation.outside[0])
        for way in WAYS:
            if way.each:
                runs = [study.pinn(equation, way.name, LM, z) for z in values]
                cells = [cell for cell in runs if cell is not None]
                if len(cells) < len(values):
                    continue
                pairs = list(zip(cells, values, strict=True))
                size = f"{8 * cells[0].records[0]['trained']:,}"
            else:
                cell = None if way.draws else study.pinn(equation, way.name)
                if cell is None:
                    continue
                pairs, size = [(cell, z) for z in values], "8"
            errors = " | ".join(_number(cell.error((z,))) for cell, z in pairs)
            seconds = pairs[1][0].median("seconds") if way.each else 0.0
            memory = pairs[1][0].median("temporary") / 2**20
            costs = f"{seconds:.1f} | {memory:.1f} | {size}"
            rows.append(f"| {equation.name} | {way.name} | {errors} | {costs} |")
    head = (
        "| equation | way | a trained value | inside | outside | seconds for a further value "
        "| MiB | bytes of a further value |"
    )
    return _table(head, rows)


def _jacobian(study: Study) -> str:
    cells = {key: cell for key, cell in study.cells.items() if key[0] == "jacobian"}
    rows = []
    for (_, _, way, by, _), cell in cells.items():
        name = by if by.startswith("vmap") else f'optimistix\'s own, `"jac": "{by}"`'
        rows.append(
            f"| {way} | {cell.records[0]['trained']:,} | {name} "
            f"| {1e3 * cell.median('seconds'):.0f} | {cell.median('temporary') / 2**20:.0f} |"
        )
    return _table("| way | trained | Jacobian | ms of a step | MiB |", rows)


def _darcy(study: Study) -> str:
    rows = []
    base = study.operator("base", "labels at the source")
    for by in darcy.LOSSES:
        for way in (darcy.LORA, darcy.FULL, darcy.CONDITIONAL, darcy.WITH_INPUT):
            cell = study.operator(way.name, by)
            if cell is not None:
                single = len(way.values) == 1
                rows.append(_operator_row(f"{way.name} | {by}", cell, single))
    if base is not None:
        rows.insert(0, _operator_row("the base, untouched | ", base, False))
    head = (
        "| way | by | trained | source | trained values | inside | outside "
        f"| z = {darcy.TARGET:g} | seconds |"
    )
    return _table(head, rows)


def _operator_row(name: str, cell: Cell, single: bool) -> str:
    groups = [(darcy.SOURCE,), darcy.TRAINED, darcy.INSIDE, darcy.OUTSIDE]
    columns = ["" if single else f"{cell.error(group):.3f}" for group in groups]
    has_seconds = "seconds" in cell.records[0]
    seconds = f"{cell.median('seconds'):.1f}" if has_seconds else ""
    columns += [f"{cell.error((darcy.TARGET,)):.3f}", seconds]
    return f"| {name} | {cell.records[0]['trained']:,} | {' | '.join(columns)} |"


def _claims(study: Study) -> str:
    """Ratios by equation, and what an earlier trial saw."""
    rows = [
        _ratios(
            study, "error of Levenberg-Marquardt over Adam, conditional", _over_adam(CONDITIONAL)
        ),
        _ratios(study, "error of Levenberg-Marquardt over Adam, full", _over_adam(WITH_INPUT)),
        *(
            _ratios(study, f"{text}, for each value: full over LoRA", _full_over_lora(name))
            for name, text in (
                ("error", "error"),
                ("seconds", "seconds"),
                ("temporary", "temporary memory"),
            )
        ),
    ]
    head = f"| ratio | {' | '.join(equation.name for equation in EQUATIONS)} |"
    return _table(head, rows)


def _ratios(study: Study, text: str, ratio: Ratio) -> str:
    values = [ratio(study, equation) for equation in EQUATIONS]
    return f"| {text} | {' | '.join('not run' if v is None else f'{v:.2g}' for v in values)} |"


def _over_adam(way: str) -> Ratio:
    def ratio(study: Study, equation: Equation) -> float | None:
        cells = [study.pinn(equation, way, by) for by in (LM, "Adam")]
        errors = [cell.error(equation.trained) for cell in cells if cell is not None]
        return errors[0] / errors[1] if len(errors) == 2 else None

    return ratio


def _full_over_lora(name: str) -> Ratio:
    def ratio(study: Study, equation: Equation) -> float | None:
        z = equation.trained[-1]
        ways = ("full for each value", "lora 2 for each value")
        cells = [study.pinn(equation, way, LM, z) for way in ways]
        numbers = [
            cell.error((z,)) if name == "error" else cell.median(name)
            for cell in cells
            if cell is not None
        ]
        return numbers[0] / numbers[1] if len(numbers) == 2 else None

    return ratio


def _number(value: float) -> str:
    return f"{value:.2g}"
