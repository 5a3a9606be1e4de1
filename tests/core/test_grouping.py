"""Repeated structure: one row for paths that differ in nothing but their indices."""

import itertools
import re

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


def test_one_index():
    paths = [f"layers/{i}/attention/query" for i in range(12)]
    assert labels(*paths) == [("layers/[0-11]/attention/query", 12)]


def test_gaps():
    assert labels(*(f"layers/{i}" for i in (0, 1, 2, 3, 7))) == [("layers/[0-3,7]", 5)]
    assert labels("3", "11", "4", "0") == [("[0,3-4,11]", 4)]


def test_rows_are_grouped_only_if_they_agree():
    rows = [("0/q", "rank 4"), ("1/q", "rank 8"), ("2/q", "rank 4"), ("0/k", "rank 4")]
    assert grouped(rows) == [("[0,2]/q", 2, "rank 4"), ("1/q", 1, "rank 8"), ("0/k", 1, "rank 4")]


def test_several_indices_that_all_vary_are_one_row():
    paths = [f"stages/{i}/blocks/{j}/conv" for i in range(3) for j in range(2)]
    assert labels(*paths) == [("stages/[0-2]/blocks/[0-1]/conv", 6)]


def test_stages_of_different_depths_are_told_apart():
    paths = [f"stages/{i}/blocks/{j}" for i, depth in enumerate((3, 3, 9)) for j in range(depth)]
    assert labels(*paths) == [("stages/[0-1]/blocks/[0-2]", 6), ("stages/2/blocks/[0-8]", 9)]


def test_a_row_says_nothing_of_paths_that_do_not_exist():
    assert labels("0/0", "1/1") == [("0/0", 1), ("1/1", 1)]


def test_names_are_no_indices():
    paths = ["", "a/b", "layer1", "layer2", "007", "008", "-1", "x/¹", "x/²"]
    assert labels(*paths) == [(path, 1) for path in paths]


def test_the_order_is_that_of_first_appearance():
    paths = ["head", "b/1/q", "b/1/k", "a/0", "b/0/q", "b/0/k"]
    assert [label for label, _ in labels(*paths)] == ["head", "b/[0-1]/q", "b/[0-1]/k", "a/0"]


def test_equal_paths_are_counted():
    # A dict with the keys 0 and "0" has two leaves of one path.
    assert labels("a/0", "a/0", "a/1") == [("a/[0-1]", 3)]


PATHS = st.lists(
    st.lists(st.sampled_from(["a", "b", "0", "1", "2", "5", "10"]), max_size=4).map("/".join),
    unique=True,
)


@given(PATHS)
def test_the_labels_stand_for_the_paths_and_no_others(paths):
    found = labels(*paths)
    assert sorted(itertools.chain(*(meant_by(label) for label, _ in found))) == sorted(paths)
    assert all(len(meant_by(label)) == count for label, count in found)


def test_a_hundred_thousand_rows_take_no_time_to_speak_of():
    paths = [f"{i}/blocks/{j}/{name}" for i in range(100) for j in range(500) for name in "qk"]
    assert labels(*paths) == [(f"[0-99]/blocks/[0-499]/{name}", 50_000) for name in "qk"]
