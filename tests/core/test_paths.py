"""Paths: how they are written, hashed, and compared."""

from jno.lora._paths import stable_hash


def test_the_hash_is_the_same_in_every_process_and_release_and_fits_32_bits():
    # Changing these would change the initial values of every adapter.
    assert stable_hash("") == 0x25CF7112
    assert stable_hash("encoder/0") == 0x9A5049DF
    paths = [f"decoder/layers/{i}/{part}" for i in range(100) for part in "qkvo"]
    hashes = {stable_hash(path) for path in paths}
    assert len(hashes) == len(paths) and all(0 <= number < 2**32 for number in hashes)
