"""The zoo's adapters as files, and nets that load them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jno.lora import (
    Net,
    SelectionError,
    apply_lora,
    extract_adapters,
    load_adapters,
    lora_trainable_filter,
    read_adapters,
    save_adapters,
)

VARIANTS = ("lora", "dora", "pissa", "lora-xs", "vera", "lokr")


@pytest.fixture(scope="module")
def base():
    """For each variant, a layer, and a layer in half precision."""
    keys = jax.random.split(jax.random.key(3), 2 * len(VARIANTS)).reshape(-1, 2)
    dtypes = {"linear": jnp.float32, "half": jnp.bfloat16}
    return {
        variant: {
            kind: eqx.nn.Linear(7, 6, dtype=dtype, key=key)
            for (kind, dtype), key in zip(dtypes.items(), pair, strict=True)
        }
        for variant, pair in zip(VARIANTS, keys, strict=True)
    }


@eqx.filter_jit
def moved(model, key):
    """The adapters away from where they start."""
    trains, rest = eqx.partition(model, lora_trainable_filter(model))
    noise = jax.tree.map(lambda a: 0.3 * jax.random.normal(key, a.shape).astype(a.dtype), trains)
    return eqx.combine(jax.tree.map(jnp.add, trains, noise), rest)


@pytest.fixture(scope="module")
def trained(base):
    specs = [{"target": f"^{v}/", "wrapper": v} for v in VARIANTS]
    model = apply_lora(base, 2, 3.0, key=jax.random.key(4), specs=specs)
    return moved(model, jax.random.key(5))


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "zoo.safetensors"
    save_adapters(trained, path)
    return path


def test_loading_onto_an_adapted_model_is_loading_onto_the_plain_one(trained, file, base):
    other = apply_lora(base, 3, key=jax.random.key(9), target="^(lora|dora)/linear")
    loaded = load_adapters(other, file)
    assert eqx.tree_equal(loaded, load_adapters(base, file), typematch=True)
    assert eqx.tree_equal(loaded, trained, typematch=True)
    assert eqx.tree_equal(read_adapters(file), extract_adapters(trained))


def test_a_net_that_replaces_adapters_still_knows_the_layers_themselves(tmp_path, getkey):
    layer = [eqx.nn.Linear(7, 6, key=getkey())]
    Net(layer).freeze().lora(2, wrapper="pissa").save_adapters(tmp_path / "file")
    net = Net(layer).freeze().lora(3, wrapper="milora").load_adapters(tmp_path / "file")
    assert net.module[0].rank == 2
    net.add_adapter("mine")
    with net.disabled():
        assert net.module[0].weight is layer[0].weight
        with pytest.raises(SelectionError, match="disabled"):
            net.load_adapters(tmp_path / "file")
        net.save_adapters(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()
    assert net.deactivate().module[0].weight is layer[0].weight
    net.add_adapter("other", read_adapters(tmp_path / "file")).activate("other")
    assert net.unwrap().module[0].weight is layer[0].weight
