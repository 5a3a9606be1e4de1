"""Paths: how they are written, hashed, and compared."""

import jax.tree_util as jtu

from jno.lora._paths import bullets, nearest, path_str, show_path, stable_hash

from .toys import Block


def test_a_path_is_slash_joined_through_attributes_indices_and_keys(getkey):
    tree = {"encoder": [Block(2, key=getkey())], "pair": (1, None)}
    paths = [path_str(keys) for keys, _ in jtu.tree_leaves_with_path(tree)]
    assert paths == [
        "encoder/0/up/weight",
        "encoder/0/up/bias",
        "encoder/0/down/weight",
        "encoder/0/down/bias",
        "pair/0",
    ]


def test_the_root_is_empty_and_shown_by_name():
    assert path_str(()) == ""
    assert show_path("") == "<root>"
    assert show_path("encoder/0") == "encoder/0"


def test_the_hash_is_the_same_in_every_process_and_release_and_fits_32_bits():
    # Changing these would change the initial values of every adapter.
    assert stable_hash("") == 0x25CF7112
    assert stable_hash("encoder/0") == 0x9A5049DF
    assert stable_hash("encoder/1") != stable_hash("encoder/0")
    assert all(0 <= stable_hash(f"layers/{i}") < 2**32 for i in range(200))


def test_the_hash_tells_the_paths_of_a_large_model_apart():
    paths = [f"decoder/layers/{i}/{part}" for i in range(100) for part in "qkvo"]
    assert len({stable_hash(path) for path in paths}) == len(paths)


def test_nearest_puts_the_best_first_and_finds_through_regex_characters():
    options = ["encoder/0", "encoder/1", "decoder", "head"]
    assert nearest("hed", options)[0] == "head"
    assert nearest(".*encoder/0.*", options)[0] == "encoder/0"


def test_nearest_gives_something_if_there_is_anything_and_nothing_twice():
    assert nearest("zzzzzz", ["head", "head"]) == ["head"]
    assert nearest("anything", []) == []
    assert len(nearest("a", ["a1", "a2", "a3", "a4"], n=2)) <= 2


def test_bullets_are_cut_with_a_count_of_the_rest():
    assert bullets(["a", "b"]) == "  - a\n  - b"
    cut = bullets(map(str, range(15)), limit=12).splitlines()
    assert len(cut) == 13
    assert cut[-1] == "  - ... and 3 more"
