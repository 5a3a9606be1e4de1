"""Repeated structure: one row for paths that differ in nothing but their indices."""

import itertools
import re

import pytest
from hypothesis import given, strategies as st

from jno.lora._showing._grouping import grouped


def labels(*paths):
    return [(path, count) for path, count, _ in grouped((path, "") for path in paths)]


def meant_by(label):
    """Every path that a label stands for."""
    choices = []
    for part in label.split("/"):
        if not part.startswith("["):
            choices.append([part])
            continue
        ranges = (re.fullmatch(r"(\d+)(?:-(\d+))?", r) for r in part[1:-1].split(","))
        choices.append([str(i) for r in ranges for i in range(int(r[1]), int(r[2] or r[1]) + 1)])
    return ["/".join(path) for path in itertools.product(*choices)]


NAMES = ["", "a/b", "layer1", "layer2", "007", "008", "-1", "x/¹", "x/²"]
GROUPS = [
    (["3", "11", "4", "0"], [("[0,3-4,11]", 4)]),
    # Stages of different depths.
    (
        [f"stages/{i}/{j}" for i, depth in enumerate((3, 3, 9)) for j in range(depth)],
        [("stages/[0-1]/[0-2]", 6), ("stages/2/[0-8]", 9)],
    ),
    (["a/0", "a/0", "a/1"], [("a/[0-1]", 3)]),  # the keys 0 and "0" of a dict have one path
    (["b/1/q", "b/1/k", "a/0", "b/0/q"], [("b/[0-1]/q", 2), ("b/1/k", 1), ("a/0", 1)]),
    (NAMES, [(name, 1) for name in NAMES]),
]


@pytest.mark.parametrize(("paths", "groups"), GROUPS)
def test_paths_that_differ_in_indices_are_one_row(paths, groups):
    assert labels(*paths) == groups


def test_rows_are_grouped_only_if_they_agree():
    rows = [("0/q", "rank 4"), ("1/q", "rank 8"), ("2/q", "rank 4"), ("0/k", "rank 4")]
    assert grouped(rows) == [("[0,2]/q", 2, "rank 4"), ("1/q", 1, "rank 8"), ("0/k", 1, "rank 4")]


PATHS = st.lists(
    st.lists(st.sampled_from(["a", "b", "0", "1", "2", "5", "10"]), max_size=4).map("/".join),
    unique=True,
)


@given(PATHS)
def test_the_labels_stand_for_the_paths_and_no_others(paths):
    found = labels(*paths)
    assert sorted(itertools.chain(*(meant_by(label) for label, _ in found))) == sorted(paths)
    assert all(len(meant_by(label)) == count for label, count in found)
