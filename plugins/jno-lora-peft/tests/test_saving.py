"""The files that `save_peft` writes, and the models that it refuses."""

import json
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.files import PREFIX
from safetensors.numpy import load_file

from jno.lora import (
    Net,
    PeftFormatError,
    SelectionError,
    apply_lora,
    calibrate,
    extract_adapters,
    lora_trainable_filter,
    merge_lora,
    sum_adapters,
)
from jno.lora.extending import read_file
from jno.lora.peft import load_peft, save_peft
from jno_lora_peft.files import directory as files
from jno_lora_zoo import DoRA, LinearLayer, rsLoRALinear

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
    if isinstance(wrapper, str):
        wrapper = [wrapper, f"{wrapper}-embedding"]
    model = apply_lora(model, rank, alpha, key=KEY, wrapper=wrapper, **options)
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


class HalfDoRA(DoRA, LinearLayer):
    def row_factor(self, norms):
        return (1 + super().row_factor(norms)) / 2


class DoubleDoRA(DoRA, LinearLayer):
    @property
    def scaling(self):
        return 2 * super().scaling


class RsDoRA(DoRA, LinearLayer):
    @classmethod
    def scale_for(cls, rank, alpha):
        return alpha / rank**0.5


@pytest.mark.parametrize("cls", [HalfDoRA, DoubleDoRA])
def test_a_subclass_of_dora_with_another_gain_or_scale_is_not_written_as_dora(cls, tmp_path):
    model = trained({"fc": eqx.nn.Linear(4, 3, key=KEY)}, cls)
    with pytest.raises(PeftFormatError, match=cls.__name__):
        save_peft(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_subclass_of_dora_with_another_law_of_scale_is_saved_with_its_scale(tmp_path):
    plain = {"fc": eqx.nn.Linear(4, 3, key=KEY)}
    model = trained(plain, RsDoRA)
    save_peft(model, tmp_path / "new")
    assert_same_weights(model, load_peft(plain, tmp_path / "new"))


def test_the_layout_is_pefts(tmp_path):
    plain = layers()
    model = trained(plain, "lora", specs=[{"target": "block", "rank": 1, "alpha": 0.5}, {}])
    save_peft(model, tmp_path / "new" / "folder", tied=False)
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
    again = load_peft(plain, tmp_path / "new" / "folder", tied=False)
    assert eqx.tree_equal(again, model)


VARIANTS = {
    "rslora": "use_rslora",
    "dora": "use_dora",
    "lora-fa": None,
    "pissa": None,
    "milora": None,
    "lora-xs": None,
    "vera": None,
    "tied-lora": None,
    "ia3": None,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_that_has_an_exact_form_is_written_in_it(variant, tmp_path):
    plain = layers(use_bias=False)
    if variant == "ia3":  # PEFT scales the bias of a layer too
        plain["conv"] = eqx.nn.Conv2d(2, 4, (3, 2), use_bias=False, key=KEY)
    # PEFT's DoRA takes no groups, and its IA3 no convolution of one axis.
    target = "fc|conv" if variant in ("dora", "ia3") else "fc|conv|grouped"
    model = trained(plain, variant, target=target)
    save_peft(model, tmp_path)
    config, _ = read(tmp_path)
    flag = VARIANTS[variant]
    assert config["peft_type"] == ("IA3" if variant == "ia3" else "LORA")
    assert [name for name in ("use_dora", "use_rslora") if config.get(name)] == [flag] * bool(flag)
    assert_same_weights(load_peft(plain, tmp_path), model)


@pytest.mark.parametrize(
    ("variant", "rank"), [("eva", 2), ("corda", 4), ("lora-ga", 4), ("lora-one", 4)]
)
def test_a_start_from_data_is_written_as_lora_on_the_original_weight(variant, rank, tmp_path):
    plain = {"fc": eqx.nn.Linear(5, 5, key=KEY)}
    batches = jax.random.normal(KEY, (2, 10, 5))

    def loss(model, x):
        return jnp.mean(jax.vmap(model["fc"])(x) ** 2)

    found = calibrate(plain, batches, loss, wrapper=variant)
    model = trained(plain, variant, statistics=found)
    save_peft(model, tmp_path)
    config, _ = read(tmp_path)
    assert (config["peft_type"], config["r"], config["init_lora_weights"]) == ("LORA", rank, True)
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
    # The names that a function gives to the other layers are not known.
    save_peft(trained(plain, "lora", target="^fc"), tmp_path, rename=lambda path: f"a.{path}")
    assert read(tmp_path)[0]["target_modules"] == r"a\.fc"


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
    with pytest.raises(PeftFormatError, match=r"it is a stack of layers.* 'layers/fc\[0\]' here"):
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


def test_adapters_without_an_exact_form_are_listed_and_nothing_is_written(tmp_path):
    model = {
        "oft": eqx.nn.Linear(4, 4, key=KEY),
        "lokr": eqx.nn.Linear(5, 4, key=KEY),
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
        "oft (OFTLinear): its update is not a product",
        "lokr (LoKrLinear): 2 does not divide the weight's (4, 5)",
        "biased (IA3Linear): PEFT's IA3 also scales the layer's bias",
        "conv1 (IA3Conv): PEFT's IA3 has no equivalent for convolutions of one axis",
        "norm (LoRAInNorm): it is a WeightNorm; PEFT's tensors fit linear layers",
        "dilated (LoRAConv): the layer has dilation=(2, 2)",
        "grouped (DoRAConv): PEFT's DoRA takes no norm",
    ):
        assert line in message
    assert not (tmp_path / "nothing").exists()


def test_loading_does_not_take_a_net_for_a_model(tmp_path):
    model = trained(layers(), "lora", target="^fc")
    save_peft(Net(model).freeze(), tmp_path)
    with pytest.raises(SelectionError, match=r"load_peft\(net\.module"):
        load_peft(Net(layers()), tmp_path)


@pytest.mark.parametrize("variant", ["lora", "ia3", "pissa"])
def test_traced_and_deleted_arrays_are_refused_with_their_path(variant, tmp_path):
    model = trained({"fc": eqx.nn.Linear(4, 3, use_bias=False, key=KEY)}, variant)
    with pytest.raises(PeftFormatError, match="'fc' is not an array with values"):
        eqx.filter_jit(save_peft)(model, tmp_path / "no")
    trains, _ = eqx.partition(model, lora_trainable_filter(model))
    for array in jax.tree.leaves(trains):
        array.delete()
    with pytest.raises(PeftFormatError, match=r"at 'fc'.*deleted"):
        save_peft(model, tmp_path / "no")
    assert not (tmp_path / "no").exists()


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
    with pytest.raises(PeftFormatError, match="it has PEFT's name 'same', as 'block/fc' has"):
        save_peft(model, tmp_path, rename=lambda path: "same")
    assert not list(tmp_path.iterdir())
    one = trained(layers()["fc"], "lora")
    with pytest.raises(PeftFormatError, match="PEFT cannot call a module ''"):
        save_peft(one, tmp_path)
    save_peft(one, tmp_path, rename={"^$": "linear"})
    assert f"{PREFIX}linear.lora_A.weight" in read(tmp_path)[1]


def outcome(directory, plain):
    """The adapter that a reader finds there now, or `None` if a file of it is missing."""
    if not (directory / "adapter_config.json").exists():
        with pytest.raises(PeftFormatError, match=r"adapter_config.json' cannot be read: No such"):
            load_peft(plain, directory)
        return None
    return float(load_peft(plain, directory)["fc"].lora_B[0, 0])


def two_adapters():
    plain = layers()
    one = Net(plain).freeze().lora(2, 4.0, target="^fc").module
    return plain, [
        eqx.tree_at(lambda m: m["fc"].lora_B, one, jnp.full((3, 2), n)) for n in (1.0, 2.0)
    ]


def test_nobody_ever_finds_files_of_two_adapters(tmp_path, monkeypatch):
    plain, (old, new) = two_adapters()
    found = []
    replace = os.replace

    def watched(*names):
        found.append(outcome(tmp_path, plain))
        replace(*names)

    monkeypatch.setattr(os, "replace", watched)
    save_peft(old, tmp_path)
    save_peft(new, tmp_path)
    assert found == [None, None, None, 1.0, None, None]
    assert outcome(tmp_path, plain) == 2.0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("call", "left"), [(1, 1.0), (2, 1.0), (3, None)])
def test_a_failure_leaves_the_old_files_or_none_that_loads(call, left, tmp_path, monkeypatch):
    plain, (old, new) = two_adapters()
    save_peft(old, tmp_path)
    calls = []
    replace = os.replace

    def failing(*names):
        calls.append(names)
        if len(calls) == call:
            raise OSError(13, "Permission denied")
        replace(*names)

    with monkeypatch.context() as inside:
        inside.setattr(os, "replace", failing)
        with pytest.raises(PeftFormatError, match="cannot be written: Permission denied"):
            save_peft(new, tmp_path)
    assert outcome(tmp_path, plain) == left
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_interrupt_leaves_the_old_files_or_the_new_ones(call, done, tmp_path, monkeypatch):
    plain, (old, new) = two_adapters()
    save_peft(old, tmp_path)
    calls = []
    replace = os.replace

    def interrupted(*names):
        calls.append(names)
        if len(calls) != call or done:
            replace(*names)
        if len(calls) == call:
            raise KeyboardInterrupt

    with monkeypatch.context() as inside:
        inside.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_peft(new, tmp_path)
    # The second call puts the tensors in place.
    assert outcome(tmp_path, plain) == (2.0 if (call, done) >= (2, True) else 1.0)
    assert not list(tmp_path.glob("*.tmp"))


def test_files_that_change_while_they_are_read_are_refused(tmp_path, monkeypatch):
    plain, (old, _) = two_adapters()
    save_peft(old, tmp_path)

    def slow(path):
        found = read_file(path)
        config = path.with_name("adapter_config.json")
        config.write_text(config.read_text().replace('"r": 2', '"r": 1'))
        return found

    monkeypatch.setattr(files, "read_file", slow)
    with pytest.raises(PeftFormatError, match="was written while it was read"):
        load_peft(plain, tmp_path)


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PeftFormatError, match=r"File exists: .*file"):
        save_peft(trained(layers(), "lora", target="^fc"), tmp_path / "file")


def test_a_sum_of_products_is_written_as_one_lora(tmp_path):
    model = {"fc": layers()["fc"]}
    sets = {name: extract_adapters(trained(model, name)) for name in ("lora", "rslora", "dora")}
    products = {name: sets[name] for name in ("lora", "rslora")}
    summed = sum_adapters(model, products, weights={"rslora": -0.5}, train=["lora"])
    save_peft(Net(summed), tmp_path)
    config, tensors = read(tmp_path)
    assert (config["r"], config["lora_alpha"], len(tensors)) == (3, 3, 2)  # 4, but (3, 4) has 3
    assert_same_weights(load_peft(model, tmp_path), summed)
    mixed = sum_adapters(model, {"lora": sets["lora"], "dora": sets["dora"]})
    with pytest.raises(PeftFormatError, match=r"fc .*: it is a sum .* not all low-rank products"):
        save_peft(mixed, tmp_path)
