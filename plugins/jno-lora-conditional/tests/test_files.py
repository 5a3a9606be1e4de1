"""A conditional in a file: every bit comes back, and what is wrong with a file is said."""

import functools
import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.core.toys import ToyLinear

from jno.lora import (
    CheckpointError,
    JnoLoraWarning,
    Net,
    Registry,
    SelectionError,
    load_adapters,
    read_adapters,
    read_metadata,
    save_adapters,
)
from jno.lora._commands import inspection
from jno.lora.extending import map_adapters
from jno_lora_conditional import (
    Basis,
    Conditional,
    Function,
    Hats,
    Indexed,
    Network,
    Powers,
    at,
    load_conditional,
    save_conditional,
)
from jno_lora_conditional.testing import trained_at_random

KEY = jax.random.key(5)


class Sines(Basis):
    """A basis of a user: `sin(w z)`, zero at zero."""

    source: float
    w: jax.Array

    def __call__(self, z):
        return jnp.sin(self.w * jnp.asarray(z))


def anchored(seed):
    """A function with arrays that train: a module, which is zero at .5."""
    return Function(Anchored(eqx.nn.MLP(1, 2, 3, 1, key=jax.random.key(seed))), 0.5)


class Anchored(eqx.Module):
    mlp: eqx.nn.MLP

    def __call__(self, z):
        return self.mlp(z[None]) - self.mlp(jnp.full(1, 0.5))


def small():
    return eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))


def half():
    cast = lambda x: x.astype("bfloat16") if eqx.is_inexact_array(x) else x  # noqa: E731
    return jax.tree.map(cast, small())


# A model, arguments of `lora`, a basis, a value of z. The kit (`check_conditional`) tries other
# bases, stacks and spectral weights.
CASES = {
    "powers": (small, {}, Powers(0.1, 0.06, degree=2), 0.07),
    "network": (small, {}, Network([0.1, 2], [1, 3], key=KEY), (0.3, 1.5)),
    "indexed": (small, {"wrapper": "adalora"}, Indexed(3), 2),
    "hats": (small, {"wrapper": "dora"}, Hats([0.1, 0.3]), 0.15),
    "function": (small, {}, anchored(1), 0.3),
    "basis of a user": (small, {}, Sines(0.0, jnp.asarray([1.0, 2.0])), 0.3),
    "bfloat16": (half, {"options": {"adapter_dtype": jnp.bfloat16}}, Powers(0.0), 0.4),
}
TEMPLATES = {"function": anchored(2), "basis of a user": Sines(0.0, jnp.zeros(2))}


@functools.cache
def trained(name):
    make, options, basis, _ = CASES[name]
    net = Net(make()).freeze().lora(rank=1, **options)
    return trained_at_random(Conditional(net, basis), size=1.0)


def loaded(name, file, **options):
    return load_conditional(file, CASES[name][0](), basis=TEMPLATES.get(name), **options)


def output(name, conditional):
    """The bytes of the output at the value of z."""
    x = jnp.linspace(-1, 1, 3).astype("bfloat16" if name == "bfloat16" else "float32")
    return np.asarray(at(conditional, jnp.asarray(CASES[name][3]))(x)).tobytes().hex()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "conditional.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a file that is in order."""
    file = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    save_conditional(trained("network"), file)
    return file.read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_every_bit_comes_back(name, file):
    conditional = trained(name)
    save_conditional(conditional, file)
    again = loaded(name, file)
    arrays = [eqx.filter(tree, eqx.is_array) for tree in (again, conditional)]
    assert eqx.tree_equal(*map(jax.tree.leaves, arrays), typematch=True)
    again.update(again.partition()[0])
    assert output(name, again) == output(name, conditional)


def test_without_the_plugin_the_file_says_what_to_install(file, monkeypatch):
    save_conditional(trained("powers"), file, metadata={"name": "viscosities"})
    monkeypatch.setitem(sys.modules, "jno_lora_conditional", None)
    for read in (lambda: load_adapters(small(), file), lambda: read_adapters(file)):
        with pytest.raises(CheckpointError) as caught:
            read()
        assert "holds conditional adapters" in str(caught.value)
        assert 'pip install "jno-lora-conditional"' in str(caught.value)
    with pytest.raises(CheckpointError, match="conditional adapters"):
        Net(small()).load_adapters(file)
    assert read_metadata(file) == {"name": "viscosities"}
    facts = inspection.inspect(file, values=False)
    assert facts["extension"]["content"]["basis"]["settings"]["degree"] == 2
    assert facts["extension"]["content"]["moving"]["layers/0"] == ["lora_B"]
    text = str(inspection.as_table(facts))
    assert "2 conditional adapters" in text and "12 numbers, read by" in text


def test_another_base_and_a_file_of_adapters_are_noticed(file):
    save_adapters(Net(small()).lora(rank=1), file)
    with pytest.raises(CheckpointError, match=r"which `jno\.lora\.load_adapters` reads"):
        load_conditional(file, small())
    save_conditional(trained("powers"), file)
    scaled = eqx.tree_at(lambda m: m.layers[0].weight, small(), replace_fn=lambda w: w + 1)
    with pytest.warns(JnoLoraWarning, match="onto another base"):
        load_conditional(file, scaled)
    with pytest.raises(CheckpointError, match="layers/0: the layer has other values"):
        load_conditional(file, scaled, strict="values")
    load_conditional(file, small(), strict="values")
    with pytest.raises(CheckpointError, match="does not fit this model"):
        load_conditional(file, eqx.nn.MLP(3, 2, 5, 1, key=jax.random.key(0)))
    with pytest.raises(SelectionError, match="strict"):
        load_conditional(file, small(), strict=False)
    with pytest.raises(CheckpointError, match="jno-lora-zoo:LoRALinear is not available"):
        load_conditional(file, small(), registry=Registry(discover=False))


def test_a_basis_of_the_user_needs_a_template(file):
    save_conditional(trained("basis of a user"), file)
    with pytest.raises(CheckpointError, match=r"a Sines, which a file cannot hold.*basis=\.\.\."):
        load_conditional(file, small())
    with pytest.raises(CheckpointError, match="the class 'Sines', but `basis` has 'Powers'"):
        load_conditional(file, small(), basis=Powers(0.0))
    with pytest.raises(CheckpointError, match=r"the source 0\.0, but `basis` has 1\.0"):
        load_conditional(file, small(), basis=Sines(1.0, jnp.zeros(2)))
    with pytest.raises(
        CheckpointError, match=r"w: expected float32\[3\], the file has float32\[2\]"
    ):
        load_conditional(file, small(), basis=Sines(0.0, jnp.zeros(3)))


def test_a_refused_save_leaves_no_file(file):
    conditional = trained("powers")
    trainable, frozen = conditional.partition()
    for part in (trainable, frozen):
        with pytest.raises(CheckpointError, match=r"one half.*conditional\.update\(trainable\)"):
            save_conditional(part, file)
    with pytest.raises(CheckpointError, match="metadata/nu is nan"):
        save_conditional(conditional, file, metadata={"nu": float("nan")})
    assert not file.exists()


def changed(content, path, value):
    """A file with another value at this place of its description, or of its header."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    configuration = json.loads(header["__metadata__"]["jno.lora"])
    node = {"header": header, **configuration["extension"]}
    *steps, last = ("content", *path) if path[0] != "header" else path
    for step in steps:
        node = node[step]
    node[last] = value
    header["__metadata__"] = {"jno.lora": json.dumps(configuration)}  # without the checksums
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + content[8 + length :]


SETTINGS, DIRECTION = ("basis", "settings"), "//extension:directions/layers/0:lora_B"
BASE = {"layers/0": ["base"], "layers/1": ["lora_B"]}
OTHER = {"layers/0": ["lora_A"], "layers/1": ["lora_B"]}
# A place, its value, and what the error says.
HOSTILE = {
    "a class of the system": (("basis", "class"), "os.system", "os.system', and this"),
    "no basis": (("basis",), None, "description is damaged"),
    "another known class": (("basis", "class"), "Powers", "not a Powers that can be built"),
    "an unknown setting": ((*SETTINGS, "key"), 1, "not a Network that can be built"),
    "another size": ((*SETTINGS, "size"), 3, "the arrays of its basis do not fit"),
    "a unit of zero": ((*SETTINGS, "unit"), 0, "`unit` must not be zero"),
    "a newer format": (("format",), 2, "pip install -U jno-lora-conditional"),
    "another count": (("size",), 3, "values of shape [2], its directions [3]"),
    "moving nothing": (("moving",), {}, "must be some of the trained fields"),
    "moving no layer": (("moving",), {"x": ["lora_B"]}, "x: ['lora_B'] must be"),
    "moving the base": (("moving",), BASE, "layers/0: ['base'] must be some of the trained fields"),
    "other fields": (("moving",), OTHER, "directions/layers/0:lora_B: expected no such array"),
    "another shape": (
        ("header", DIRECTION, "shape"),
        [4, 2, 1],
        "expected float32[2, 4, 1], the file has float32[4, 2, 1]",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(name, whole, file, monkeypatch):
    path, value, message = HOSTILE[name]
    file.write_bytes(changed(whole, path, value))
    monkeypatch.setattr("importlib.import_module", None)
    with pytest.raises(CheckpointError) as caught:
        load_conditional(file, small())
    assert message in str(caught.value) and str(file) in str(caught.value)


def test_a_damaged_file_is_refused(whole, file):
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    for damaged in (flipped, *(whole[:length] for length in (0, 7, 500, len(whole) - 1))):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"conditional\.safetensors"):
            load_conditional(file, small())


def test_directions_that_are_not_finite_are_a_warning(file):
    conditional = trained("powers")
    damaged = eqx.tree_at(
        lambda c: c.directions["layers/0"]["lora_B"], conditional, replace_fn=lambda d: d / 0
    )
    save_conditional(damaged, file)
    with pytest.warns(JnoLoraWarning, match="directions/layers/0:lora_B: 8 of 8 numbers"):
        load_conditional(file, small())


class OfTheUser(ToyLinear):
    """An adapter that no plugin provides."""


def test_the_error_of_a_class_that_no_plugin_provides_names_this_loader(file):
    net = Net(small()).freeze().lora(rank=1, wrapper=OfTheUser)
    conditional = Conditional(net, Powers(0.1))
    save_conditional(conditional, file)
    call = r"jno_lora_conditional\.load_conditional\(\.\.\., wrappers=\[OfTheUser\]\)"
    with pytest.raises(CheckpointError, match=call) as caught:
        load_conditional(file, small())
    for advice in ("load_adapters", "load_grown", "strict=False"):  # would be of no use here
        assert advice not in str(caught.value)
    again = load_conditional(file, small(), wrappers=[OfTheUser])
    assert jnp.array_equal(at(again, 0.3)(jnp.ones(3)), at(conditional, 0.3)(jnp.ones(3)))


def test_adapters_that_do_not_start_as_the_model_are_refused(file):
    conditional = trained("powers")
    path = next(iter(conditional.directions))

    def moved(at_path, adapter):
        if at_path != path:
            return adapter
        return eqx.tree_at(lambda a: a.lora_B, adapter, jnp.ones_like(adapter.lora_B))

    model = map_adapters(moved, conditional.model)
    save_conditional(eqx.tree_at(lambda c: c.model, conditional, model), file)
    with pytest.raises(CheckpointError, match="do not start as the model"):
        loaded("powers", file)
    # Adapters of the model beside those of the file.
    net = Net(small()).freeze().lora(rank=1, target="layers/0")
    save_conditional(Conditional(net, Powers(0.0)), file)
    model = Net(small()).lora(rank=1, target="layers/1").module
    with pytest.raises(CheckpointError, match=r"layers/1: \[\] must be some of the trained fields"):
        load_conditional(file, model)
