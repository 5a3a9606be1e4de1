"""Files that are damaged, or that something else wrote: a `CheckpointError` each, and no more."""

import json
import re
import struct
import time

import equinox as eqx
import numpy as np
import pytest
import safetensors.numpy

from jno.lora import CheckpointError, load_adapters, read_adapters, read_metadata

from ._tools import OWN, assembled, parts, refused, small_model, with_adapter


def test_a_path_that_is_not_a_file_is_refused(file, tmp_path):
    assert "No such file" in refused(file)
    assert "Is a directory" in refused(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 500, -1])
def test_a_file_that_was_cut_short_is_refused(size, whole, file):
    assert "damaged, or not a safetensors file" in refused(file, whole[:size])


def test_a_longer_file_is_refused(whole, file):
    assert "damaged, or not a safetensors file" in refused(file, whole + b"\0")


def test_files_of_other_kinds_are_refused(file):
    plain = safetensors.numpy.save({"lora_A": np.ones(3)}, metadata={"format": "pt"})
    assert "not from jno-lora" in refused(file, plain)
    pickled = struct.pack("<Q", 4) + b"\x80\x04K\x01" + bytes(50)
    for content in (b"PK\3\4" + bytes(1000), pickled, bytes(1000)):
        assert "not a safetensors file" in refused(file, content)


def test_a_dtype_that_numpy_lacks_is_named(whole, file):
    header, configuration, data = parts(whole)
    name = next(name for name in header if name != "__metadata__")
    header[name] |= {"dtype": "F8_E8M0", "shape": [12]}
    message = refused(file, assembled(header, configuration, data))
    assert "F8_E8M0" in message and "F8_E4M3" in message and name in message


def test_arrays_that_belong_to_nobody_and_adapters_without_theirs_are_refused(whole, file):
    header, configuration, data = parts(whole)
    header["c:lora_A"] = header.pop("a:lora_A")
    message = refused(file, assembled(header, configuration, data))
    assert "'a:lora_A': in its configuration only" in message
    assert "'c:lora_A': not in its configuration" in message


# --- damage that a disk or a copy does; `parts` leaves the checksums out, as version 0.3 does


def read(file, content):
    file.write_bytes(content)
    return read_metadata(file), read_adapters(file, wrappers=OWN)


def test_a_flipped_bit_anywhere_behind_the_header_is_refused(whole, file):
    begin = 8 + struct.unpack("<Q", whole[:8])[0]
    header, _, _ = parts(whole)
    for name in ("a:lora_A", "b/0:gain"):
        for offset in range(*header[name]["data_offsets"]):
            damaged = bytearray(whole)
            damaged[begin + offset] ^= 1 << (offset % 8)
            message = refused(file, bytes(damaged))
            assert "damaged" in message and name in message


def test_changed_bytes_are_refused_or_change_nothing(whole, file, registry):
    metadata, adapters = read(file, whole)
    random, refusals = np.random.default_rng(0), 0
    for position in range(0, len(whole), 2):
        damaged = bytearray(whole)
        damaged[position] ^= random.integers(1, 256)
        try:
            found = read(file, bytes(damaged))
        except CheckpointError:
            refusals += 1
        else:
            assert found[0] == metadata and eqx.tree_equal(found[1], adapters), position
    assert refusals > 0.9 * len(whole) / 2


@pytest.mark.parametrize("size", [1, 16, 512])
def test_zeros_are_refused_or_change_nothing(size, whole, file, registry):
    metadata, adapters = read(file, whole)
    for begin in range(0, len(whole), max(size // 2, 3)):
        content = (whole[:begin] + bytes(size))[: len(whole)]
        content += whole[len(content) :]
        try:
            found = read(file, content)
        except CheckpointError:
            continue
        assert found[0] == metadata and eqx.tree_equal(found[1], adapters), begin


@pytest.mark.parametrize("change", [{"dtype": "I32"}, {"shape": [1]}])
def test_another_dtype_or_shape_of_the_same_bytes_is_refused(change, whole, file):
    (length,) = struct.unpack("<Q", whole[:8])
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    name = next(name for name, info in header.items() if info.get("shape") == [])
    header[name] |= change
    message = refused(file, assembled(json.dumps(header), None, data))
    assert "damaged" in message and name in message


def test_a_digit_that_changed_in_the_configuration_is_refused(whole, file):
    damaged = whole.replace(b'\\"nu\\": 0.05', b'\\"nu\\": 0.15')
    assert damaged != whole
    file.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="damaged"):
        read_metadata(file)


def test_the_order_of_the_arrays_does_not_matter_to_the_checksums(whole, file):
    (length,) = struct.unpack("<Q", whole[:8])
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    metadata, moved, turned = header.pop("__metadata__"), {}, b""
    for name, info in reversed(header.items()):
        begin, end = info["data_offsets"]
        moved[name] = info | {"data_offsets": [len(turned), len(turned) + end - begin]}
        turned += data[begin:end]
    file.write_bytes(assembled(json.dumps({"__metadata__": metadata} | moved), None, turned))
    assert turned != data and list(read_adapters(file, wrappers=OWN)) == ["a", "b/0"]


def test_a_file_without_checksums_loads_as_before(whole, file):
    file.write_bytes(assembled(*parts(whole)))
    assert list(read_adapters(file, wrappers=OWN)) == ["a", "b/0"]


# --- a description that is not of the schema, as by a program that edits files

CONFIGURATIONS = {
    "version 5": (lambda c: c.update(format_version=5), "pip install -U jno-lora"),
    "version text": (lambda c: c.update(format_version="1"), "format_version is '1'"),
    "version true": (lambda c: c.update(format_version=True), "format_version is True"),
    "no version": (lambda c: c.pop("format_version"), "format_version is None"),
    "adapters a list": (lambda c: c.update(adapters=[]), "adapters is [], which is not"),
    "an adapter null": (lambda c: c["adapters"].update(a=None), "adapters/a is None, which is"),
    "versions numbers": (lambda c: c.update(versions={"jax": 1}), "versions/jax is 1"),
    "rank below 0": (with_adapter(rank=-1), "adapters/a/rank is -1, which is not a whole number"),
    "rank true": (with_adapter(rank=True), "adapters/a/rank is True"),
    "rank text": (with_adapter(rank="4"), "adapters/a/rank is '4'"),
    "alpha text": (with_adapter(alpha="4"), "adapters/a/alpha is '4', which is not"),
    "alpha infinite": (with_adapter(alpha=float("inf")), "alpha is inf, which is not a finite"),
    "wrapper null": (with_adapter(wrapper=None), "adapters/a/wrapper is None"),
    "arrays text": (with_adapter(arrays="lora_A"), "adapters/a/arrays is 'lora_A', which is"),
    "arrays of numbers": (with_adapter(arrays=[1, 2]), "adapters/a/arrays is 1, which is not"),
    "base values a number": (with_adapter(base_values=3), "adapters/a/base_values is 3"),
    "a layer without stack_ndim": (
        with_adapter(layer={"class": "Linear", "arrays": {}}),
        "adapters/a/layer/stack_ndim is None",
    ),
    "a shape of text": (
        with_adapter(layer={"class": "L", "stack_ndim": 0, "arrays": {"w": {"shape": ["2"]}}}),
        "adapters/a/layer/arrays/w/shape is '2'",
    ),
    # Messages show code, and a command that installs.
    "wrapper code": (with_adapter(wrapper="X]); import os #"), "not a name in Python"),
    "wrapper with a bell": (with_adapter(wrapper="a\a"), "not a name in Python"),
    "a command": (with_adapter(distribution='x" && rm -rf "/'), "not a normalised name"),
    "an option": (with_adapter(distribution="--index-url"), "not a normalised name"),
    "a version with a quote": (with_adapter(distribution="x", version='1" y'), "not a version"),
    "base values an escape": (with_adapter(base_values="sha256:\x1b[31m"), "not printable text"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_that_is_not_of_the_schema_is_refused(name, whole, file):
    header, configuration, data = parts(whole)
    change, message = CONFIGURATIONS[name]
    change(configuration)
    assert message in refused(file, assembled(header, configuration, data))


@pytest.mark.parametrize(("text", "message"), [("", "damaged"), ("[]", "not a JSON object")])
def test_a_configuration_that_is_not_json_is_refused(text, message, whole, file):
    header, _, data = parts(whole)
    assert message in refused(file, assembled(header, text, data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 2}, "expected shape (2, 3), got (1, 3)"),
        ({"rank": None}, "a: could not restore the ToyLinear"),
        ({"arrays": ["lora_A"]}, "'a:lora_B': not in its configuration"),
        ({"wrapper": "ToyScale"}, "gain: expected, missing"),
        ({"wrapper": "Net"}, "Net is a class that no plugin provides"),
        ({"distribution": "os", "wrapper": "system"}, "system of os is not available"),
    ],
)
def test_a_configuration_that_does_not_fit_its_arrays_touches_no_model(
    changes, message, whole, file, registry
):
    header, configuration, data = parts(whole)
    with_adapter(**changes)(configuration)
    file.write_bytes(assembled(header, configuration, data))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_adapters(small_model(), file, wrappers=OWN)


def test_keys_that_are_not_known_are_skipped(whole, file):
    header, configuration, data = parts(whole)
    configuration["new"] = configuration["adapters"]["a"]["new"] = {"x": 1}
    file.write_bytes(assembled(header, configuration, data))
    assert len(read_adapters(file, wrappers=OWN)) == 2


def test_many_adapters_at_paths_that_are_not_there_are_told_in_no_time(whole, file):
    header, configuration, data = parts(whole)
    one = configuration["adapters"]["a"] | {"arrays": []}
    configuration["adapters"] |= {f"layers/{n}/query/projection": one for n in range(3000)}
    file.write_bytes(assembled(header, configuration, data))
    model = {f"layers/{n}/key/projection": small_model()["a"] for n in range(300)}
    start = time.process_time()
    with pytest.raises(CheckpointError, match="and 2902 more"):
        load_adapters(model, file, wrappers=OWN)
    assert time.process_time() - start < 20
