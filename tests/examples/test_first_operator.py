"""The example of an operator in the README gives the numbers that the README prints."""

import pathlib
import re

import pytest

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()


def test_the_example_gives_the_numbers_of_the_readme(example, capsys):
    _, found = example.main()
    before, after = re.search(
        r"error at 0.05: (\S+) before, (\S+) after", capsys.readouterr().out
    ).groups()
    shown = re.search(
        r"the error falls from (\S+) to (\S+); `found.z` is (\d\.\d+)\.", README
    ).groups()
    # Other versions of JAX round differently, and training amplifies it.
    expected = pytest.approx([float(number) for number in shown], abs=0.03)
    assert [float(before), float(after), float(found.z)] == expected
