"""Proofs on models that nobody here wrote: a wrong scale is a fault, and nothing else."""

import dataclasses

import jax
import pytest

from jno.lora import AdapterSet, Net, extract_adapters, merge_lora, swap_adapters
from jno_lora_proof import Inputs, prove

from ._checks import ALPHA, RANK
from .zoo_of_models import every_model

MODELS = [model for model in every_model() if model.layers]


@pytest.mark.parametrize(
    "spec",
    [pytest.param(m, id=m.name, marks=pytest.mark.xdist_group(m.name)) for m in MODELS],
)
def test_a_proof_tells_right_adapters_from_wrong_ones(spec, tmp_path):
    jax.clear_caches()
    model = spec.build(jax.random.key(0, impl="unsafe_rbg"))
    given = spec.inputs(jax.random.key(1))
    net = Net(model, key=jax.random.key(2)).freeze().lora(RANK, ALPHA)
    leaves, structure = jax.tree.flatten(net.partition()[0])
    keys = jax.random.split(jax.random.key(3), len(leaves))
    draws = (jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True))
    moved = [x + 0.05 * draw for x, draw in zip(leaves, draws, strict=True)]
    net.update(jax.tree.unflatten(structure, moved))

    def call(model):
        return spec.outputs(model, given)

    path = tmp_path / "adapters.safetensors"
    net.save_adapters(path, proof=Inputs((), batched=False, call=call))
    loaded = Net(model).load_adapters(path).module
    for right in (loaded, merge_lora(loaded)):
        proof = prove(right, path, call=call)
        assert proof.verdict in ("acts", "acts, rounded"), proof
    adapters = extract_adapters(loaded)
    halved = {p: dataclasses.replace(x, alpha=x.alpha / 2) for p, x in adapters.adapters.items()}
    wrong = swap_adapters(model, AdapterSet(halved, adapters.shared))
    proof = prove(wrong, path, call=call)
    assert proof.verdict == "fault" and "scale wrong by 0.5" in str(proof.cause), proof
