"""Every Python block of the README and the documentation runs, page by page, as it stands."""

import json
import pathlib
import re

import jax
import pytest

from jno.lora import LoRAWrapper
from jno_lora_testing import messages, run_checks, standard_cases

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    # `docs/update.py` runs the code of a method's page.
    *sorted({*(ROOT / "docs").glob("**/*.md")} - {*(ROOT / "docs/methods").glob("*.md")}),
    *sorted((ROOT / "docs").glob("**/*.ipynb")),
]
SECTION = re.MULTILINE | re.DOTALL
BLOCK = re.compile(r"^```python\n(.*?)^```", SECTION)
EXCERPT = re.compile(r'^```[^\n]* title="((?:examples|plugins)/.*?)"}?\n(.*?)^```', SECTION)


def blocks_of(page):
    """The code of a page, or of the cells of a notebook."""
    if page.suffix == ".md":
        return BLOCK.findall(page.read_text())
    cells = json.loads(page.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run(page):
    """The blocks of a page, which build on each other; what they define."""
    namespace = {"__name__": f"docs.{page.stem}"}
    # They are written for JAX's own defaults.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for number, block in enumerate(blocks_of(page)):
            exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for what a page writes
    entries = {path for path in ROOT.iterdir() if path.name[0] != "."}
    blocks, namespace = blocks_of(page), run(page)
    assert entries == {path for path in ROOT.iterdir() if path.name[0] != "."}
    adapters = [value for value in namespace.values() if is_written_on(page, value)]
    assert adapters or not any("(LoRAWrapper)" in block for block in blocks)
    # tests/examples runs the kit on the adapter of the README.
    for number, adapter in enumerate(adapters if page.name != "README.md" else ()):
        is_known = number or varies_ours(adapter)
        check(adapter, VALUES if is_known else ("*",))


def is_written_on(page, value):
    is_adapter = isinstance(value, type) and issubclass(value, LoRAWrapper)
    return is_adapter and value.__module__ == f"docs.{page.stem}"


def varies_ours(adapter):
    """Whether it inherits from an adapter of our plugins, on which the whole kit runs."""
    ours = [base for base in adapter.__mro__ if base.__module__.startswith("jno_lora_")]
    return any("variant" in vars(base) for base in ours)


# What a variation of an adapter, such as a further adapter of a page, may break.
VALUES = ("contract", "state-round-trip", "identity-*", "adapter-acts", "merge-*", "gradients")


def check(adapter, checks):
    """These checks on the first layer of an adapter, and the checks of values on its others.

    Methods of the zoo's form claim no layer, but the adapters that a page makes of them do.
    """
    first, *further = standard_cases(adapter) or [None]
    cases = [first, *(case for case in further if "*" not in case.checks)] if first else []
    results = [result for case in cases for result in run_checks(case, checks)]
    failed = [result for result in results if result.error and result.level == "required"]
    assert not failed, "\n\n".join(messages(failed))


def test_the_pages_have_code_and_notebooks_are_stored_without_outputs():
    assert sum(len(blocks_of(page)) for page in PAGES) > 8
    # The site runs them when it is built.
    for notebook in (ROOT / "docs").glob("**/*.ipynb"):
        cells = json.loads(notebook.read_text())["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_excerpts_of_examples_on_pages_are_current():
    shown = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")):
        for name, text in EXCERPT.findall(page.read_text()):
            # Excerpts are indented, and broken into lines, as they stand on the page.
            excerpt, script = ("".join(t.split()) for t in (text, (ROOT / name).read_text()))
            assert text == f'--8<-- "{name}"\n' or excerpt in script, (page.name, name, text)
            shown.add(name)
    scripts = {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    assert scripts <= shown
