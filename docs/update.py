"""Write what follows from the sources: pages, tables and counts of the docs, stubs, the interface.

python -m docs.update            # writes what is stale, and names it
python -m docs.update --check    # names it, and fails if anything is stale
"""

import functools
import pathlib
import re
import runpy
import sys
from collections.abc import Callable

from tests.api import snapshot

from . import directory, method_pages, site_facts, tables

ROOT = pathlib.Path(__file__).parents[1]
Texts = dict[pathlib.Path, str]
# Parts of pages, between two comments of that name.
PARTS: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("docs/zoo.md", "methods", tables.methods),
    ("docs/choosing.md", "families", tables.families),
    ("docs/peft-types.md", "types", tables.types_of_peft),
    ("docs/checks.md", "checks", site_facts.checks),
    ("docs/directory.md", "plugins", directory.table),
    ("docs/index.md", "numbers", site_facts.table),
    ("README.md", "numbers", site_facts.sentences),
)
# How prose counts. A phrase that is not here keeps its number.
PHRASES = (
    "one of {others} other methods",
    "| all {methods} methods",
    "[{methods} methods](zoo.md)",
    "{methods} methods on six kinds of layer",
    "{methods} methods adapt {kinds} kinds of layer",
    "{methods} methods x {kinds} kinds of layer",
    "{types} of PEFT's {all_types} types",
)
PROSE = ("*.md", "docs/*.md", "docs/examples/*.md", "pyproject.toml", "plugins/*/pyproject.toml")
HISTORY = ("changelog.md", "what-changed.md")


def part(page: str, name: str, content: Callable[[], str]) -> Texts:
    """The page, with other content between its comments."""
    path = ROOT / page
    comments = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
    text, count = re.subn(comments, lambda _: content(), path.read_text(), flags=re.DOTALL)
    assert count == 1, f"{page} should have the comments `{name}` once"
    return {path: text}


def stubs() -> Texts:
    """The stubs of adapters, which also every build and every editable install writes."""
    stubs_of = runpy.run_path(str(ROOT / "plugins/jno-lora-zoo/stubs.py"))["stubs_of"]
    columns = map(stubs_of, (ROOT / f"plugins/jno-lora-{n}" for n in ("zoo", "foundax", "arrays")))
    return {path: text for column in columns for path, text in column.items()}


def navigation() -> Texts:
    """The pages of the methods in the navigation of the site."""
    path = ROOT / ".ci/mkdocs.yml"
    pages = tables.pages()
    return {path: re.sub(r"^( +- methods/.*\n)+", pages, path.read_text(), flags=re.MULTILINE)}


def counts() -> Texts:
    """The pages that count methods, kinds of layer or types of PEFT, with the counts of today."""
    today = site_facts.counts()
    paths = [path for pattern in PROSE for path in sorted(ROOT.glob(pattern))]
    return {path: counted(path.read_text(), today) for path in paths if path.name not in HISTORY}


def counted(text: str, today: dict[str, int]) -> str:
    """The text, with these counts in each phrase."""
    for phrase in PHRASES:
        pattern = re.sub(r"\\{\w+\\}", r"\\d+", re.escape(phrase)).replace(r"\ ", r"\s+")
        numbers = [str(today[name]) for name in re.findall(r"{(\w+)}", phrase)]
        text = re.sub(pattern, functools.partial(_renewed, numbers), text)
    return text


def _renewed(numbers: list[str], match: re.Match[str]) -> str:
    left = iter(numbers)
    return re.sub(r"\d+", lambda _: next(left), match[0])


WRITERS: dict[str, Callable[[], Texts]] = {
    "stubs": stubs,
    "public interface": snapshot.files,
    "navigation": navigation,
    **{f"{page}, {name}": lambda p=(page, name, of): part(*p) for page, name, of in PARTS},
    "pages of methods": method_pages.pages,
    "counts": counts,
}


def stale(name: str) -> Texts:
    """The files that a writer would change, with their new text."""
    texts = WRITERS[name]()
    return {path: t for path, t in texts.items() if not path.exists() or path.read_text() != t}


def main() -> int:
    """Name what is stale; without `--check`, write it. Returns the exit status."""
    only_check = "--check" in sys.argv[1:]
    found = False
    for name in WRITERS:  # a later writer may read what an earlier one wrote
        for path, text in stale(name).items():
            print(f"{path.relative_to(ROOT)} ({name})")
            found = True
            if not only_check:
                path.write_text(text)
    return int(found and only_check)


if __name__ == "__main__":
    sys.exit(main())
