"""Merged weights and extracted adapters prove what they hold."""

import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jno.lora import CheckpointError, Net
from jno_lora_convert import convert_lora, extract_peft
from jno_lora_peft import load_peft, save_peft
from jno_lora_proof import Inputs, Proof, prove, read_inputs

X = jax.random.normal(jax.random.key(9), (4, 6))


def stack(model, x):
    return functools.reduce(lambda x, layer: jnp.tanh(layer(x)), model["layers"], x)


@pytest.fixture
def case(request, tmp_path):
    """A net, its folder with a proof, and the files of its base, alone and merged."""
    dtype = getattr(request, "param", jnp.float32)
    make = functools.partial(eqx.nn.Linear, 6, 6, use_bias=False, dtype=dtype)
    model = {"layers": [make(key=jax.random.key(i)) for i in range(3)]}
    net = Net(model).lora(rank=2)
    net.update(jax.tree.map(lambda x: x + jnp.asarray(0.2, x.dtype), net.partition()[0]))
    save_peft(net, tmp_path / "adapter", proof=Inputs((X.astype(dtype),), call=stack))
    weights = {f"layers.{i}.weight": np.asarray(x.weight) for i, x in enumerate(model["layers"])}
    save_file(weights, tmp_path / "base.safetensors")
    merge = functools.partial(convert_lora, tmp_path / "adapter", to="merged", verify=True)
    merge(tmp_path / "once.safetensors", base=tmp_path / "base.safetensors")
    return model, net, tmp_path, merge


@pytest.mark.parametrize("case", [jnp.float32, jnp.bfloat16], indirect=True)
def test_a_merge_is_there_once(case):
    _, net, folder, merge = case
    once, base = folder / "once.safetensors", folder / "base.safetensors"
    assert Proof.from_weights(load_file(once), once).verdict == "acts"
    assert Proof.from_weights(load_file(once), once, bases=load_file(base)).verdict == "acts"
    for by, cause in ((0, "inactive"), (2, "already merged into the base")):
        weights = {n: x + (by - 1) * (x - load_file(base)[n]) for n, x in load_file(once).items()}
        proof = Proof.from_weights(weights, once)
        assert proof.verdict == "fault" and proof.cause.startswith(cause)
        assert "acts" not in str(proof) and "jax" in str(proof)
    lost = {**load_file(once), "layers.1.weight": load_file(base)["layers.1.weight"]}
    assert Proof.from_weights(lost, once).cause == "missing, at layers.1.weight"
    assert "layers.1" in Proof.from_weights(lost, once, bases=load_file(base)).cause
    more = {n: x + 0.25 * (x - load_file(base)[n]) for n, x in load_file(once).items()}
    assert Proof.from_weights(more, once).cause == "another update"
    cast = {n: x.astype(jnp.bfloat16) for n, x in load_file(once).items()}
    assert Proof.from_weights(cast, once, bases=load_file(base)).verdict == "acts"
    lost.pop("layers.1.weight")
    for bases in (None, load_file(base)):
        assert "missing, at layers.1" in Proof.from_weights(lost, once, bases=bases).cause
    with pytest.raises(CheckpointError, match="the weights have none of them"):
        Proof.from_weights({"other": X}, once)
    with pytest.warns(match="another base"), pytest.raises(CheckpointError, match="already merged"):
        merge(folder / "twice.safetensors", base=once)
    assert not (folder / "twice.safetensors").exists()
    proof = prove(net, folder / "adapter", call=stack)
    assert proof.verdict == "acts" and not any(row.finding for row in proof.rows)


def test_a_base_with_other_names_is_merged(case):
    _, _, folder, merge = case
    weights, once = (load_file(folder / f"{x}.safetensors") for x in ("base", "once"))
    save_file({f"model.{n}": x for n, x in weights.items()}, folder / "named.safetensors")
    merge(folder / "m.safetensors", base=folder / "named.safetensors", rename={"^": "model."})
    merged = load_file(folder / "m.safetensors")
    assert Proof.from_weights(merged, folder / "m.safetensors").verdict == "acts"
    assert all(np.array_equal(merged[f"model.{n}"], x) for n, x in once.items())


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("c_attn", (6, 18), {"transposed": "c_attn"}),
        ("c_proj", (6, 6), {"transposed": "c_proj"}),
        ("embed_tokens", (9, 6), {"tied": True}),
        ("conv", (4, 3, 2, 2), {}),
    ],
)
def test_an_extracted_lora_of_any_layer_is_merged_with_its_proof(name, shape, options, tmp_path):
    old = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    flat = np.linspace(-1, 1, old.size, dtype=np.float32).reshape(len(old), -1)
    change = np.outer(flat[:, 0], flat[0]).reshape(shape)
    for file, weight in (("base", old), ("tuned", old + change)):
        save_file({f"{name}.weight": weight}, tmp_path / f"{file}.safetensors")
    base, made = tmp_path / "base.safetensors", tmp_path / "adapter"
    extract_peft(base, tmp_path / "tuned.safetensors", made, rank=1, **options)
    out = tmp_path / "out.safetensors"
    given = {"tied": options["tied"]} if "tied" in options else {}
    convert_lora(made, out, to="merged", base=base, verify=True, **given)
    assert np.allclose(load_file(out)[f"{name}.weight"], old + change, atol=1e-4)
    assert Proof.from_weights(load_file(out), out).verdict == "acts"


def test_a_scale_that_was_retyped_is_not_merged(case):
    _, _, folder, merge = case
    config = folder / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 1}))
    with pytest.raises(CheckpointError, match=r"scale wrong by 0\.5"):
        merge(folder / "out.safetensors", base=folder / "base.safetensors")
    assert not [*folder.glob("*out.safetensors*")] and not [*folder.glob(".*")]


def test_weights_in_a_folder_have_their_proof_beside_them(case):
    _, _, folder, merge = case
    (folder / "base").mkdir()
    (folder / "base.safetensors").rename(folder / "base" / "model.safetensors")
    merge(folder / "out", base=folder / "base")
    weights = load_file(folder / "out" / "model.safetensors")
    assert Proof.from_weights(weights, folder / "out").verdict == "acts"
    # It is no array of the model: the folder can be a base again.
    (folder / "out" / "model.safetensors").rename(folder / "out" / "shard.safetensors")
    with pytest.warns(match="another base"), pytest.raises(CheckpointError, match="already merged"):
        merge(folder / "again", base=folder / "out")


def test_an_extracted_lora_proves_its_updates(case):
    model, net, folder, _ = case
    made = folder / "extracted"
    extract_peft(folder / "base.safetensors", folder / "once.safetensors", made, rank=2)
    loaded = load_peft(model, made, prove=True)
    assert prove(loaded, made).verdict == "acts" and prove(loaded, made).error is None
    assert prove(net, made).verdict == "acts"
    assert prove(net.merge().module, made).verdict == "acts"
    shifted = {"layers": [*loaded["layers"][1:], loaded["layers"][0]]}
    assert "layer" in prove(shifted, made).cause
    for call in (read_inputs, lambda path: Proof.from_outputs(X, path)):
        with pytest.raises(CheckpointError, match="has no inputs"):
            call(made)
