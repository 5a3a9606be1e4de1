"""Trained arrays outside of adapters: PEFT's `modules_to_save`, and trained biases."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from peft_cases.files import PREFIX, lora_tensors, normal, stack_of

from jno.lora import Net, SelectionError, apply_lora, lora_trainable_filter
from jno_lora_peft import load_peft, untie

KEY = jax.random.key(0)
LAYERS = {
    "fc": eqx.nn.Linear(4, 3, key=KEY),
    "conv": eqx.nn.Conv2d(2, 3, 2, key=KEY),
    "norm": eqx.nn.LayerNorm(4),
    "head": eqx.nn.Linear(3, 2, key=KEY),
}
FC, EMBEDDING = LAYERS["fc"], eqx.nn.Embedding(5, 4, key=KEY)


def net_of(model, target, mask, **options):
    """A net whose adapters train, and the arrays of the mask."""
    return Net(model).freeze().lora(1, target=target, **options).mask(mask).unfreeze()


def nudge(net):
    return net.update(jax.tree.map(lambda x: x + 0.5, net.partition()[0]))


def names_beside(tensors):
    return {name.removeprefix(PREFIX) for name in tensors if "lora_" not in name}


def whole(*modules):
    return {f"{module}.{name}" for module in modules for name in ("weight", "bias")}


def test_a_net_writes_the_modules_that_it_trains(save, tmp_path):
    net = nudge(net_of(LAYERS, "^fc", "^head|^conv|norm/bias"))
    config, tensors = save(net)
    assert config["modules_to_save"] == ["conv", "head", "norm"]
    # PEFT's copy of a module has all of its arrays.
    assert names_beside(tensors) == whole("conv", "head", "norm")
    assert tensors[f"{PREFIX}conv.bias"].shape == (3,)
    assert np.array_equal(tensors[f"{PREFIX}norm.bias"], np.full(4, 0.5))
    assert eqx.tree_equal(load_peft(LAYERS, tmp_path / "saved"), net.module)


def test_the_named_arrays_of_a_plain_model_are_written(save, unsaved):
    model = apply_lora(LAYERS, 2, key=KEY, target="^fc")
    assert save(model)[0]["modules_to_save"] is None
    names = {"base_model_name_or_path": "a/b", "task_type": "CAUSAL_LM"}
    config, tensors = save(model, modules_to_save="^head/weight", **names)
    assert names.items() <= config.items() and config["modules_to_save"] == ["head"]
    assert names_beside(tensors) == whole("head")
    # Instead of what the net trains.
    assert save(Net(model), modules_to_save="norm")[0]["modules_to_save"] == ["norm"]
    options = {"error": SelectionError}
    unsaved("of `modules_to_save` is bad", model, modules_to_save="[", **options)
    reason = "matches no array outside.*such as 'conv/weight'"
    unsaved(reason, model, modules_to_save="nowhere", **options)


def test_arrays_that_a_file_gave_are_written_again(load, save, tmp_path):
    tensors = lora_tensors("fc", 3, 4) | {
        f"{PREFIX}fc.base_layer.bias": normal(3),
        f"{PREFIX}conv.bias": normal(3),
        f"{PREFIX}head.weight": normal(2, 3),
        f"{PREFIX}head.bias": np.asarray(LAYERS["head"].bias),
    }
    model = load(LAYERS, tensors, target_modules=["fc"], modules_to_save=["head"])
    # Adapters that were trained since do not change that.
    adapters = lora_trainable_filter(model)
    model = jax.tree.map(lambda x, trains: x + 0.5 if trains else x, model, adapters)
    config, again = save(model)
    assert config["bias"] == "lora_only" and config["modules_to_save"] == ["conv", "head"]
    assert names_beside(again) == {"fc.base_layer.bias", *whole("conv", "head")}
    assert eqx.tree_equal(load_peft(LAYERS, tmp_path / "saved"), model)
    # A model that was not loaded has the same numbers, and its own arrays.
    assert names_beside(save(jax.tree.map(jnp.array, model))[1]) == set()


def test_the_layers_of_a_stack_are_saved_one_by_one(save, unsaved):
    norms = eqx.filter_vmap(lambda _: eqx.nn.LayerNorm(4))(jnp.arange(2))
    net = net_of({"fc": FC, "blocks": stack_of(2), "norms": norms}, "fc", "blocks|norms")
    unsaved(r"blocks/weight: it is a stack of layers", net)
    config, tensors = save(net, rename={r"^(blocks|norms)\[(\d)\]": r"layers/\2/\1"})
    names = [f"layers.{i}.{kind}" for kind in ("blocks", "norms") for i in (0, 1)]
    assert config["modules_to_save"] == names
    assert tensors[f"{PREFIX}layers.1.blocks.weight"].shape == (3, 4)
    assert tensors[f"{PREFIX}layers.1.norms.bias"].shape == (4,)


class Gated(eqx.Module):
    gate: jax.Array = eqx.field(default_factory=lambda: jnp.ones(2))
    inner: eqx.nn.Linear = eqx.field(default_factory=lambda: LAYERS["head"])


def test_a_module_is_saved_with_the_modules_in_it(save, tmp_path):
    config, tensors = save(net_of({"fc": FC, "gated": Gated()}, "fc", "gate$"))
    assert config["modules_to_save"] == ["gated"]
    assert names_beside(tensors) == {"gated.gate", "gated.inner.weight", "gated.inner.bias"}
    model = {"fc": FC, "gated": jax.tree.map(jnp.zeros_like, Gated())}
    assert eqx.tree_equal(load_peft(model, tmp_path / "saved")["gated"], Gated())


def test_a_module_whose_name_ends_in_that_of_a_saved_one_is_saved_too(save):
    model = {"fc": FC, "norm": eqx.nn.LayerNorm(4), "x": {"norm": eqx.nn.LayerNorm(3)}}
    config, tensors = save(net_of(model, "fc", "^norm"))
    assert config["modules_to_save"] == ["norm", "x.norm"]
    assert names_beside(tensors) >= whole("x.norm")


def test_modules_that_peft_cannot_save_are_refused(unsaved, save):
    model = {
        "fc": FC,
        "block": {"fc": FC},
        "up": eqx.nn.ConvTranspose1d(2, 2, 3, key=KEY),
        "gated": Gated(),
        "scale": jnp.ones(3),
        "embed_tokens": EMBEDDING,
    }
    net = net_of(model, "block|inner", "^fc|up|gate$|scale|embed_tokens")
    message = unsaved("PEFT cannot save these arrays beside the adapters:", net)
    for line in (
        "fc/weight: PEFT would save the adapted module 'block.fc' with 'fc'",
        "up/weight: Torch lays out the kernel of a transposed convolution otherwise",
        "gated/gate: PEFT saves its whole module, in which 'inner' is adapted",
        "scale: it is not a field of a module",
        "embed_tokens/weight: a head may read it",
        "Nothing was written. To write the adapters alone, save `net.module`.",
    ):
        assert line in message
    save(net.module)


def test_the_table_that_a_head_reads_is_tied_or_refused(save, unsaved):
    net = net_of({"fc": FC, "embed_tokens": EMBEDDING}, "fc", "embed")
    unsaved("Say tied=True if one does, tied=False if not", net)
    config, tensors = save(net, tied=True)
    assert config["ensure_weight_tying"] is True
    assert names_beside(tensors) == {"embed_tokens.weight", "lm_head.weight"}
    reason = "a head reads it, and PEFT would give the head another table"
    unsaved(reason, net, tied=True, rename={"embed_tokens": "wte"})
    config, tensors = save(net, tied=False)
    assert config["ensure_weight_tying"] is False
    assert names_beside(tensors) == {"embed_tokens.weight"}


def test_the_table_of_a_head_is_a_module_in_peft(save, unsaved, refuse, tmp_path):
    model = {"fc": FC, "embed_tokens": EMBEDDING}
    net = nudge(net_of(untie(model, "embed_tokens"), "fc", "embed"))
    config, tensors = save(net)
    assert config["modules_to_save"] == ["embed_tokens", "lm_head"]
    assert config["ensure_weight_tying"] is False
    assert names_beside(tensors) == {"embed_tokens.weight", "lm_head.weight"}
    for plain in (model, untie(model, "embed_tokens")):
        assert eqx.tree_equal(load_peft(plain, tmp_path / "saved"), net.module)
    refuse("lm_head: the model has no such layer", model, tensors, tied=False, **config)
    two = {key: untie(EMBEDDING, "") for key in "ab"} | {"fc": FC}
    unsaved("b/table: PEFT has one head 'lm_head'", net_of(two, "fc", "table"))


def test_a_table_is_not_tied_in_two_ways(unsaved):
    embeddings = (eqx.nn.Embedding(5, 4, key=key) for key in jax.random.split(KEY))
    model = {kind: {"embed_tokens": table} for kind, table in zip("ab", embeddings, strict=True)}
    net = net_of(model, "^a", "^b", wrapper="LoRAEmbedding")
    unsaved(r"these adapters are beside b\.embed_tokens", net, tied=True)
    model = {"fc": eqx.nn.Linear(4, 3, use_bias=False, key=KEY), "embed_tokens": model["a"]}
    net = net_of(model, "fc", "embed", wrapper="ia3")
    unsaved("PEFT ties a head to its embedding for LoRA alone", net, tied=True)


def test_a_bias_that_trains_inside_an_adapter_is_written(save, unsaved, tmp_path):
    net = nudge(net_of({"first": FC}, "first", "first/base/bias"))
    assert save(net)[0]["bias"] == "lora_only"
    x, loaded = jnp.arange(4.0), load_peft({"first": FC}, tmp_path / "saved")
    assert jnp.allclose(loaded["first"](x), net.module["first"](x), atol=1e-5)
    weight = net_of({"first": FC}, "first", "first/base/weight")
    unsaved(r"first .LoRALinear.: its own weight trains too", weight)
    unsaved("PEFT's IA3", net_of({"first": FC}, "first", "first/base/bias", wrapper="ia3-in"))
