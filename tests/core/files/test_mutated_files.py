"""Files with anything at all in them are read or refused."""

import copy
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings, strategies as st

from jno.lora import (
    AdapterSet,
    CheckpointError,
    load_adapters,
    read_adapters,
)

from ._tools import OWN, assembled, parts, small_model

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
    # The common library accepts every file that we accept, and finds the same in it.
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
