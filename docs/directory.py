"""The directory of plugins, from the metadata of distributions.

A plugin is a distribution with entry points in the group `jno.lora`. Its metadata also say what the
row has: the summary, the tier as the keyword `jno-lora-complete`, the bounds, and the licence.
"""

import contextlib
import importlib.metadata
import pathlib
import re
import tempfile
import tomllib

from hatchling.build import prepare_metadata_for_build_wheel
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]
PROJECTS = ("plugins/*/pyproject.toml", "examples/plugins/*/pyproject.toml")
# Distributions of other authors, which are installed where this runs.
LISTED: tuple[str, ...] = ()
COLUMNS = ("distribution", "version", "what it adds", "tier", "needs", "licence")
_TIER = re.compile(r"jno-lora-(works|solid|complete)")


def projects() -> list[pathlib.Path]:
    """The plugins of this repository."""
    files = sorted(path for pattern in PROJECTS for path in ROOT.glob(pattern))
    tables = {file.parent: tomllib.loads(file.read_text())["project"] for file in files}
    return [path for path, table in tables.items() if "jno.lora" in table.get("entry-points", {})]


def row_of(project: pathlib.Path) -> tuple[str, ...]:
    """The row of a project, from the metadata that its wheel has."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(project):
        found = pathlib.Path(folder, prepare_metadata_for_build_wheel(folder))
        return row(importlib.metadata.Distribution.at(found))


def row(distribution: importlib.metadata.Distribution) -> tuple[str, ...]:
    """The facts of a plugin, for `COLUMNS`."""
    metadata = distribution.metadata
    needs = map(Requirement, distribution.requires or ())
    bounds = [
        f"{need.name} {','.join(sorted(map(str, need.specifier), reverse=True))}"
        for need in needs
        if need.name == "jno-lora" and need.marker is None
    ]
    tier = _TIER.search(metadata.get("Keywords", ""))
    return (
        f"`{distribution.name}`",
        distribution.version,
        metadata.get("Summary", "").rstrip("."),
        f"*{tier[1]}*" if tier else "",
        "; ".join(bounds),
        metadata.get("License-Expression") or metadata.get("License") or "",
    )


def table() -> str:
    """The rows of the directory."""
    listed = map(row, map(importlib.metadata.distribution, LISTED))
    rows = [COLUMNS, ("---",) * len(COLUMNS), *sorted([*map(row_of, projects()), *listed])]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
