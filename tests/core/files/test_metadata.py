"""Metadata of the user and extensions of plugins in files of adapters."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    CheckpointError,
    Net,
    extract_adapters,
    read_adapters,
    read_metadata,
    save_adapters,
)
from jno.lora._commands import inspection
from jno.lora.extending import Extension, load_extended, save_extended

from ..toys import ToyLinear, same
from ._tools import OWN, adapted, assembled, parts, refused, small_model

GIVEN = {"nu": 0.05, "seed": 3, "converged": True, "by": "é\n\t[red]", "grid": [1, 0.5, "a", False]}


@pytest.fixture
def trained(getkey):
    return adapted(small_model(), getkey)


def extension(**changes):
    texts = {"distribution": "acme", "kind": "acme adapters", "reader": "acme.load"}
    content = {"phi": ["z", None, 2, {"deep": True}]}
    return Extension(**{**texts, "content": content, "arrays": {"d": jnp.arange(3.0)}, **changes})


def test_metadata_come_back_and_change_nothing_else(trained, file):
    save_adapters(trained, file)
    plain = file.read_bytes()
    assert read_metadata(file) == {}
    save_adapters(trained, file, metadata={})
    assert file.read_bytes() == plain
    save_adapters(trained, file, metadata=GIVEN)
    # 1, 1.0 and True are equal, and differ there.
    assert json.dumps(read_metadata(file)) == json.dumps(GIVEN)
    assert same(read_adapters(file, wrappers=OWN), extract_adapters(trained))
    _, configuration, _ = parts(file.read_bytes())
    assert configuration["format_version"] == 4
    given = {"a": np.float64(0.5), "b": jnp.asarray(2), "c": np.arange(2), "d": (np.int8(1), "x")}
    for save in (
        lambda: save_adapters(extract_adapters(trained), file, metadata=given),
        lambda: save_adapters(Net(trained), file, metadata=given),
    ):
        save()
        assert read_metadata(file) == {"a": 0.5, "b": 2, "c": [0, 1], "d": [1, "x"]}


def test_metadata_and_extensions_that_a_file_cannot_hold_are_refused(trained, file, unchecked):
    for metadata, message in [
        ({"nu": jnp.asarray([1.0, jnp.inf])}, "metadata/nu is [1.0, inf], which is not"),
        ({"nu": 2**64}, "metadata/nu is"),
        ({"nu": {"a": 1}}, "metadata/nu is"),
        ({"nu": np.zeros((2, 2))}, "metadata/nu is"),
        ({"nu": 1j}, "complex is not JSON"),
        ({"nu": "\x1b[31m"}, "metadata/nu is"),
        ({"nu": jax.random.key(0)}, "metadata/nu has the dtype key<fry>"),
        ({"a\n": 1}, "metadata (a key) is"),
        ({1: 2}, "would not be read as it was written"),
    ]:
        with pytest.raises(CheckpointError, match=re.escape(message)):
            save_adapters(trained, file, metadata=metadata)
        assert not file.exists()
    for changes in (
        {"content": {"a": math.nan}},
        {"content": {"a": (1,)}},
        {"kind": "\n"},
        {"arrays": {"d": "x"}},
    ):
        with pytest.raises(CheckpointError):
            save_extended(trained, file, extension(**changes))
        assert not file.exists()


def test_an_extension_comes_back_to_its_plugin_alone(trained, file):
    expected = extension()
    metadata = {"nu": 0.05, "by": "é[red]"} | {f"n{i}": i for i in range(19)}
    save_extended(trained, file, expected, metadata=metadata)
    model, found = load_extended(small_model(), file, "acme", wrappers=OWN)
    assert isinstance(model["a"], ToyLinear)
    assert (found.kind, found.content) == (expected.kind, expected.content)
    assert (found.arrays["d"] == jnp.arange(3.0)).all()
    assert read_metadata(file) == metadata
    facts = inspection.inspect(file, values=True)
    assert facts["extension"]["arrays"]["d"]["shape"] == (3,)
    assert facts["format_version"] == 4
    assert facts["bytes"] == file.stat().st_size
    shown = str(inspection.as_table(facts))
    assert "acme: 1 arrays, 3 numbers, read by acme.load" in shown
    assert "metadata: nu = 0.05" in shown and "metadata: 1 more values" in shown
    message = refused(file)
    assert "it holds acme adapters" in message and "acme.load of acme reads it" in message
    assert 'pip install "acme"' in message
    with pytest.raises(CheckpointError, match=r"acme\.load of acme reads it"):
        load_extended(small_model(), file, "other", wrappers=OWN)
    save_adapters(model, file)
    with pytest.raises(CheckpointError, match=r"`jno\.lora\.load_adapters` reads"):
        load_extended(small_model(), file, "acme", wrappers=OWN)


def test_metadata_and_an_extension_of_another_form_are_refused(trained, file):
    save_extended(trained, file, extension())
    whole = file.read_bytes()
    for part, changes, message in [
        ("metadata", {"nu": math.inf}, "metadata/nu is inf"),
        ("metadata", {"nu": {}}, "metadata/nu is {}"),
        ("metadata", {"\x1b[31m": 1}, "metadata (a key) is"),
        ("extension", {"distribution": "x; rm -rf /"}, "extension/distribution is 'x; rm -rf /'"),
        ("extension", {"reader": "os.system('true')"}, "not a name in Python"),
        ("extension", {"content": []}, "extension/content is [], which is not"),
        ("extension", {"arrays": ["d", "e"]}, "//extension:e': in its configuration only"),
        ("extension", {"arrays": "d"}, "extension/arrays is 'd', which is not"),
    ]:
        header, configuration, data = parts(whole)
        configuration.setdefault(part, {}).update(changes)
        assert message in refused(file, assembled(header, configuration, data))
        with pytest.raises(CheckpointError, match=re.escape(message)):
            load_extended(small_model(), file, "acme", wrappers=OWN)
