"""The site says which version it is, and what follows from the sources is current."""

import re
from types import SimpleNamespace

import jax
import pytest
from docs import directory, method_pages, site_facts, update

from jno.lora import __version__, extending
from jno_lora_testing import CHECKS
from jno_lora_zoo import FAMILIES, METHODS

DOCS = update.ROOT / "docs"
SECTIONS = ["When to use it", "How it departs from the paper"]


def config():
    return SimpleNamespace(site_name="jno-lora", repo_url=None, repo_name=None)


def test_the_reference_has_each_helper_once_and_shows_plugins_instead_of_their_doors():
    assert site_facts.on_config(config()).site_name == f"jno-lora {__version__}"
    every_page = "".join(file.read_text() for file in DOCS.glob("*.md"))
    assert not re.search(r"^::: jno\.lora\.(in_jno|optim|peft|testing)\b", every_page, re.MULTILINE)
    page = (DOCS / "api.md").read_text()
    names = re.findall(r"^::: jno\.lora\.extending\.(\w+)$", page, re.MULTILINE)
    assert sorted(names) == sorted(extending.__all__)


@pytest.mark.parametrize("name", update.WRITERS)
def test_what_follows_from_the_sources_is_current(name):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        stale = [str(path.relative_to(update.ROOT)) for path in update.stale(name)]
    assert not stale, f"{stale} are stale: python -m docs.update"


def test_every_count_of_the_prose_is_renewed(monkeypatch):
    counts = site_facts.counts()
    none = dict.fromkeys(counts, 0)
    assert update.counted("one of 40 other\nmethods", none) == "one of 0 other\nmethods"
    assert update.counted("all 54 methods of a study", none) == "all 54 methods of a study"
    monkeypatch.setattr(site_facts, "counts", lambda: none)
    prose = " ".join(update.counts().values())
    left = rf"\b{counts['methods']} methods|\b{counts['others']} other|\b{counts['types']} of PEFT"
    assert not re.findall(left, prose)


def test_the_directory_of_plugins_says_their_tiers():
    rows = [line.split(" | ") for line in directory.table().splitlines()[2:]]
    assert {len(row) for row in rows} == {len(directory.COLUMNS)}
    tiers = {row[0].strip("| `"): row[3] for row in rows}
    assert tiers["jno-lora-sine-lora"] == tiers["jno-lora-attention"] == "*complete*"
    assert "jno-lora-bank" not in tiers and tiers["jno-lora-compare"] == ""


def test_the_page_of_checks_has_each_check_with_its_remedy():
    page = (DOCS / "checks.md").read_text().partition("<!-- checks -->")[2]
    row = r"^\| `([a-z-]+)`(?: \*\(advice\)\*)? \| (\S.*) \| (\S.*) \|$"
    rows = re.findall(row, page, re.MULTILINE)
    assert sorted(name for name, *_ in rows) == sorted(CHECKS)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.variant)
def test_by_hand_a_methods_page_says_when_to_use_it_and_how_it_departs(method):
    page = method_pages.page_of(method).read_text()
    by_hand = page.partition(method_pages.END)[2]
    _, *sections = re.split(r"^## (.+)\n", by_hand, flags=re.MULTILINE)
    assert sections[::2] in (SECTIONS, SECTIONS[:1])
    for text in sections[1::2]:
        lines = text.strip().splitlines()
        assert 1 <= len(lines) <= 10 and max(map(len, lines)) <= 120
    assert f"[{method.about.paper}]" in page and method.about.family in FAMILIES


def test_a_method_without_a_page_gets_one(tmp_path):
    page = method_pages.with_class(tmp_path / "lora.md", METHODS[0])
    assert page.startswith("# LoRA\n\n<!-- class -->\n") and page.endswith("## When to use it\n")
