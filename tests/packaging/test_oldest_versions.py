"""`make test-matrix` runs the suite with the oldest versions that pyproject.toml allows: these."""

import itertools
import pathlib
import re
import tomllib

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from jno.lora import __version__

ROOT = pathlib.Path(__file__).parents[2]


def lower_bounds(requirements):
    """The oldest version that each of them allows; every one must say which that is."""
    found = {}
    for requirement in map(Requirement, requirements):
        (bound,) = (s for s in requirement.specifier if s.operator in (">=", "==", "~="))
        found[canonicalize_name(requirement.name)] = Version(bound.version)
    return found


def test_the_oldest_versions_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "tests" / "oldest-versions.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in line for line in pinned)
    assert lower_bounds(pinned) == lower_bounds(project["dependencies"])
    assert len(pinned) == len(project["dependencies"])


def test_our_distributions_require_each_other_as_they_are():
    # Before 1.0, a minor version may change what plugins build on.
    major, minor, *_ = Version(__version__).release
    wanted = SpecifierSet(f">={major}.{minor},<{major}.{minor + 1}")
    projects = [ROOT / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]
    projects += ROOT.glob("examples/**/pyproject.toml")
    for file in (tomllib.loads(path.read_text()) for path in projects):
        project = file["project"]
        extras = project.get("optional-dependencies", {}).values()
        groups = itertools.chain(*file.get("dependency-groups", {}).values())
        named = [entry for entry in groups if isinstance(entry, str)]  # others include a group
        for requirement in map(
            Requirement, itertools.chain(project["dependencies"], named, *extras)
        ):
            if requirement.name.startswith("jno-lora"):
                assert requirement.specifier == wanted or requirement.name == project["name"], (
                    project["name"],
                    str(requirement),
                )


def test_the_version_and_its_bounds_are_the_same_everywhere():
    major, minor, *_ = Version(__version__).release
    released = re.findall(
        r"^## \[(\d.*?)\]", (ROOT / "docs/changelog.md").read_text(), re.MULTILINE
    )
    assert released[0] == __version__
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    page = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("contract", "ship-it"))
    bounds = re.findall(r"`jno-lora(>=[\d.]+,<[\d.]+)`", page)
    assert set(bounds) == {f">={major}.{minor},<{major}.{minor + 1}"}


def test_the_oldest_interpreter_is_the_one_that_the_matrix_takes():
    projects = [ROOT / "pyproject.toml", *(ROOT / "plugins").glob("*/pyproject.toml")]
    wanted = {tomllib.loads(p.read_text())["project"]["requires-python"] for p in projects}
    (oldest,) = wanted
    makefile = (ROOT / "Makefile").read_text()
    assert f"$(subst oldest,{oldest.removeprefix('>=')},$*)" in makefile
