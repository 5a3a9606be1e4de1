"""Metadata of the user and extensions of plugins in files of adapters."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    CheckpointError,
    Net,
    extract_adapters,
    load_adapters,
    read_adapters,
    read_metadata,
    save_adapters,
)
from jno.lora._commands import inspection
from jno.lora.extending import Extension, load_extended, save_extended

from ..toys import ToyLinear, same
from ._tools import OWN, adapted, assembled, parts, refused, small_model

GIVEN = {"nu": 0.05, "seed": 3, "converged": True, "by": "é\n\t[red]", "grid": [1, 0.5, "a", False]}


def extension(**changes):
    texts = {"distribution": "acme", "kind": "acme adapters", "reader": "acme.load"}
    content = {"phi": ["z", None, 2, {"deep": True}]}
    return Extension(**{**texts, "content": content, "arrays": {"d": jnp.arange(3.0)}, **changes})


@pytest.fixture
def extended(getkey, file):
    """The bytes of a file with an extension."""
    save_extended(adapted(small_model(), getkey), file, extension(), metadata={"nu": 0.05})
    return file.read_bytes()


def test_metadata_come_back_and_change_nothing_else(getkey, file):
    model = adapted(small_model(), getkey)
    save_adapters(model, file)
    plain = file.read_bytes()
    assert read_metadata(file) == {}
    save_adapters(model, file, metadata={})
    assert file.read_bytes() == plain
    save_adapters(model, file, metadata=GIVEN)
    found = read_metadata(file)
    assert json.dumps(found) == json.dumps(GIVEN)  # 1, 1.0 and True are equal, and differ there
    assert same(read_adapters(file, wrappers=OWN), extract_adapters(model))
    _, configuration, _ = parts(file.read_bytes())
    assert configuration["format_version"] == 1  # which version 0.1 reads
    save_adapters(extract_adapters(model), file, metadata={"set": True})
    assert read_metadata(file) == {"set": True}
    Net(model).save_adapters(file, metadata={"net": 1})
    assert read_metadata(file) == {"net": 1}
    save_adapters(Net(model), file, metadata={"net": 2})
    assert read_metadata(file) == {"net": 2}


def test_numbers_of_numpy_and_jax_become_numbers(getkey, file):
    given = {"a": np.float64(0.5), "b": jnp.asarray(2), "c": np.arange(2), "d": (np.int8(1), "x")}
    save_adapters(adapted(small_model(), getkey), file, metadata=given)
    assert read_metadata(file) == {"a": 0.5, "b": 2, "c": [0, 1], "d": [1, "x"]}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"nu": math.nan}, "metadata/nu is nan, which is not printable text"),
        ({"nu": jnp.asarray([1.0, jnp.inf])}, "metadata/nu is"),
        ({"nu": None}, "metadata/nu is None"),
        ({"nu": 2**64}, "metadata/nu is"),
        ({"nu": {"a": 1}}, "metadata/nu is"),
        ({"nu": [[1]]}, "metadata/nu is"),
        ({"nu": np.zeros((2, 2))}, "metadata/nu is"),
        ({"nu": 1j}, "metadata/nu is 1j"),
        ({"nu": "\x1b[31m"}, "metadata/nu is"),
        ({"nu": "\ud800"}, "metadata/nu is"),
        ({"nu": jax.random.key(0)}, "metadata/nu has the dtype key<fry>"),
        ({"a\n": 1}, "metadata (a key) is"),
    ],
)
def test_metadata_that_a_file_cannot_hold_are_refused(metadata, message, getkey, file):
    with pytest.raises(CheckpointError, match="metadata") as caught:
        save_adapters(adapted(small_model(), getkey), file, metadata=metadata)
    assert message in str(caught.value)
    assert not file.exists()


def test_metadata_cannot_be_traced(getkey, file):
    model = adapted(small_model(), getkey)
    with pytest.raises(CheckpointError, match="metadata/nu is not an array with values"):
        jax.jit(lambda nu: save_adapters(model, file, metadata={"nu": [nu]}))(0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "metadata is [1], which is not"),
        ('{"nu": 1e999}', "metadata/nu is inf"),
        ('{"nu": NaN}', "metadata/nu is nan"),
        ('{"nu": {}}', "metadata/nu is {}"),
        (json.dumps({"nu": "\x1b[31m"}), "metadata/nu is"),
        (json.dumps({"\x1b[31m": 1}), "metadata (a key) is"),
    ],
)
def test_metadata_of_other_kinds_are_refused(text, message, whole, file):
    header, configuration, data = parts(whole)
    content = json.dumps(configuration | {"metadata": "HERE"}).replace('"HERE"', text)
    assert message in refused(file, assembled(header, content, data))
    with pytest.raises(CheckpointError):
        read_metadata(file)


def test_inspect_shows_the_first_of_many_values(getkey, file):
    save_adapters(adapted(small_model(), getkey), file, metadata={f"n{i}": i for i in range(25)})
    lines = str(inspection.as_table(inspection.inspect(file, values=False))).splitlines()
    shown = [line for line in lines if line.startswith("metadata: ")]
    assert len(shown) == 21
    assert shown[-1] == "metadata: 5 more values, which `--json` shows"


def test_inspect_shows_metadata_on_lines(getkey, file):
    save_adapters(adapted(small_model(), getkey), file, metadata=GIVEN | {"long": "x" * 1000})
    facts = inspection.inspect(file, values=False)
    assert facts["metadata"]["nu"] == 0.05
    lines = str(inspection.as_table(facts)).splitlines()
    assert "metadata: nu = 0.05" in lines
    assert 'metadata: by = "é\\n\\t[red]"' in lines
    assert [line for line in lines if line.endswith("xxx ...") and len(line) == 200]


def test_an_extension_comes_back(extended, getkey, file):
    model, found = load_extended(small_model(), file, "acme", wrappers=OWN)
    assert isinstance(model["a"], ToyLinear)
    expected = extension()
    assert (found.kind, found.content) == (expected.kind, expected.content)
    assert (found.arrays["d"] == jnp.arange(3.0)).all()
    assert read_metadata(file) == {"nu": 0.05}
    facts = inspection.inspect(file, values=True)
    assert facts["extension"]["arrays"]["d"]["shape"] == (3,)
    assert facts["format_version"] == 3
    assert "acme: 1 arrays, 3 numbers, read by acme.load" in str(inspection.as_table(facts))


def test_a_file_with_an_extension_is_not_read_without_its_plugin(extended, file):
    message = refused(file)
    assert (
        "it holds acme adapters, whose adapters alone say too little. acme.load of acme" in message
    )
    assert 'If that is not installed and you trust this file:\n    pip install "acme"' in message
    with pytest.raises(CheckpointError, match=r"acme\.load of acme reads it"):
        load_extended(small_model(), file, "other", wrappers=OWN)
    save_adapters(load_extended(small_model(), file, "acme", wrappers=OWN)[0], file)
    with pytest.raises(CheckpointError, match=r"`jno\.lora\.load_adapters` reads"):
        load_extended(small_model(), file, "acme", wrappers=OWN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distribution": "x; rm -rf /"}, "extension/distribution is 'x; rm -rf /', which is not"),
        ({"kind": "\x1b[31m"}, "extension/kind is"),
        ({"reader": "os.system('true')"}, "not a name in Python"),
        ({"content": []}, "extension/content is [], which is not"),
        ({"arrays": []}, "//extension:d': not in its configuration"),
        ({"arrays": ["d", "e"]}, "//extension:e': in its configuration only"),
        ({"arrays": "d"}, "extension/arrays is 'd', which is not"),
    ],
)
def test_an_extension_of_another_form_is_refused(changes, message, extended, file):
    header, configuration, data = parts(extended)
    configuration["extension"].update(changes)
    file.write_bytes(assembled(header, configuration, data))
    for read in (lambda: load_adapters(small_model(), file, wrappers=OWN), lambda: opened(file)):
        with pytest.raises(CheckpointError) as caught:
            read()
        assert message in str(caught.value)


def opened(file):
    return load_extended(small_model(), file, "acme", wrappers=OWN)


@pytest.mark.parametrize(
    "changes",
    [
        {"content": {"a": math.nan}},
        {"content": {"a": (1,)}},
        {"content": {"a": {1}}},
        {"kind": "\n"},
        {"arrays": {"d": "x"}},
    ],
)
def test_an_extension_that_would_be_read_otherwise_is_not_written(changes, getkey, file):
    with pytest.raises(CheckpointError):
        save_extended(adapted(small_model(), getkey), file, extension(**changes))
    assert not file.exists()
