"""House style that a program can check: budgets of code, names and prose that repeat the noun."""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest
from tests.house import lines

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")])

# Pronouns and adjectives, which say nothing of what a variable holds.
PRONOUNS = {"found", "it", "known", "made", "one", "other", "others", "own", "rest"}


def bound_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The line and name of each variable and argument that a module binds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


def test_each_distribution_keeps_its_budget_of_code():
    sizes = lines.counts()
    assert sizes.keys() == lines.BUDGETS.keys()
    assert not {name: size for name, size in sizes.items() if size > lines.BUDGETS[name]}


def test_docstrings_comments_and_blank_lines_are_not_code():
    function = 'def f(\n    x,  # what\n):\n    """Doc.\n\n    More."""\n    return x\n'
    text = f'"""A module."""\n\n# why\n{function}'
    assert lines.lines_of_code(text) == 4


def test_a_variable_says_what_it_holds():
    pronouns = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in SOURCES
        for line, name in bound_names(ast.parse(path.read_text()))
        if name.strip("_") in PRONOUNS
    ]
    assert not pronouns, "\n".join(pronouns)


@pytest.mark.parametrize("pattern", ["*.py", "*.md"])
def test_prose_repeats_the_noun(pattern):
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")]
    phrases = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in (SOURCES if pattern == "*.py" else pages)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\b(that|those) of\b", line)
    ]
    assert not phrases, "\n".join(phrases)
