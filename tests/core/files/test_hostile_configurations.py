"""Files whose configuration lies: a `CheckpointError` each, and no more."""

import json
import re
import time

import pytest

from jno.lora import (
    CheckpointError,
    load_adapters,
    read_adapters,
)

from ._tools import OWN, assembled, little_is_needed, parts, refused, small_model, with_adapter


def renamed(path):
    return lambda found: found["adapters"].update({path: found["adapters"].pop("a")})


CONFIGURATIONS = {
    "version 5": (lambda c: c.update(format_version=5), "pip install -U jno-lora"),
    "version 0": (
        lambda c: c.update(format_version=0),
        "is 0, which is not a whole number from 1",
    ),
    "version text": (lambda c: c.update(format_version="1"), "which is not a"),
    "version true": (lambda c: c.update(format_version=True), "which is not a"),
    "no version": (lambda c: c.pop("format_version"), "which is not a"),
    "adapters a list": (lambda c: c.update(adapters=[]), "not a JSON object"),
    "an adapter null": (lambda c: c["adapters"].update(a=None), "not a JSON object"),
    "versions numbers": (lambda c: c.update(versions={"jax": 1}), "not printable text"),
    "rank below 0": (with_adapter(rank=-1), "rank"),
    "rank enormous": (with_adapter(rank=10**12), "rank"),
    "rank beyond 32 bits": (with_adapter(rank=2**31), "rank"),
    "rank true": (with_adapter(rank=True), "rank"),
    "rank text": (with_adapter(rank="4"), "rank"),
    "alpha text": (with_adapter(alpha="4"), "not a finite number"),
    "alpha true": (with_adapter(alpha=True), "not a finite number"),
    "alpha null in a list": (with_adapter(alpha=[None]), "not a finite number"),
    "wrapper null": (with_adapter(wrapper=None), "not the name of a class"),
    "wrapper empty": (with_adapter(wrapper=""), "not the name of a class"),
    "wrapper with a bell": (with_adapter(wrapper="a\a"), "not the name of a class"),
    "wrapper a surrogate": (with_adapter(wrapper="\ud800"), "not the name of a class"),
    "wrapper code": (
        with_adapter(wrapper="X]); import os; os.system('true') #"),
        "name of a class",
    ),
    "wrapper a path": (with_adapter(wrapper="os.system"), "name of a class"),
    "variant a list": (with_adapter(variant=[]), "not printable text"),
    "a command": (with_adapter(distribution='x" && rm -rf "/'), "which is not a"),
    "an option": (with_adapter(distribution="--index-url"), "which is not a"),
    "a version with a quote": (with_adapter(distribution="x", version='1" y'), "which is not a"),
    "a version null": (with_adapter(version=None), "which is not a"),
    "arrays text": (with_adapter(arrays="lora_A"), "not a list"),
    "arrays of numbers": (with_adapter(arrays=[1, 2]), "not a list of printable text"),
    "an array twice": (with_adapter(arrays=["lora_A", "lora_B", "lora_A"]), "the same name"),
    "base values a number": (with_adapter(base_values=3), "is 3, which is not a hash"),
    "base values an escape": (with_adapter(base_values="sha256:\x1b[31m"), "which is not a hash"),
    "base values of a megabyte": (with_adapter(base_values="x:" + "a" * 2**20), "not a hash"),
    "layer null": (with_adapter(layer=None), "not a JSON object"),
    "a layer without stack_ndim": (
        with_adapter(layer={"class": "Linear", "arrays": {}}),
        "stack_ndim",
    ),
    "an absolute path": (renamed("/etc/passwd"), "not the path of an adapter: printable names"),
    "a path upwards": (renamed("../a"), "not the path of an adapter: printable names"),
    "a path upwards inside": (renamed("a/../../b"), "not the path of an adapter: printable names"),
    "a path with a line": (renamed("a\nb"), "printable names"),
    "a path without end": (renamed("a" * 10**5), "the path of an adapter"),
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
        ("[]", "not a JSON object"),
        ('{"format_version": Infinity}', "which is not a"),
        ('{"format_version": 1e999}', "which is not a"),
    ],
)
def test_a_configuration_that_is_no_json_is_refused(text, message, whole, file):
    header, _, data = parts(whole)
    assert message in refused(file, assembled(header, text, data))


def test_an_infinite_alpha_is_refused(whole, file):
    header, configuration, data = parts(whole)
    text = json.dumps(configuration).replace('"alpha": 1.0', '"alpha": 1e999')
    assert "not a finite number" in refused(file, assembled(header, text, data))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 2}, "expected shape (2, 3), got (1, 3)"),
        ({"rank": 2**31 - 1}, "expected shape"),
        ({"alpha": 0}, None),
        ({"arrays": ["lora_A"]}, None),
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
    model = small_model()
    if message is None and "alpha" in changes:  # nothing is wrong with it
        assert load_adapters(model, file, wrappers=OWN)["a"].alpha == 0
        return
    with pytest.raises(CheckpointError, match=message and re.escape(message)):
        load_adapters(model, file, wrappers=OWN)


def test_a_layer_that_is_said_to_be_large_takes_no_memory(whole, file):
    header, configuration, data = parts(whole)
    layer = configuration["adapters"]["a"]["layer"]
    layer["arrays"]["weight"]["shape"] = [2**14, 2**14]  # a gigabyte, which there would be
    file.write_bytes(assembled(header, configuration, data))
    model = small_model()
    with little_is_needed():
        form = read_adapters(file, wrappers=OWN)["a"].layer
        assert "16384" in repr(form)
        with pytest.raises(CheckpointError, match="16384"):
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
