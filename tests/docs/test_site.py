"""The site says which version it is, and its numbers are current, and methods' pages show them."""

import importlib.util
import inspect
import pathlib
import re
from types import SimpleNamespace

import pytest

from jno.lora import __version__, extending
from jno_lora_testing import CHECKS
from jno_lora_zoo import FAMILIES, METHODS, adapters

DOCS = pathlib.Path(__file__).parents[2] / "docs"


@pytest.fixture
def site_facts():
    spec = importlib.util.spec_from_file_location("site_facts", DOCS / "site_facts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config():
    return SimpleNamespace(site_name="jno-lora", repo_url=None, repo_name=None)


def test_the_reference_has_each_helper_once_and_shows_plugins_instead_of_their_doors(site_facts):
    assert site_facts.on_config(config()).site_name == f"jno-lora {__version__}"
    every_page = "".join(file.read_text() for file in DOCS.glob("*.md"))
    assert not re.search(r"^::: jno\.lora\.(in_jno|optim|peft|testing)\b", every_page, re.MULTILINE)
    page = (DOCS / "api.md").read_text()
    names = re.findall(r"^::: jno\.lora\.extending\.(\w+)$", page, re.MULTILINE)
    assert sorted(names) == sorted(extending.__all__)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_table_of_numbers_is_that_of_the_stored_results(site_facts, page):
    # If not: `python docs/site_facts.py`.
    assert site_facts.with_numbers(page) == (DOCS.parent / page).read_text()


def test_the_directory_of_plugins_is_current():
    spec = importlib.util.spec_from_file_location("directory", DOCS / "directory.py")
    directory = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(directory)
    # If not: `python -m docs.directory`.
    assert directory.page() == (DOCS / "directory.md").read_text()
    rows = [
        line.split(" | ") for line in directory.page().splitlines() if "`jno-lora-" in line[:12]
    ]
    assert {len(row) for row in rows} == {len(directory.COLUMNS)}
    tiers = {row[0].strip("| `"): row[3] for row in rows}
    assert tiers["jno-lora-sine-lora"] == tiers["jno-lora-attention"] == "*complete*"
    assert "jno-lora-bank" not in tiers and tiers["jno-lora-compare"] == ""


def test_the_page_of_checks_has_each_check_with_its_remedy(site_facts):
    page = (DOCS / "checks.md").read_text()
    # If not: `python docs/site_facts.py`.
    assert site_facts.with_checks() == page
    assert sorted(re.findall(r"^### (.+)$", page, re.MULTILINE)) == sorted(CHECKS)
    texts = re.findall(r"^\*What to do:\* (.*)$", page, re.MULTILINE)
    assert len(texts) == len(CHECKS) and all(texts)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.variant)
def test_a_methods_page_shows_its_call_its_adapter_and_its_options(method):
    page = (DOCS / "methods" / f"{method.variant}.md").read_text()
    cls = getattr(adapters, f"{method.__name__}Linear")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert f"[{method.about.paper}]" in page and f'`wrapper="{method.variant}"`' in page
    assert f"`{cls.__name__}`" in page and method.about.family in FAMILIES
    assert any(f'.lora(wrapper="{method.variant}"' in re.sub(r"\w+=\d+, ", "", c) for c in code)
    assert f"```text\n{cls.__name__}(" in page
    row = re.search(r"^\| options \| (.*) \|$", page, re.MULTILINE)[1]
    parameters = inspect.signature(cls.__init__).parameters.values()
    options = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert set(re.findall(r"`(\w+)`:", row)) == options - {"key", "statistics"}
