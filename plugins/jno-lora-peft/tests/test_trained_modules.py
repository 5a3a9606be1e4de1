"""Trained arrays outside of adapters: PEFT's `modules_to_save`, and trained biases."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.files import PREFIX, lora_tensors, normal, read_files, stack_of, write_files

from jno.lora import Net, PeftFormatError, SelectionError, apply_lora, lora_trainable_filter
from jno.lora.peft import load_peft, save_peft, untie

KEY = jax.random.key(0)


def layers():
    return {
        "fc": eqx.nn.Linear(4, 3, key=KEY),
        "conv": eqx.nn.Conv2d(2, 3, 2, key=KEY),
        "norm": eqx.nn.LayerNorm(4),
        "head": eqx.nn.Linear(3, 2, key=KEY),
    }


def read(folder):
    config, tensors = read_files(folder)
    return config, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


def names_beside(tensors):
    return {name for name in tensors if "lora_" not in name}


def nudged(model, mask):
    return jax.tree.map(lambda x, trains: x + 0.5 if trains else x, model, mask)


def test_a_net_writes_the_modules_that_it_trains(tmp_path):
    net = Net(layers()).freeze().lora(2, target="^fc").mask("^head|^conv|norm/bias").unfreeze()
    net.update(eqx.filter(nudged(net.module, net.trainable), net.trainable))
    save_peft(net, tmp_path)
    config, tensors = read(tmp_path)
    assert config["modules_to_save"] == ["conv", "head", "norm"]
    # PEFT's copy of a module has all of its arrays.
    assert names_beside(tensors) == {
        f"{module}.{name}" for module in ("conv", "head", "norm") for name in ("weight", "bias")
    }
    assert tensors["conv.bias"].shape == (3,)
    assert np.array_equal(tensors["norm.bias"], np.full(4, 0.5))
    assert eqx.tree_equal(load_peft(layers(), tmp_path), net.module)


def test_the_named_arrays_of_a_plain_model_are_written(tmp_path):
    model = apply_lora(layers(), 2, key=KEY, target="^fc")
    save_peft(model, tmp_path)
    assert read(tmp_path)[0]["modules_to_save"] is None
    save_peft(model, tmp_path, modules_to_save="^head/weight")
    config, tensors = read(tmp_path)
    assert config["modules_to_save"] == ["head"]
    assert names_beside(tensors) == {"head.weight", "head.bias"}
    save_peft(Net(model), tmp_path, modules_to_save="norm")  # instead of what the net trains
    assert read(tmp_path)[0]["modules_to_save"] == ["norm"]


def test_arrays_that_a_file_gave_are_written_again(tmp_path):
    tensors = lora_tensors("fc", 3, 4) | {
        f"{PREFIX}fc.base_layer.bias": normal(3),
        f"{PREFIX}conv.bias": normal(3),
        f"{PREFIX}head.weight": normal(2, 3),
        f"{PREFIX}head.bias": np.asarray(layers()["head"].bias),
    }
    folder = write_files(tmp_path, tensors, target_modules=["fc"], modules_to_save=["head"])
    model = load_peft(layers(), folder)
    # Adapters that were trained since do not change that.
    model = nudged(model, lora_trainable_filter(model))
    save_peft(model, tmp_path / "again")
    config, again = read(tmp_path / "again")
    assert config["bias"] == "lora_only" and config["modules_to_save"] == ["conv", "head"]
    assert names_beside(again) == {
        "fc.base_layer.bias",
        *(f"{module}.{name}" for module in ("conv", "head") for name in ("weight", "bias")),
    }
    assert eqx.tree_equal(load_peft(layers(), tmp_path / "again"), model)
    # A model that was not loaded has the same numbers, and its own arrays.
    save_peft(jax.tree.map(jnp.array, model), tmp_path / "copy")
    assert names_beside(read(tmp_path / "copy")[1]) == set()


def test_the_layers_of_a_stack_are_saved_one_by_one(tmp_path):
    norms = eqx.filter_vmap(lambda _: eqx.nn.LayerNorm(4))(jnp.arange(2))
    model = {"fc": layers()["fc"], "blocks": stack_of(2), "norms": norms}
    net = Net(model).freeze().lora(1, target="fc").mask("blocks|norms").unfreeze()
    with pytest.raises(PeftFormatError, match=r"blocks/weight: it is a stack of layers"):
        save_peft(net, tmp_path)
    save_peft(net, tmp_path, rename={r"^(blocks|norms)\[(\d)\]": r"layers/\2/\1"})
    config, tensors = read(tmp_path)
    names = [f"layers.{i}.{kind}" for kind in ("blocks", "norms") for i in (0, 1)]
    assert config["modules_to_save"] == names
    assert tensors["layers.1.blocks.weight"].shape == (3, 4)
    assert tensors["layers.1.norms.bias"].shape == (4,)


class Gated(eqx.Module):
    gate: jax.Array
    inner: eqx.nn.Linear


def gated():
    return Gated(jnp.ones(2), layers()["head"])


def test_a_module_is_saved_with_the_modules_in_it(tmp_path):
    net = Net({"fc": layers()["fc"], "gated": gated()}).freeze().lora(1, target="fc")
    save_peft(net.mask("gate$").unfreeze(), tmp_path)
    config, tensors = read(tmp_path)
    assert config["modules_to_save"] == ["gated"]
    assert names_beside(tensors) == {"gated.gate", "gated.inner.weight", "gated.inner.bias"}
    model = {"fc": layers()["fc"], "gated": jax.tree.map(jnp.zeros_like, gated())}
    assert eqx.tree_equal(load_peft(model, tmp_path)["gated"], gated())


def test_a_module_whose_name_ends_in_that_of_a_saved_one_is_saved_too(tmp_path):
    model = {"fc": layers()["fc"], "norm": eqx.nn.LayerNorm(4), "x": {"norm": eqx.nn.LayerNorm(3)}}
    net = Net(model).freeze().lora(1, target="fc").mask("^norm").unfreeze()
    save_peft(net, tmp_path)
    config, tensors = read(tmp_path)
    assert config["modules_to_save"] == ["norm", "x.norm"]
    assert names_beside(tensors) >= {"x.norm.weight", "x.norm.bias"}


def test_modules_that_peft_cannot_save_are_refused(tmp_path):
    embedding = eqx.nn.Embedding(5, 4, key=KEY)
    model = {
        "fc": eqx.nn.Linear(4, 3, key=KEY),
        "block": {"fc": eqx.nn.Linear(4, 3, key=KEY)},
        "up": eqx.nn.ConvTranspose1d(2, 2, 3, key=KEY),
        "gated": gated(),
        "scale": jnp.ones(3),
        "embed_tokens": embedding,
    }
    net = Net(model).freeze().lora(1, target="block|inner")
    net = net.mask("^fc|up|gate$|scale|embed_tokens").unfreeze()
    with pytest.raises(PeftFormatError) as error:
        save_peft(net, tmp_path)
    message = str(error.value)
    for line in (
        "PEFT cannot save these arrays beside the adapters:",
        "fc/weight: PEFT would save the adapted module 'block.fc' with 'fc'",
        "up/weight: Torch lays out the kernel of a transposed convolution otherwise",
        "gated/gate: PEFT saves its whole module, in which 'inner' is adapted",
        "scale: it is not a field of a module",
        "embed_tokens/weight: a head may read it",
        "Nothing was written. To write the adapters alone, save `net.module`.",
    ):
        assert line in message
    assert not list(tmp_path.iterdir())
    save_peft(net.module, tmp_path)


def test_the_table_that_a_head_reads_is_tied_or_refused(tmp_path):
    model = {"fc": layers()["fc"], "embed_tokens": eqx.nn.Embedding(5, 4, key=KEY)}
    net = Net(model).freeze().lora(1, target="fc").mask("embed").unfreeze()
    with pytest.raises(PeftFormatError, match="Say tied=True if one does, tied=False if not"):
        save_peft(net, tmp_path)
    save_peft(net, tmp_path, tied=True)
    config, tensors = read(tmp_path)
    assert config["ensure_weight_tying"] is True
    assert names_beside(tensors) == {"embed_tokens.weight", "lm_head.weight"}
    with pytest.raises(
        PeftFormatError, match="a head reads it, and PEFT would give the head another table"
    ):
        save_peft(net, tmp_path, tied=True, rename={"embed_tokens": "wte"})
    save_peft(net, tmp_path, tied=False)
    config, tensors = read(tmp_path)
    assert config["ensure_weight_tying"] is False and "lm_head.weight" not in tensors


def test_the_table_of_a_head_is_that_of_a_module_in_peft(tmp_path):
    model = {"fc": layers()["fc"], "embed_tokens": eqx.nn.Embedding(5, 4, key=KEY)}
    net = Net(untie(model, "embed_tokens")).freeze().lora(1, target="fc")
    net.mask("embed").unfreeze()
    net.update(eqx.filter(nudged(net.module, net.trainable), net.trainable))
    save_peft(net, tmp_path)
    config, tensors = read(tmp_path)
    assert config["modules_to_save"] == ["embed_tokens", "lm_head"]
    assert config["ensure_weight_tying"] is False
    assert names_beside(tensors) == {"embed_tokens.weight", "lm_head.weight"}
    for plain in (model, untie(model, "embed_tokens")):
        assert eqx.tree_equal(load_peft(plain, tmp_path), net.module)
    with pytest.raises(PeftFormatError, match="lm_head: the model has no such layer"):
        load_peft(model, tmp_path, tied=False)
    two = {key: untie(eqx.nn.Embedding(5, 4, key=KEY), "") for key in "ab"} | {"fc": model["fc"]}
    net = Net(two).freeze().lora(1, target="fc").mask("table").unfreeze()
    with pytest.raises(PeftFormatError, match="b/table: PEFT has one head 'lm_head'"):
        save_peft(net, tmp_path)


def test_a_table_is_not_tied_in_two_ways(tmp_path):
    embeddings = (eqx.nn.Embedding(5, 4, key=key) for key in jax.random.split(KEY))
    model = {kind: {"embed_tokens": one} for kind, one in zip("ab", embeddings, strict=True)}
    net = Net(model).freeze().lora(1, target="^a", wrapper="LoRAEmbedding")
    with pytest.raises(PeftFormatError, match=r"these adapters are beside b\.embed_tokens"):
        save_peft(net.mask("^b").unfreeze(), tmp_path, tied=True)
    model = {"fc": eqx.nn.Linear(4, 3, use_bias=False, key=KEY), "embed_tokens": model["a"]}
    net = Net(model).freeze().lora(1, target="fc", wrapper="ia3").mask("embed").unfreeze()
    with pytest.raises(PeftFormatError, match="PEFT ties a head to its embedding for LoRA alone"):
        save_peft(net, tmp_path, tied=True)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("[", "is not valid"), ("nowhere", r"matches no array outside.*such as 'conv/weight'")],
)
def test_a_pattern_that_selects_nothing_is_an_error(pattern, reason, tmp_path):
    model = apply_lora(layers(), 2, key=KEY, target="^fc")
    with pytest.raises(SelectionError, match=reason):
        save_peft(model, tmp_path, modules_to_save=pattern)


def test_the_base_model_and_the_task_are_written(tmp_path):
    model = apply_lora(layers(), 2, key=KEY, target="^fc")
    save_peft(model, tmp_path)
    config, _ = read(tmp_path)
    assert config["base_model_name_or_path"] is config["task_type"] is None
    save_peft(model, tmp_path, base_model_name_or_path="a/b", task_type="CAUSAL_LM")
    config, _ = read(tmp_path)
    assert (config["base_model_name_or_path"], config["task_type"]) == ("a/b", "CAUSAL_LM")
    assert eqx.tree_equal(load_peft(layers(), tmp_path), model)


def test_a_task_that_peft_would_not_know_is_refused(tmp_path):
    with pytest.raises(PeftFormatError, match=r"SEQ_CLS, .* is 'causal_lm'"):
        save_peft(apply_lora(layers(), 2, key=KEY, target="^fc"), tmp_path, task_type="causal_lm")
    assert not list(tmp_path.iterdir())


class Pair(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0))
        self.first, self.second = (eqx.nn.Linear(4, 4, key=key) for key in keys)

    def __call__(self, x):
        return self.second(self.first(x))


def trained_base(wrapper, mask):
    net = Net(Pair()).freeze().lora(2, 2.0, target="first", wrapper=wrapper)
    net.mask(mask).unfreeze()
    trainable, _ = net.partition()
    return net.update(jax.tree.map(lambda x: x + 0.5, trainable))


def test_a_bias_that_trains_inside_an_adapter_is_written(tmp_path):
    net = trained_base("lora", "first/base/bias")
    save_peft(net, tmp_path)
    x = jnp.arange(4.0)
    assert jnp.allclose(load_peft(Pair(), tmp_path)(x), net.module(x), atol=1e-5)


@pytest.mark.parametrize(
    ("wrapper", "mask", "message"),
    [
        ("lora", "first/base/weight", r"first .LoRALinear.: its own weight trains too"),
        ("ia3", "first/base/bias", "PEFT's IA3"),
    ],
)
def test_other_arrays_that_train_inside_an_adapter_are_refused(tmp_path, wrapper, mask, message):
    with pytest.raises(PeftFormatError, match=message):
        save_peft(trained_base(wrapper, mask), tmp_path)
    assert not list(tmp_path.iterdir())
