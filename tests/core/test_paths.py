"""Paths: how they are written, hashed, and compared."""

import jax.tree_util as jtu

from jno.lora._paths import bullets, nearest, path_str, show_path, stable_hash

from .toys import Block


def test_a_path_is_slash_joined_through_attributes_indices_and_keys(getkey):
    tree = {"encoder": [Block(2, key=getkey())], "pair": (1, None)}
    paths = [path_str(keys) for keys, _ in jtu.tree_leaves_with_path(tree)]
    layers = [
        f"encoder/0/{layer}/{field}" for layer in ("up", "down") for field in ("weight", "bias")
    ]
    assert paths == [*layers, "pair/0"]
    assert path_str(()) == "" and show_path("") == "<root>" and show_path("a/0") == "a/0"


def test_the_hash_is_the_same_in_every_process_and_release_and_fits_32_bits():
    # Changing these would change the initial values of every adapter.
    assert stable_hash("") == 0x25CF7112
    assert stable_hash("encoder/0") == 0x9A5049DF
    paths = [f"decoder/layers/{i}/{part}" for i in range(100) for part in "qkvo"]
    hashes = {stable_hash(path) for path in paths}
    assert len(hashes) == len(paths) and all(0 <= number < 2**32 for number in hashes)


def test_the_nearest_options_come_best_first_and_through_regex_characters():
    options = ["encoder/0", "encoder/1", "decoder", "head"]
    assert nearest("hed", options)[0] == "head"
    assert nearest(".*encoder/0.*", options)[0] == "encoder/0"
    assert nearest("zzzzzz", ["head", "head"]) == ["head"]  # always an option, and never twice
    assert nearest("anything", []) == []
    assert len(nearest("a", ["a1", "a2", "a3", "a4"], n=2)) == 2


def test_bullets_are_cut_with_the_number_of_further_lines():
    assert bullets(["a", "b"]) == "  - a\n  - b"
    cut = bullets(map(str, range(15)), limit=12).splitlines()
    assert len(cut) == 13 and cut[-1] == "  - ... and 3 more"
    assert len(bullets(map(str, range(12)), limit=12).splitlines()) == 12
