"""House style that a program can check: budgets of code."""

from tests.house import lines


def test_each_distribution_keeps_its_budget_of_code():
    sizes = lines.counts()
    assert sizes.keys() == lines.BUDGETS.keys()
    assert not {name: size for name, size in sizes.items() if size > lines.BUDGETS[name]}


def test_docstrings_comments_and_blank_lines_are_not_code():
    function = 'def f(\n    x,  # what\n):\n    """Doc.\n\n    More."""\n    return x\n'
    text = f'"""A module."""\n\n# why\n{function}'
    assert lines.lines_of_code(text) == 4
