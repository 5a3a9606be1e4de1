"""A fault is noticed and named; a right model is no fault, whatever its precision or form."""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from proof_cases import FAULTS, TARGETS, TOKENS, base, loaded, trained, with_trained
from tests.pairs import ALL

from jno.lora import (
    CheckpointError,
    Net,
    SelectionError,
    extract_adapters,
    load_adapters,
    merge_lora,
    save_adapters,
    swap_adapters,
)
from jno_lora_bank import AdapterBank
from jno_lora_combine import sum_adapters
from jno_lora_conditional import Conditional, Powers, at
from jno_lora_proof import Inputs, Proof, prove, read_inputs
from jno_lora_quantized import quantize
from jno_lora_uncertainty import Ensemble
from jno_lora_zoo import METHODS

# One method of each family of updates; `make test-all` takes every method.
FEW = ("lora", "dora", "oft", "vera", "ia3", "pissa", "tied-lora")
VARIANTS = [method.variant for method in METHODS] if ALL else FEW
# They change the weight, which a quantised layer refuses.
CHANGES_WEIGHTS = ("pissa", "olora", "milora", "corda", "lora-ga", "lora-one", "lora-null")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A net and its file, made once for each method."""
    folder, made = tmp_path_factory.mktemp("proofs"), {}

    def of(wrapper):
        if wrapper not in made:
            net, path = trained(wrapper), folder / f"{wrapper}.safetensors"
            with pytest.warns(match="3 other arrays train too"):
                net.save_adapters(path, proof=TOKENS)
            made[wrapper] = net, path
        return made[wrapper]

    return of


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_noticed_and_named(name, saved):
    fault = FAULTS[name]
    net, path = saved(fault.wrapper)
    wrong = fault.make(net, base(), extract_adapters(net.module))
    proof = prove(wrong, path)
    assert proof.verdict == "fault", proof
    assert re.search(fault.cause, proof.cause), proof
    with pytest.raises(CheckpointError, match=re.escape(proof.cause)):
        proof.raise_for_fault()


def test_a_proof_without_a_call_names_causes_too(saved, capsys):
    found = {}
    for name, fault in FAULTS.items():
        net, path = saved(fault.wrapper)
        wrong = fault.make(net, base(), extract_adapters(net.module))
        found[name] = prove(wrong, path, run=False).cause or "not noticed"
    with capsys.disabled():
        print(*(f"{name} | {cause}" for name, cause in found.items()), sep="\n")
    named = [name for name, cause in found.items() if re.search(FAULTS[name].cause, cause)]
    assert len(named) >= 0.95 * len(FAULTS), {*FAULTS} - {*named}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "nf4"])
@pytest.mark.parametrize("wrapper", VARIANTS)
def test_no_false_alarm_in_another_precision(wrapper, dtype, saved):
    net, path = saved(wrapper)
    model = with_trained(base(), net)
    if dtype in ("int8", "nf4"):
        if wrapper in CHANGES_WEIGHTS:
            return
        model = quantize(model, dtype, target=TARGETS)
    else:
        model = jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, model)
    proof = prove(swap_adapters(model, extract_adapters(net.module)), path)
    assert proof.verdict in ("acts", "acts, rounded"), proof
    assert proof.raise_for_fault() is proof
    if dtype == "float32":
        assert proof.verdict == "acts" and proof.error < 1e-4


def test_the_forms_of_a_right_model_act(saved):
    net, path = saved("lora")
    adapters = extract_adapters(net.module)
    model = with_trained(base(), net)
    right = loaded(net, base(), adapters)
    summed = sum_adapters(model, {"a": adapters})
    forms = {"merged": merge_lora(right), "net": Net(right), "sum": summed}
    for name, form in forms.items():
        assert prove(form, path).verdict == "acts", name


def test_a_conditional_at_a_value_and_a_member_of_an_ensemble_act(tmp_path):
    x = jr.normal(jr.key(0), (8, 4))
    model = eqx.nn.MLP(4, 3, 8, 1, key=jr.key(1))
    family = Conditional(Net(model).freeze().lora(rank=2), Powers(source=0.0), film=True)
    family = family.update(jax.tree.map(lambda leaf: leaf + 0.2, family.partition()[0]))
    ensemble = Ensemble(lambda key: Net(model, key=key).freeze().lora(rank=2), 2, key=jr.key(2))
    ensemble = ensemble.update(jax.tree.map(lambda leaf: leaf + 0.2, ensemble.partition()[0]))
    for form in (at(family, 0.7), ensemble.member(1)):
        path = tmp_path / "form.safetensors"
        save_adapters(form, path, proof=x)
        assert prove(load_adapters(model, path, prove=True), path).error < 1e-4
        other = eqx.nn.MLP(4, 3, 8, 1, key=jr.key(5))
        with pytest.warns(match="another base"), pytest.raises(CheckpointError, match="base"):
            load_adapters(other, path, prove=True)


def test_files_are_checked_as_they_are_loaded(saved):
    net, path = saved("lora")
    fine = Net(with_trained(base(), net)).load_adapters(path, prove=True)
    np.testing.assert_allclose(jax.vmap(fine.module)(TOKENS), jax.vmap(net.module)(TOKENS), 1e-5)
    other = Net(with_trained(base(1), net))
    with (
        pytest.warns(match="another base"),
        pytest.raises(CheckpointError, match="fault: another base"),
    ):
        other.load_adapters(path, prove=True)
    assert other.active is None and not len(extract_adapters(other.module))


def test_a_bank_proves_what_it_adds(saved):
    net, path = saved("lora")
    bank = AdapterBank(with_trained(base(), net), slots=2)
    bank.add(path, "fine", prove=True)
    ours = bank.run(["fine"] * len(TOKENS), TOKENS)
    np.testing.assert_allclose(ours, jax.vmap(net.module)(TOKENS), rtol=1e-4, atol=1e-4)
    other = AdapterBank(with_trained(base(1), net), slots=2)
    with pytest.warns(match="another base"), pytest.raises(CheckpointError, match="fault"):
        other.add(path, "wrong", prove=True)
    assert "wrong" not in other.slots


def test_without_a_call_updates_and_bases_are_compared(saved):
    net, path = saved("lora")
    adapters = extract_adapters(net.module)
    found = prove(loaded(net, base(), adapters), path, run=False)
    assert found.verdict == "acts" and found.error is None
    wrong = FAULTS["alpha_retyped"].make(net, base(), adapters)
    assert prove(wrong, path, run=False).cause == "scale wrong by 0.5"


def test_a_server_is_proved_by_its_outputs(saved):
    net, path = saved("lora")
    (tokens,), keywords = read_inputs(path)
    assert not keywords
    logits = np.asarray(jax.vmap(net.module)(tokens))
    assert Proof.from_outputs(logits, path).verdict == "acts"
    plain = np.asarray(jax.vmap(with_trained(base(), net))(tokens))
    assert Proof.from_outputs(plain, path).cause.startswith("inactive")


class Graph(eqx.Module):
    """Energies of graphs, with a random part and dropout."""

    layer: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    noise: float = 0.0

    def __call__(self, graph, *, scale=1.0, key=None):
        x = self.dropout(self.layer(graph["nodes"] * scale), key=key)
        noise = self.noise * np.random.normal() if self.noise else 0.0
        return {"energy": jnp.sum(x) + noise, "count": graph["edges"].shape[0]}


def graph_net(noise=0.0):
    layer = eqx.nn.Linear(4, 3, key=jr.key(0))
    net = Net(Graph(layer, eqx.nn.Dropout(0.5), noise), key=jr.key(1)).freeze().lora(rank=2)
    halves = net.partition()
    return net.update(jax.tree.map(lambda x: x + 0.3, halves[0]))


def test_structured_inputs_keywords_and_dropout(tmp_path):
    net, path = graph_net(), tmp_path / "graph.safetensors"
    graph = {"nodes": jnp.arange(8.0).reshape(2, 4), "edges": jnp.zeros((2, 3), int)}
    net.save_adapters(path, proof=Inputs((graph,), {"scale": jnp.array([1.0, 2.0])}))
    assert prove(net, path).verdict == "acts"
    (again,), keywords = read_inputs(path)
    np.testing.assert_array_equal(again["nodes"], graph["nodes"])
    assert keywords["scale"].shape == (2,)
    whole = Inputs((graph,), batched=False, call=lambda model, g: jax.vmap(model)(g))
    net.save_adapters(path, proof=whole)
    assert prove(net, path, call=whole.call).verdict == "acts"


def test_keywords_alone_are_inputs(saved, tmp_path):
    net, _ = saved("lora")
    path = tmp_path / "keywords.safetensors"
    with pytest.warns(match="3 other arrays train too"):
        net.save_adapters(path, proof=Inputs((), {"tokens": TOKENS}))
    assert prove(net, path).error < 1e-6
    assert prove(net, path, call=lambda model, tokens: -model(tokens)).verdict == "fault"


def test_inputs_that_must_not_be_published_are_drawn(tmp_path, saved):
    net, _ = saved("lora")
    path = tmp_path / "drawn.safetensors"
    drawn = Inputs((jax.ShapeDtypeStruct((8, 6), jnp.int32),), high=32, seed=3)
    with pytest.warns(match="other arrays train"):
        net.save_adapters(path, proof=drawn)
    assert prove(net, path).verdict == "acts"
    (tokens,), _ = read_inputs(path)
    assert tokens.shape == (8, 6) and 20 < tokens.max() < 32


def test_a_stack_has_a_row_for_each_layer(tmp_path):
    keys = jr.split(jr.key(0), 3)
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 4, key=key))(keys)
    net = Net({"layers": stack}, key=jr.key(1)).freeze().lora(rank=2)
    net = net.update(jax.tree.map(lambda x: x + 0.1, net.partition()[0]))

    def call(model, x):
        step = lambda x, layer: (layer(x), None)  # noqa: E731
        arrays, static = eqx.partition(model["layers"], eqx.is_array)
        return jax.lax.scan(lambda x, a: step(x, eqx.combine(a, static)), x, arrays)[0]

    path = tmp_path / "stack.safetensors"
    net.save_adapters(path, proof=Inputs((jnp.ones((2, 4)),), call=call))
    proof = prove(net, path, call=call)
    assert proof.verdict == "acts"
    assert {row.path for row in proof} >= {f"layers[{i}]/weight" for i in range(3)}
    rolled = jax.tree.map(lambda x: jnp.roll(x, 1, 0) if eqx.is_array(x) else x, net.module)
    assert prove(rolled, path, call=call).cause.startswith(("the layer of", "the update of"))


def test_what_cannot_be_proved_is_an_error(tmp_path, saved):
    net, _ = saved("lora")
    bare = tmp_path / "bare.safetensors"
    with pytest.warns(match="other arrays train"):
        net.save_adapters(bare)
    with pytest.raises(CheckpointError, match="has no proof"):
        prove(net, bare)
    graph = {"nodes": jnp.ones((2, 4)), "edges": jnp.zeros((2, 3), int)}
    noisy = graph_net(noise=1.0)
    with pytest.raises(SelectionError, match="The model is random"):
        noisy.save_adapters(bare, proof=Inputs((graph,), batched=False, call=drawn_anew))
    before = bare.read_bytes()
    with pytest.raises(SelectionError, match="cannot keep an input of type object"):
        net.save_adapters(bare, proof=Inputs((TOKENS, object()), call=lambda m, x, _: m(x)))
    with pytest.raises((TypeError, ValueError)) as error:
        net.save_adapters(bare, proof=TOKENS[0])  # without an axis of examples
    assert "a leading axis of examples" in "".join(error.value.__notes__)
    assert bare.read_bytes() == before


def drawn_anew(model, graph):
    number = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.pure_callback(lambda: np.float32(np.random.normal()), number)


def test_an_adapter_that_was_never_trained_is_a_fault(tmp_path):
    net = Net(base(), key=jr.key(0)).freeze().lora(rank=2, target=TARGETS)
    path = tmp_path / "fresh.safetensors"
    net.save_adapters(path, proof=TOKENS)
    assert prove(net, path).cause.startswith("never trained")


def test_a_proof_is_small_and_the_file_is_as_before(saved):
    net, path = saved("lora")
    again = Net(base()).load_adapters(path)
    for old, new in zip(
        jax.tree.leaves(extract_adapters(net.module)),
        jax.tree.leaves(extract_adapters(again.module)),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)
    assert path.stat().st_size < 60_000
    row = prove(net, path).rows[0]
    assert dataclasses.asdict(row)["finding"] == ""
