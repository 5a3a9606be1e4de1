"""Files that are damaged, foreign or made to do harm: a `CheckpointError` each, and no more."""

import copy
import json
import os
import re
import struct
import time
import tracemalloc
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings, strategies as st

from jno.lora import (
    AdapterSet,
    CheckpointError,
    apply_lora,
    load_adapters,
    read_adapters,
    save_adapters,
)

from .toys import ToyLinear, ToyScale

OWN = [ToyLinear, ToyScale]


def small_model():
    one, two = jax.random.split(jax.random.key(0))
    return {"a": eqx.nn.Linear(3, 2, key=one), "b": [eqx.nn.Linear(2, 3, key=two)]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a file that is in order."""
    file = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    specs = [{"target": "a", "wrapper": ToyLinear}, {"target": "b", "wrapper": ToyScale}]
    save_adapters(apply_lora(small_model(), 1, key=jax.random.key(1), specs=specs), file)
    return file.read_bytes()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "adapters.safetensors"


def parts(content):
    """Header, configuration and data."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    (text,) = header["__metadata__"].values()
    return header, json.loads(text), content[8 + length :]


def assembled(header, configuration, data):
    """A file of these parts. Header and configuration may be text, to hold what `dumps` refuses."""
    if isinstance(header, dict):
        text = configuration if isinstance(configuration, str) else json.dumps(configuration)
        if configuration is not None:
            header = header | {"__metadata__": {"jno.lora": text}}
        header = json.dumps(header)
    raw = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(raw)) + raw + data


def refused(file, content=None):
    """The message; reading and loading both refuse the file, in no time and memory at all."""
    if content is not None:
        file.write_bytes(content)
    model = small_model()
    before = jax.tree.leaves(model)
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        read_adapters(file, wrappers=OWN)
    with pytest.raises(CheckpointError):
        load_adapters(model, file, wrappers=OWN, strict=False)
    assert time.process_time() - start < 10
    assert all(one is other for one, other in zip(jax.tree.leaves(model), before, strict=True))
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 3000
    return str(caught.value)


# --- not the file one hoped for


def test_what_is_no_file_is_refused(file, tmp_path):
    assert "No such file" in refused(file)
    assert "a directory" in refused(tmp_path)
    os.mkfifo(file)
    assert "a pipe" in refused(file)
    with pytest.raises(CheckpointError, match="null byte"):
        read_adapters(f"{tmp_path}/a\0b")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 500, -1])
def test_a_file_that_was_cut_short_is_refused(size, whole, file):
    assert "cut short" in refused(file, whole[:size])


def test_a_longer_file_is_refused(whole, file):
    assert "something was added" in refused(file, whole + b"\0")


def test_files_of_other_kinds_are_refused(file):
    plain = safetensors.numpy.save({"lora_A": np.ones(3)}, metadata={"format": "pt"})
    assert "not one of jno-lora" in refused(file, plain)
    assert "cut short, or is no safetensors file" in refused(file, b"PK\3\4" + bytes(1000))
    assert "no text" in refused(file, struct.pack("<Q", 4) + b"\x80\x04K\x01" + bytes(50))


def test_a_header_of_too_many_bytes_is_not_even_read(file):
    with file.open("wb") as out:  # the file takes no room on the disk
        out.write(struct.pack("<Q", 2**33))
        out.truncate(2**33 + 8)
    tracemalloc.start()
    assert "8,589,934,592 bytes; at most" in refused(file)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


# --- a header that lies


def with_tensor(**changes):
    def change(header, configuration, data):
        name = next(name for name in header if name != "__metadata__")
        header[name] = header[name] | changes
        return assembled(header, configuration, data)

    return change


HEADERS = {
    "a huge shape": (with_tensor(shape=[2**40]), "gives it"),
    "a shape beyond counting": (with_tensor(shape=[2**62] * 4), "shape"),
    "nothing, many times over": (
        with_tensor(shape=[0, 2**50, 2**50], data_offsets=[0, 0]),
        "too large",
    ),
    "too many axes": (with_tensor(shape=[1] * 100), "which no array has"),
    "a negative axis": (with_tensor(shape=[-1]), "which no array has"),
    "a bool for an axis": (with_tensor(shape=[True]), "which no array has"),
    "a float for an axis": (with_tensor(shape=[1.0]), "which no array has"),
    "an unknown dtype": (with_tensor(dtype="OBJECT"), "dtype"),
    "a dtype that is none": (with_tensor(dtype=["F32"]), "dtype"),
    "offsets out of range": (with_tensor(data_offsets=[2**40, 2**40 + 12]), "do not begin"),
    "offsets backwards": (with_tensor(data_offsets=[12, 0]), "gives it -12 bytes"),
    "offsets below 0": (with_tensor(data_offsets=[-12, 0]), "not two numbers"),
    "offsets that are one number": (with_tensor(data_offsets=0), "not two numbers"),
    "more than it should say": (with_tensor(more=1), "and no more"),
    "a number for a tensor": (lambda h, c, d: assembled(h | {"x": 3}, c, d), "and no more"),
    "metadata of numbers": (
        lambda h, c, d: assembled(json.dumps(h | {"__metadata__": {"jno.lora": 1}}), c, d),
        "not a JSON object of strings",
    ),
    "metadata that are text": (
        lambda h, c, d: assembled(json.dumps(h | {"__metadata__": "x"}), c, d),
        "not a JSON object of strings",
    ),
    "a list": (lambda h, c, d: assembled(b"[1]", c, d), "no JSON object"),
    "no text": (lambda h, c, d: assembled(b'{"\xff": 1}', c, d), "no text"),
    "NaN": (lambda h, c, d: assembled('{"a": NaN}', c, d), "NaN is no JSON"),
    "much nesting": (lambda h, c, d: assembled('{"a":' + "[" * 10**6, c, d), "recursion"),
    "a number of a million digits": (
        lambda h, c, d: assembled(f'{{"a": {"1" * 10**6}}}', c, d),
        "a number of 1,000,000 digits",
    ),
    "many duplicate keys": (
        lambda h, c, d: assembled("{" + '"k": 1,' * 10**5 + '"l": 1}', c, d),
        "'k' is there twice",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused(name, whole, file):
    make, message = HEADERS[name]
    assert message in refused(file, make(*parts(whole)))


def test_overlapping_arrays_are_refused(whole, file):
    header, configuration, data = parts(whole)
    offsets = {name: info["data_offsets"] for name, info in header.items() if name[0] != "_"}
    same_size = [n for n in offsets if n.endswith(("lora_A", "gain"))]
    assert len(same_size) == 2
    header[same_size[0]]["data_offsets"] = offsets[same_size[1]]
    assert "do not begin where the ones before end" in refused(
        file, assembled(header, configuration, data)
    )


def test_a_tensor_that_is_there_twice_is_refused(whole, file):
    text = whole.decode("latin-1")
    second = text.replace('"b/0:gain"', '"a:lora_A"')  # a name of the same length
    assert len('"b/0:gain"') == len('"a:lora_A"')
    assert "'a:lora_A' is there twice" in refused(file, second.encode("latin-1"))


def test_arrays_that_belong_to_nobody_and_adapters_without_theirs_are_refused(whole, file):
    header, configuration, data = parts(whole)
    header["c:lora_A"] = header.pop("a:lora_A")
    message = refused(file, assembled(header, configuration, data))
    assert "'a:lora_A': in its configuration only" in message
    assert "'c:lora_A': not in its configuration" in message


def test_bools_other_than_0_and_1_are_refused(whole, file):
    header, configuration, data = parts(whole)
    begin, end = header["a:lora_A"]["data_offsets"]
    header["a:lora_A"] |= {"dtype": "BOOL", "shape": [end - begin]}
    data = data[:begin] + b"\2" * (end - begin) + data[end:]
    assert "more than 0 and 1" in refused(file, assembled(header, configuration, data))


# --- a configuration that lies


def with_adapter(**changes):
    return lambda found: found["adapters"]["a"].update(changes)


def renamed(path):
    return lambda found: found["adapters"].update({path: found["adapters"].pop("a")})


CONFIGURATIONS = {
    "version 2": (lambda c: c.update(format_version=2), "pip install -U jno-lora"),
    "version 0": (lambda c: c.update(format_version=0), "format version 0, which is none"),
    "version text": (lambda c: c.update(format_version="1"), "which is none"),
    "version true": (lambda c: c.update(format_version=True), "which is none"),
    "no version": (lambda c: c.pop("format_version"), "which is none"),
    "adapters a list": (lambda c: c.update(adapters=[]), "no JSON object"),
    "an adapter null": (lambda c: c["adapters"].update(a=None), "no JSON object"),
    "versions numbers": (lambda c: c.update(versions={"jax": 1}), "no printable text"),
    "rank below 0": (with_adapter(rank=-1), "rank"),
    "rank enormous": (with_adapter(rank=10**12), "rank"),
    "rank true": (with_adapter(rank=True), "rank"),
    "rank text": (with_adapter(rank="4"), "rank"),
    "alpha text": (with_adapter(alpha="4"), "no finite number"),
    "alpha null": (with_adapter(alpha=None), "no finite number"),
    "wrapper null": (with_adapter(wrapper=None), "no printable text"),
    "wrapper empty": (with_adapter(wrapper=""), "has 0 characters"),
    "wrapper with a bell": (with_adapter(wrapper="a\a"), "no printable text"),
    "wrapper a surrogate": (with_adapter(wrapper="\ud800"), "no printable text"),
    "variant a list": (with_adapter(variant=[]), "no printable text"),
    "a command": (with_adapter(distribution='x" && rm -rf "/'), "which is none"),
    "an option": (with_adapter(distribution="--index-url"), "which is none"),
    "a version with a quote": (with_adapter(distribution="x", version='1" y'), "which is none"),
    "a version null": (with_adapter(version=None), "which is none"),
    "arrays text": (with_adapter(arrays="lora_A"), "no list"),
    "arrays of numbers": (with_adapter(arrays=[1, 2]), "no printable text"),
    "an array twice": (with_adapter(arrays=["lora_A", "lora_B", "lora_A"]), "the same name"),
    "layer null": (with_adapter(layer=None), "no JSON object"),
    "a layer without stack_ndim": (
        with_adapter(layer={"class": "Linear", "arrays": {}}),
        "stack_ndim",
    ),
    "a layer of a huge shape": (
        with_adapter(
            layer={
                "class": "L",
                "stack_ndim": 0,
                "arrays": {"w": {"shape": [2**60], "dtype": "f"}},
            }
        ),
        "too large",
    ),
    "an absolute path": (renamed("/etc/passwd"), "must be names"),
    "a path upwards": (renamed("../a"), "must be names"),
    "a path upwards inside": (renamed("a/../../b"), "must be names"),
    "a path with a line": (renamed("a\nb"), "no printable text"),
    "a path without end": (renamed("a" * 10**5), "characters"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_that_lies_is_refused(name, whole, file):
    header, configuration, data = parts(whole)
    change, message = CONFIGURATIONS[name]
    change(configuration)
    assert message in refused(file, assembled(header, configuration, data))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged"),
        ("[]", "no JSON object"),
        ('{"format_version": 1, "format_version": 1}', "there twice"),
        ('{"format_version": 1, "adapters": {"a": 1, "a": 2}}', "there twice"),
        ('{"format_version": Infinity}', "no JSON"),
        ('{"format_version": 1e999}', "which is none"),
    ],
)
def test_a_configuration_that_is_no_json_is_refused(text, message, whole, file):
    header, _, data = parts(whole)
    assert message in refused(file, assembled(header, text, data))


def test_an_infinite_alpha_is_refused(whole, file):
    header, configuration, data = parts(whole)
    text = json.dumps(configuration).replace('"alpha": 1.0', '"alpha": 1e999')
    assert "no finite number" in refused(file, assembled(header, text, data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 2}, "expected shape (2, 3), got (1, 3)"),
        ({"alpha": 0}, None),
        ({"arrays": ["lora_A"]}, None),
        ({"wrapper": "ToyScale"}, "gain: expected, missing"),
        ({"wrapper": "Net"}, "Net is a class that no plugin provides"),
        ({"distribution": "os", "wrapper": "system"}, "os is not installed"),
    ],
)
def test_a_configuration_that_does_not_fit_its_arrays_touches_no_model(
    changes, message, whole, file, registry
):
    header, configuration, data = parts(whole)
    with_adapter(**changes)(configuration)
    file.write_bytes(assembled(header, configuration, data))
    model = small_model()
    if message is None and "alpha" in changes:  # nothing is wrong with it
        assert load_adapters(model, file, wrappers=OWN)["a"].alpha == 0
        return
    with pytest.raises(CheckpointError, match=message and re.escape(message)):
        load_adapters(model, file, wrappers=OWN)


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


# --- anything at all

NUMBERS = [-1, 0, 1, 3, 2**31, 2**62, 10**17, 0.5, 1e308]
TEXTS = ["", "a", "..", "/a", "\0", "\ud800", "F64", "BOOL", "ToyScale", "jno-lora-zoo"]
TREES = [[], [0], [2, 3], ["lora_A"], {}, {"a": 1}]
ODD = st.sampled_from([None, True, *NUMBERS, *TEXTS, *TREES])


def places(tree, path=()):
    """The paths of every node of a JSON tree."""
    yield path
    if isinstance(tree, dict | list):
        for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from places(child, (*path, key))


def edited(tree, data):
    """`tree` with a node replaced, taken out, or put at another name."""
    tree = copy.deepcopy(tree)
    path = data.draw(st.sampled_from([p for p in places(tree) if p]))
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    action = data.draw(st.sampled_from(["replace", "remove", "rename", "swap"]))
    if action == "remove" or (action == "rename" and isinstance(parent, list)):
        del parent[path[-1]]
    elif action == "rename":
        parent[data.draw(st.text(max_size=5))] = parent.pop(path[-1])
    elif action == "swap":
        keys = list(parent) if isinstance(parent, dict) else range(len(parent))
        other = data.draw(st.sampled_from(list(keys)))
        parent[path[-1]], parent[other] = parent[other], parent[path[-1]]
    else:
        parent[path[-1]] = data.draw(ODD)
    return tree


def mutated(content, data):
    kind = data.draw(st.sampled_from(["bytes", "length", "header", "configuration", "both"]))
    if kind == "bytes":
        content = bytearray(content)
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        return bytes(content)
    if kind == "length":
        cut, end = data.draw(st.integers(0, len(content))), data.draw(st.binary(max_size=20))
        return content[:cut] + end
    header, configuration, rest = parts(content)
    if kind != "header":
        configuration = edited(configuration, data)
    if kind != "configuration":
        header = edited(header, data)
    metadata = header.get("__metadata__")
    if kind != "header" and isinstance(metadata, dict) and "jno.lora" in metadata:
        metadata["jno.lora"] = json.dumps(configuration)
    return assembled(json.dumps(header), None, rest)


@settings(
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_whatever_a_file_holds_it_is_read_or_refused(data, whole, file, registry):
    content = mutated(whole, data)
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = read_adapters(file, wrappers=OWN)
        except CheckpointError:
            return
    assert isinstance(found, AdapterSet)
    # What we accept, the library that everybody uses accepts too, and finds the same in it.
    theirs = {name: bytes(info["data"]) for name, info in safetensors.deserialize(content)}
    ours = {
        f"{path}:{name}": np.asarray(array).tobytes()
        for path in found
        for name, array in found[path].state.items()
    }
    assert ours == theirs


@settings(
    max_examples=15,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_whatever_a_file_holds_a_model_takes_it_or_stays(data, whole, file, registry):
    header, configuration, rest = parts(whole)
    configuration = edited(configuration, data)
    file.write_bytes(assembled(header, configuration, rest))
    model = small_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = load_adapters(model, file, wrappers=OWN)
        except CheckpointError:
            return
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded))
