"""What `save_peft` writes, and what it refuses."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jno.lora import (
    Net,
    PeftFormatError,
    SelectionError,
    apply_lora,
    lora_trainable_filter,
    merge_lora,
)
from jno.lora.peft import load_peft, save_peft
from jno_lora_zoo import rsLoRALinear

from .files import PREFIX

KEY = jax.random.key(0)


def layers(**options):
    return {
        "fc": eqx.nn.Linear(4, 3, key=KEY, **options),
        "block": {"fc": eqx.nn.Linear(3, 5, key=KEY, **options)},
        "conv": eqx.nn.Conv2d(2, 4, (3, 2), key=KEY),
        "grouped": eqx.nn.Conv1d(4, 6, 3, groups=2, key=KEY),
        "embed": eqx.nn.Embedding(7, 4, key=KEY),
    }


def trained(model, wrapper, rank=2, alpha=3.0, **options):
    model = apply_lora(model, rank, alpha, key=KEY, wrappers=wrapper, **options)
    trains, rest = eqx.partition(model, lora_trainable_filter(model))
    return eqx.combine(jax.tree.map(lambda a: a + 0.3, trains), rest)


def read(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, load_file(folder / "adapter_model.safetensors")


def assert_same_weights(a, b):
    for one, other in zip(
        jax.tree.leaves(merge_lora(a)), jax.tree.leaves(merge_lora(b)), strict=True
    ):
        assert np.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_layout_is_pefts(tmp_path):
    plain = layers()
    model = trained(plain, "lora", specs=[{"target": "block", "rank": 1, "alpha": 0.5}, {}])
    save_peft(model, tmp_path / "new" / "folder")
    config, tensors = read(tmp_path / "new" / "folder")
    assert {name: t.shape for name, t in tensors.items()} == {
        f"{PREFIX}fc.lora_A.weight": (2, 4),
        f"{PREFIX}fc.lora_B.weight": (3, 2),
        f"{PREFIX}block.fc.lora_A.weight": (1, 3),
        f"{PREFIX}block.fc.lora_B.weight": (5, 1),
        f"{PREFIX}conv.lora_A.weight": (2, 2, 3, 2),
        f"{PREFIX}conv.lora_B.weight": (4, 2, 1, 1),
        # PEFT's `A` sees all inputs, its `B` a group of components.
        f"{PREFIX}grouped.lora_A.weight": (4, 4, 3),
        f"{PREFIX}grouped.lora_B.weight": (6, 2, 1),
        f"{PREFIX}embed.lora_embedding_A": (2, 7),
        f"{PREFIX}embed.lora_embedding_B": (4, 2),
    }
    assert config["peft_type"] == "LORA"
    assert (config["r"], config["lora_alpha"]) == (2, 3)
    assert config["rank_pattern"] == {r"^block\.fc": 1, "^grouped": 4}
    assert config["alpha_pattern"] == {r"^block\.fc": 0.5, "^grouped": 6}
    assert config["target_modules"] == ["block.fc", "conv", "embed", "fc", "grouped"]
    assert config["task_type"] is config["base_model_name_or_path"] is None
    assert config["bias"] == "none"
    assert config["fan_in_fan_out"] is config["use_dora"] is config["use_rslora"] is False
    again = load_peft(plain, tmp_path / "new" / "folder")
    assert eqx.tree_equal(again, model)


VARIANTS = {
    "rslora": "use_rslora",
    "dora": "use_dora",
    "lora-fa": None,
    "pissa": None,
    "milora": None,
    "lora-xs": None,
    "vera": None,
    "ia3": None,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_that_has_an_exact_form_is_written_in_it(variant, tmp_path):
    plain = layers(use_bias=False)
    model = trained(plain, variant, target="fc" if variant in ("dora", "ia3") else "fc|grouped")
    save_peft(model, tmp_path)
    config, _ = read(tmp_path)
    flag = VARIANTS[variant]
    assert config["peft_type"] == ("IA3" if variant == "ia3" else "LORA")
    assert [name for name in ("use_dora", "use_rslora") if config.get(name)] == [flag] * bool(flag)
    assert_same_weights(load_peft(plain, tmp_path), model)


def test_lora_and_rslora_in_one_model_become_lora(tmp_path):
    plain = layers()
    specs = [{"target": "block", "wrapper": "rslora"}, {"target": "fc", "wrapper": "pissa"}]
    model = trained(plain, None, specs=specs)
    save_peft(model, tmp_path)
    config, _ = read(tmp_path)
    assert not config["use_rslora"]
    assert_same_weights(load_peft(plain, tmp_path), model)


class OthersLoRA(rsLoRALinear):
    variant = "of-others"


def test_a_scale_that_is_not_pefts_is_written_as_the_alpha_that_gives_it(tmp_path):
    plain = layers()
    model = trained(plain, OthersLoRA, target="^fc")
    save_peft(model, tmp_path)
    assert_same_weights(load_peft(plain, tmp_path), model)


def test_a_name_that_is_the_end_of_another_makes_the_targets_a_regex(tmp_path):
    plain = layers()
    save_peft(trained(plain, "lora", target="^fc"), tmp_path)
    assert read(tmp_path)[0]["target_modules"] == "fc"
    save_peft(trained(plain, "lora", target="block"), tmp_path)
    assert read(tmp_path)[0]["target_modules"] == ["block.fc"]


@pytest.mark.parametrize(
    "rename",
    [{"^": "model/"}, lambda path: "model." + path.replace("/", ".")],
)
def test_names_go_both_ways(rename, tmp_path):
    plain = layers()
    model = trained(plain, "lora", target="block")
    save_peft(model, tmp_path, rename=rename)
    assert f"{PREFIX}model.block.fc.lora_A.weight" in read(tmp_path)[1]
    assert eqx.tree_equal(load_peft(plain, tmp_path, rename={"^model/": ""}), model)


def test_each_layer_of_a_stack_is_written_by_its_own_name(tmp_path):
    keys = jax.random.split(KEY, 2)
    plain = {"layers": {"fc": eqx.filter_vmap(lambda k: eqx.nn.Linear(4, 3, key=k))(keys)}}
    model = trained(plain, "pissa")
    with pytest.raises(PeftFormatError, match="it is a stack of layers"):
        save_peft(model, tmp_path)
    save_peft(model, tmp_path, rename={r"layers/(.*)\[(\d+)\]": r"layers/\2/\1"})
    _, tensors = read(tmp_path)
    assert tensors[f"{PREFIX}layers.1.fc.lora_A.weight"].shape == (4, 4)
    again = load_peft(plain, tmp_path, rename={r"layers/(\d+)/(.*)": r"layers/\2[\1]"})
    assert_same_weights(again, model)


def test_half_precision_is_kept_and_not_rounded_by_the_scale(tmp_path):
    plain = layers()
    options = {"options": {"adapter_dtype": jnp.bfloat16}, "target": "^fc"}
    save_peft(trained(plain, "lora", **options), tmp_path)
    assert all(t.dtype == jnp.bfloat16 for t in read_bfloat16(tmp_path).values())
    model = trained(plain, "pissa", **options)
    save_peft(model, tmp_path)
    assert_same_weights(load_peft(plain, tmp_path), model)


def test_a_multiplier_is_in_the_factor_that_is_written(tmp_path):
    plain = layers()
    for variant in ("rslora", "dora"):
        model = trained(plain, variant, target="^fc", options={"multiplier": 0.5})
        save_peft(model, tmp_path)
        assert_same_weights(load_peft(plain, tmp_path), model)


def read_bfloat16(folder):
    from safetensors.flax import load_file as load_flax

    return load_flax(folder / "adapter_model.safetensors")


def test_what_has_no_exact_form_is_listed_and_nothing_is_written(tmp_path):
    model = {
        "oft": eqx.nn.Linear(4, 4, key=KEY),
        "lokr": eqx.nn.Linear(4, 4, key=KEY),
        "biased": eqx.nn.Linear(4, 4, key=KEY),
        "conv1": eqx.nn.Conv1d(2, 4, 3, use_bias=False, key=KEY),
        "norm": eqx.nn.WeightNorm(eqx.nn.Linear(4, 4, key=KEY)),
        "dilated": eqx.nn.Conv2d(2, 4, 3, dilation=2, key=KEY),
        "grouped": eqx.nn.Conv2d(2, 4, 3, groups=2, key=KEY),
    }
    wrappers = {"biased": "ia3", "conv1": "ia3", "norm": "lora-in-norm", "grouped": "dora"}
    specs = [{"target": name, "wrapper": wrappers.get(name, name)} for name in model]
    specs[5]["wrapper"] = "lora"
    with pytest.raises(PeftFormatError) as error:
        save_peft(trained(model, None, specs=specs), tmp_path / "nothing")
    message = str(error.value)
    for line in (
        "oft (OFTLinear): its update is no product",
        "lokr (LoKrLinear): its update is no product",
        "biased (IA3Linear): PEFT's IA3 also scales the bias",
        "conv1 (IA3Conv): PEFT's IA3 has no form for convolutions of one axis",
        "norm (LoRAInNorm): PEFT adapts linear layers, convolutions and embeddings",
        "dilated (LoRAConv): the layer has dilation=(2, 2)",
        "grouped (DoRAConv): PEFT's DoRA takes no norm",
    ):
        assert line in message
    assert not (tmp_path / "nothing").exists()


def test_a_net_is_not_taken_for_a_model(tmp_path):
    model = trained(layers(), "lora", target="^fc")
    with pytest.raises(SelectionError, match=r"save_peft\(net\.module"):
        save_peft(Net(model), tmp_path)
    save_peft(model, tmp_path)
    with pytest.raises(SelectionError, match=r"load_peft\(net\.module"):
        load_peft(Net(layers()), tmp_path)


def test_one_adapter_is_of_one_kind(tmp_path):
    specs = [{"target": "block", "wrapper": "dora"}, {"target": "fc", "wrapper": "lora"}]
    with pytest.raises(PeftFormatError) as error:
        save_peft(trained(layers(), None, specs=specs), tmp_path)
    assert "of several:\n  - dora: block/fc\n  - lora: fc" in str(error.value)
    with pytest.raises(PeftFormatError, match="carries no adapters to save"):
        save_peft(layers(), tmp_path)


def test_names_that_peft_cannot_have_are_refused(tmp_path):
    model = trained(layers(), "lora", target="fc")
    with pytest.raises(PeftFormatError, match="it has PEFT's name 'fc', as 'block/fc' has"):
        save_peft(model, tmp_path, rename={"block/": ""})
    one = trained(layers()["fc"], "lora")
    with pytest.raises(PeftFormatError, match="PEFT cannot call a module ''"):
        save_peft(one, tmp_path)
    save_peft(one, tmp_path, rename={"^$": "linear"})
    assert f"{PREFIX}linear.lora_A.weight" in read(tmp_path)[1]


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PeftFormatError, match="cannot be written"):
        save_peft(trained(layers(), "lora", target="^fc"), tmp_path / "file")
