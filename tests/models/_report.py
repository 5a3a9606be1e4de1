"""The table of the matrix, model x variant, which a run writes into a page."""

import collections
import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .zoo_of_models import PACKAGES

# Its prose before the table is kept.
PAGE = Path(__file__).parents[2] / "docs" / "models.md"


class Table:
    """A pytest plugin that gathers the cells, and writes the table to `path`."""

    def __init__(self, path: Path | None):
        self.path = path
        self.cells: dict[str, dict[str, dict[str, Any]]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        cell = dict(report.user_properties).get("cell")
        if report.when != "call" or cell is None:
            return
        cell = json.loads(cell)
        if report.failed and not cell.get("problems"):
            cell["problems"] = [report.longreprtext.splitlines()[-1]]
        self.cells.setdefault(cell["model"], {})[cell["variant"]] = cell

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.cells and self.path is not None:
            self.path.write_text(self.page())
            terminalreporter.write_line(f"written to {self.path}")

    def page(self) -> str:
        """The page as Markdown: its prose, then the table and the lists."""
        models = sorted(self.cells)
        variants = list(dict.fromkeys(v for cells in self.cells.values() for v in cells))
        rows = [[model, *(_cell(self.cells[model].get(v)) for v in variants)] for model in models]
        failures = [
            f"* `{model}`, {variant}: {problem}"
            for model in models
            for variant, cell in self.cells[model].items()
            for problem in cell.get("problems", ())
        ]
        prose, _, _ = PAGE.read_text().partition("| model |")
        lines = [prose.rstrip(), "", *_table(["model", *variants], rows)]
        lines += ["", "## Failures", "", *(failures or ["None."])]
        lines += ["", "## Layers that no adapter takes", "", *self.left_out()]
        names = ["jax", "equinox", *PACKAGES]
        versions = ", ".join(f"{name} {version(name)}" for name in names)
        lines += ["", "## Notes", "", *self.notes(), "", "## Versions", ""]
        return "\n".join([*lines, f"Python {platform.python_version()}, {versions}.", ""])

    def left_out(self) -> Iterator[str]:
        """Layers that `auto` leaves alone: first those with a reason, then the other classes."""
        only_auto = [
            f"`{model}`"
            for model in sorted(self.cells)
            if "refused" in self.cells[model].get("default", {})
            and "refused" not in self.cells[model].get("auto", {})
        ]
        if only_auto:
            yield (
                "The default adapts only linear layers and convolutions whose weight has the "
                "layout that their own sizes declare. The kernels of these models are "
                f"channel-last, but only a plugin knows it: {', '.join(only_auto)}.\n"
            )
        yield from ("With `auto`, adapters almost apply to these layers:", "")
        others: set[str] = set()
        body: list[list[str]] = []
        for model in sorted(self.cells):
            cell = self.cells[model].get("auto", {})
            reasons = collections.Counter(map(tuple, cell.get("left out", ())))
            for (layer, explanation), count in reasons.items():
                _, _, reason = explanation.partition(": ")
                if reason.startswith("its raw arrays are declared"):
                    continue
                if reason:
                    body.append([f"`{model}`", f"{count} `{layer}`", reason])
                else:
                    others.add(f"`{layer}`")
            for refused in cell.get("refused", ()):
                layer, _, reason = refused.removesuffix(")").partition(" (")
                body.append([f"`{model}`", f"`{layer}`", reason])
        yield from _table(["model", "layers", "why not"], body)
        yield ""
        yield (
            "No adapter exists for these layers, which hold arrays of their own (scales of norms, "
            f"spectral weights, positions, bare matrices): {', '.join(sorted(others))}."
        )

    def notes(self) -> Iterator[str]:
        """The peculiarities of some models, and where a variant can do nothing."""
        for model in sorted(self.cells):
            cells = self.cells[model].values()
            notes = [next(iter(cells))["note"]]
            allowed = max(cell.get("tolerance", 0.0) for cell in cells)
            if allowed > 1.01e-5:
                notes.append(f"amplifies rounding, so that outputs may differ by {allowed:.0e}")
            if any(notes):
                yield f"* `{model}`: {'; '.join(filter(None, notes))}."
        yield "* OFT does nothing to a layer with a single output: a rotation in one dimension."


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    if cell.get("problems"):
        return "**fails**"
    return "*none*" if "refused" in cell else str(cell["layers"])


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(line) + " |" for line in lines]
