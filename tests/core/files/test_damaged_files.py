"""Files that are damaged, or that something else wrote: a `CheckpointError` each, and no more."""

import json
import re
import struct

import equinox as eqx
import jax
import numpy as np
import pytest
import safetensors.numpy

from jno.lora import CheckpointError, load_adapters, read_adapters, read_metadata

from ._tools import OWN, assembled, parts, refused, small_model


def test_files_of_other_kinds_or_another_length_are_refused(whole, file, tmp_path):
    assert "No such file" in refused(file)
    assert "a directory" in refused(tmp_path) and "load_peft" in refused(tmp_path)
    plain = safetensors.numpy.save({"lora_A": np.ones(3)}, metadata={"format": "pt"})
    assert "not a file of jno-lora" in refused(file, plain)
    pickled = struct.pack("<Q", 4) + b"\x80\x04K\x01" + bytes(50)
    cut = [whole[:size] for size in (0, 1, 8, 9, 100, -1)]
    for content in (b"PK\3\4" + bytes(1000), pickled, bytes(1000), *cut, whole + b"\0"):
        assert "damaged, or not a safetensors file" in refused(file, content)


def test_arrays_that_do_not_fit_the_configuration_are_named(whole, file):
    header, configuration, data = parts(whole)
    (name, info), *_ = ((n, x) for n, x in header.items() if n != "__metadata__")
    odd = header | {name: info | {"dtype": "F8_E8M0", "shape": [12]}}
    message = refused(file, assembled(odd, configuration, data))
    assert "F8_E8M0" in message and "F8_E4M3" in message and name in message
    header["c:lora_A"] = header.pop("a:lora_A")
    message = refused(file, assembled(header, configuration, data))
    assert "'a:lora_A': in its configuration only" in message
    assert "'c:lora_A': not in its configuration" in message


# --- damage that a disk or a copy does; `parts` leaves the checksums out, as version 0.3 does


def read(file, content):
    file.write_bytes(content)
    return read_metadata(file), read_adapters(file, wrappers=OWN)


def test_changed_bytes_are_refused_or_change_nothing(whole, file, registry):
    metadata, adapters = read(file, whole)
    random, refusals = np.random.default_rng(0), {}
    begin = 8 + struct.unpack("<Q", whole[:8])[0]
    # Every byte of the arrays, and every fifth byte of the header.
    positions = [*range(0, begin, 5), *range(begin, len(whole))]
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= random.integers(1, 256)
        try:
            found = read(file, bytes(damaged))
        except CheckpointError as err:
            refusals[position] = str(err)
        else:
            assert found[0] == metadata and eqx.tree_equal(found[1], adapters), position
    assert len(refusals) > 0.9 * len(positions)
    for position in range(begin, len(whole)):
        assert re.search("damaged(.|\n)*(a|b/0):", refusals[position])


def test_another_dtype_or_shape_or_digit_of_the_same_length_is_refused(whole, file):
    (length,) = struct.unpack("<Q", whole[:8])
    data = whole[8 + length :]
    for change in ({"dtype": "I32"}, {"shape": [1]}):
        header = json.loads(whole[8 : 8 + length])
        name = next(name for name, info in header.items() if info.get("shape") == [])
        header[name] |= change
        message = refused(file, assembled(json.dumps(header), None, data))
        assert "damaged" in message and name in message
    damaged = whole.replace(b'\\"nu\\": 0.05', b'\\"nu\\": 0.15')
    assert damaged != whole
    file.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="damaged"):
        read_metadata(file)


def test_another_order_new_keys_and_no_checksums_are_read(whole, file):
    (length,) = struct.unpack("<Q", whole[:8])
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    metadata, moved, turned = header.pop("__metadata__"), {}, b""
    for name, info in reversed(header.items()):
        begin, end = info["data_offsets"]
        moved[name] = info | {"data_offsets": [len(turned), len(turned) + end - begin]}
        turned += data[begin:end]
    file.write_bytes(assembled(json.dumps({"__metadata__": metadata} | moved), None, turned))
    assert turned != data and list(read_adapters(file, wrappers=OWN)) == ["a", "b/0"]
    header, configuration, data = parts(whole)
    configuration["new"] = configuration["adapters"]["a"]["new"] = {"x": 1}
    file.write_bytes(assembled(header, configuration, data))
    assert list(read_adapters(file, wrappers=OWN)) == ["a", "b/0"]


# --- a description that is not of the schema, as by a program that edits files


def of_adapter(**changes):
    return lambda found: found["adapters"]["a"].update(changes)


SHAPE = {"class": "L", "stack_ndim": 0, "arrays": {"w": {"shape": ["2"]}}}
CONFIGURATIONS = [
    (lambda c: c.update(format_version=5), "pip install -U jno-lora"),
    (lambda c: c.update(format_version=3), "before 0.4"),
    (lambda c: c.update(format_version=True), "format_version is True"),
    (lambda c: c.update(adapters=[]), "adapters is [], which is not"),
    (lambda c: c.update(versions={"jax": 1}), "versions/jax is 1"),
    (of_adapter(rank=-1), "adapters/a/rank is -1, which is not a whole number"),
    (of_adapter(alpha=float("inf")), "alpha is inf, which is not a finite"),
    (of_adapter(wrapper=None), "adapters/a/wrapper is None"),
    (of_adapter(arrays=[1, 2]), "adapters/a/arrays is 1, which is not"),
    (of_adapter(layer={"class": "L", "arrays": {}}), "adapters/a/layer/stack_ndim is None"),
    (of_adapter(layer=SHAPE), "adapters/a/layer/arrays/w/shape is '2'"),
    # Messages show code, and a command that installs.
    (of_adapter(wrapper="X]); import os #"), "not a name in Python"),
    (of_adapter(distribution='x" && rm -rf "/'), "not a normalised name"),
    (of_adapter(distribution="--index-url"), "not a normalised name"),
    (of_adapter(distribution="x", version='1" y'), "not a version"),
    (of_adapter(base_values="sha256:\x1b[31m"), "not printable text"),
]


def test_a_configuration_that_is_not_of_the_schema_is_refused(whole, file):
    for change, message in CONFIGURATIONS:
        header, configuration, data = parts(whole)
        change(configuration)
        assert message in refused(file, assembled(header, configuration, data))
    for text, message in [("", "damaged"), ("[]", "not a JSON object")]:
        assert message in refused(file, assembled(header, text, data))


def test_a_configuration_that_does_not_fit_its_arrays_touches_no_model(whole, file):
    model = small_model()
    before = jax.tree.leaves(model)
    for changes, message in [
        ({"rank": 2}, "expected shape (2, 3), got (1, 3)"),
        ({"rank": None}, "a: could not restore the ToyLinear"),
        ({"arrays": ["lora_A"]}, "'a:lora_B': not in its configuration"),
        ({"wrapper": "ToyScale"}, "gain: expected, missing"),
        ({"wrapper": "Net"}, "Net is a class that no plugin provides"),
        ({"distribution": "os", "wrapper": "system"}, "os:system is not available"),
    ]:
        header, configuration, data = parts(whole)
        of_adapter(**changes)(configuration)
        file.write_bytes(assembled(header, configuration, data))
        with pytest.raises(CheckpointError, match=re.escape(message)):
            load_adapters(model, file, wrappers=OWN)
        assert all(map(lambda x, y: x is y, jax.tree.leaves(model), before))
