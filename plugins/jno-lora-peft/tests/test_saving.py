"""The files that `save_peft` writes, and the models that it refuses."""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from peft_cases.files import PREFIX, assert_same_weights, trained
from safetensors.flax import load_file as load_flax

from jno.lora import Net, PeftFormatError, apply_lora, extract_adapters, lora_trainable_filter
from jno.lora.extending import read_file
from jno_lora_combine import sum_adapters
from jno_lora_peft import files, load_peft, save_peft
from jno_lora_zoo import DoRA, LinearLayer, collect_statistics, rsLoRALinear

KEY = jax.random.key(0)
FC = {"fc": eqx.nn.Linear(4, 3, key=KEY)}
LAYERS = FC | {
    "block": {"fc": eqx.nn.Linear(3, 5, key=KEY)},
    "conv": eqx.nn.Conv2d(2, 4, (3, 2), key=KEY),
    "grouped": eqx.nn.Conv1d(4, 6, 3, groups=2, key=KEY),
    "embed": eqx.nn.Embedding(7, 4, key=KEY),
}


@pytest.fixture
def check(save, tmp_path):
    """Saves a model, expects that it loads with the same weights, and gives the settings."""

    def check(plain, model, **options):
        config, _ = save(model, **options)
        assert_same_weights(load_peft(plain, tmp_path / "saved"), model)
        return config

    return check


def dora(**members):
    return type("ChangedDoRA", (DoRA, LinearLayer), members)


class OthersLoRA(rsLoRALinear):
    variant = "of-others"


OTHER_GAIN = dora(row_factor=lambda self, norms: (1 + DoRA.row_factor(self, norms)) / 2)
OTHER_SCALE = dora(scaling=property(lambda self: 2 * self.alpha / self.rank))
OTHER_LAW = dora(scale_for=classmethod(lambda cls, rank, alpha: alpha / rank**0.5))


def test_a_subclass_with_another_law_of_scale_is_saved_with_its_scale_and_no_other_subclass_is(
    check, unsaved
):
    for cls in (OTHER_LAW, OthersLoRA):
        check(FC, trained(FC, cls))
    for cls in (OTHER_GAIN, OTHER_SCALE):
        unsaved("ChangedDoRA", trained(FC, cls))


def test_the_layout_is_pefts(save, tmp_path):
    specs = [{"target": "block", "rank": 1, "alpha": 0.5}, {}]
    model = trained(LAYERS, ["lora", "lora-embedding"], specs=specs)
    config, tensors = save(model, tied=False)
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
    expected = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 3,
        "rank_pattern": {r"^block\.fc": 1, "^grouped": 4},
        "alpha_pattern": {r"^block\.fc": 0.5, "^grouped": 6},
        "target_modules": ["block.fc", "conv", "embed", "fc", "grouped"],
        "bias": "none",
        "modules_to_save": None,
        "task_type": None,
        "base_model_name_or_path": None,
        **dict.fromkeys(("fan_in_fan_out", "use_dora", "use_rslora", "ensure_weight_tying"), False),
    }
    assert expected.items() <= config.items()
    assert eqx.tree_equal(load_peft(LAYERS, tmp_path / "saved", tied=False), model)


@pytest.mark.parametrize(
    ("variant", "flags"), [("rslora", {"use_rslora"}), ("dora", {"use_dora"}), ("lora-xs", set())]
)
def test_a_variant_that_has_an_exact_form_is_written_in_it(variant, flags, check):
    layers = {name: LAYERS[name] for name in ("fc", "conv")}
    config = check(layers, trained(layers, variant))
    assert config["peft_type"] == "LORA"
    assert {name for name in ("use_dora", "use_rslora") if config.get(name)} == flags


def test_a_start_from_data_is_written_as_lora_on_the_original_weight(check):
    plain = {"fc": eqx.nn.Linear(5, 5, key=KEY)}

    def loss(model, x):
        return jnp.mean(jax.vmap(model["fc"])(x) ** 2)

    found = collect_statistics(plain, jax.random.normal(KEY, (2, 10, 5)), loss, wrapper="lora-ga")
    config = check(plain, trained(plain, "lora-ga", statistics=found))
    assert (config["peft_type"], config["r"], config["init_lora_weights"]) == ("LORA", 4, True)


def test_lora_and_rslora_in_one_model_become_lora(check):
    specs = [{"target": "block", "wrapper": "rslora"}, {"target": "^fc", "wrapper": "pissa"}]
    assert not check(LAYERS, trained(LAYERS, None, specs=specs))["use_rslora"]


def test_a_name_that_is_the_end_of_another_makes_the_targets_a_regex(save):
    model = trained(LAYERS, "lora", target="^fc")
    assert save(model)[0]["target_modules"] == "fc"
    # The names that a function gives to the other layers are not known.
    assert save(model, rename=lambda path: f"a.{path}")[0]["target_modules"] == r"a\.fc"


def test_names_go_both_ways(save, tmp_path):
    model = trained(LAYERS, "lora", target="block")
    for rename in ({"^": "model/"}, lambda path: "model." + path.replace("/", ".")):
        assert f"{PREFIX}model.block.fc.lora_A.weight" in save(model, rename=rename)[1]
        again = load_peft(LAYERS, tmp_path / "saved", rename={"^model/": ""})
        assert eqx.tree_equal(again, model)


def test_each_layer_of_a_stack_is_written_by_its_own_name(save, unsaved, tmp_path):
    keys = jax.random.split(KEY, 2)
    plain = {"layers": {"fc": eqx.filter_vmap(lambda k: eqx.nn.Linear(4, 3, key=k))(keys)}}
    model = trained(plain, "pissa")
    unsaved(r"it is a stack of layers.* 'layers/fc\[0\]' here", model)
    _, tensors = save(model, rename={r"layers/(.*)\[(\d+)\]": r"layers/\2/\1"})
    assert tensors[f"{PREFIX}layers.1.fc.lora_A.weight"].shape == (4, 4)
    rename = {r"layers/(\d+)/(.*)": r"layers/\2[\1]"}
    assert_same_weights(load_peft(plain, tmp_path / "saved", rename=rename), model)


def test_half_precision_is_kept_and_not_rounded_by_the_scale(check, tmp_path):
    options = {"options": {"adapter_dtype": jnp.bfloat16}}
    save_peft(trained(FC, "lora", **options), tmp_path)
    tensors = load_flax(tmp_path / "adapter_model.safetensors")
    assert all(t.dtype == jnp.bfloat16 for t in tensors.values())
    check(FC, trained(FC, "pissa", **options))


def test_a_multiplier_is_in_the_factor_that_is_written(check):
    for variant in ("rslora", "dora"):
        check(FC, trained(FC, variant, options={"multiplier": 0.5}))


def test_adapters_without_an_exact_form_are_listed_and_nothing_is_written(unsaved):
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
    wrappers["dilated"] = "lora"
    specs = [{"target": name, "wrapper": wrappers.get(name, name)} for name in model]
    message = unsaved("PEFT", trained(model, None, specs=specs))
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


def test_traced_and_deleted_arrays_are_refused_with_their_path(tmp_path, unsaved):
    model = trained(FC, "pissa")
    with pytest.raises(PeftFormatError, match="'fc' is not an array with values"):
        eqx.filter_jit(save_peft)(model, tmp_path / "no")
    trains, _ = eqx.partition(model, lora_trainable_filter(model))
    for array in jax.tree.leaves(trains):
        array.delete()
    unsaved(r"at 'fc'.*deleted", model)


def test_one_adapter_is_of_one_kind(unsaved):
    specs = [{"target": "block", "wrapper": "dora"}, {"target": "^fc", "wrapper": "lora"}]
    message = unsaved("PEFT", trained(LAYERS, None, specs=specs))
    assert "of several:\n  - dora: block/fc\n  - lora: fc" in message
    unsaved("carries no adapters to save", LAYERS)


def test_names_that_peft_cannot_have_are_refused(unsaved, save):
    model = trained(LAYERS, "lora", target="fc")
    reason = "it has PEFT's name 'fc', as 'block/fc' has"
    unsaved(reason, model, rename={"block/": ""})
    unsaved(reason, model, rename=lambda path: "fc")
    one = trained(FC["fc"], "lora")
    unsaved("PEFT cannot call a module ''", one)
    assert f"{PREFIX}linear.lora_A.weight" in save(one, rename={"^$": "linear"})[1]


def outcome(directory):
    """The adapter that a reader finds there now, or `None` if a file of it is missing."""
    if not (directory / "adapter_config.json").exists():
        with pytest.raises(PeftFormatError, match=r"adapter_config.json' cannot be read: No such"):
            load_peft(FC, directory)
        return None
    return float(load_peft(FC, directory)["fc"].lora_B[0, 0])


@pytest.fixture
def two_adapters():
    one = apply_lora(FC, 2, 4.0, key=KEY)
    return [eqx.tree_at(lambda m: m["fc"].lora_B, one, jnp.full((3, 2), n)) for n in (1.0, 2.0)]


def test_nobody_ever_finds_files_of_two_adapters(two_adapters, tmp_path, monkeypatch):
    found, replace = [], os.replace

    def watched(*names):
        found.append(outcome(tmp_path))
        replace(*names)

    monkeypatch.setattr(os, "replace", watched)
    for adapter in two_adapters:
        save_peft(adapter, tmp_path)
    assert found == [None, None, None, 1.0, None, None]
    assert outcome(tmp_path) == 2.0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("call", "left"), [(2, 1.0), (3, None)])
def test_a_failure_leaves_the_old_files_or_none_that_loads(
    call, left, two_adapters, tmp_path, monkeypatch
):
    old, new = two_adapters
    save_peft(old, tmp_path)
    calls, replace = [], os.replace

    def failing(*names):
        calls.append(names)
        if len(calls) == call:
            raise OSError(13, "Permission denied")
        replace(*names)

    with monkeypatch.context() as inside:
        inside.setattr(os, "replace", failing)
        with pytest.raises(PeftFormatError, match="cannot be written: Permission denied"):
            save_peft(new, tmp_path)
    assert outcome(tmp_path) == left
    assert not list(tmp_path.glob("*.tmp"))


def test_files_that_change_while_they_are_read_are_refused(two_adapters, tmp_path, monkeypatch):
    save_peft(two_adapters[0], tmp_path)

    def slow(path):
        found = read_file(path)
        config = path.with_name("adapter_config.json")
        config.write_text(config.read_text().replace('"r": 2', '"r": 1'))
        return found

    monkeypatch.setattr(files, "read_file", slow)
    with pytest.raises(PeftFormatError, match="was written while it was read"):
        load_peft(FC, tmp_path)


def test_a_sum_of_products_is_written_as_one_lora(save, unsaved, tmp_path):
    sets = {name: extract_adapters(trained(FC, name)) for name in ("lora", "rslora", "dora")}
    products = {name: sets[name] for name in ("lora", "rslora")}
    summed = sum_adapters(FC, products, weights={"rslora": -0.5}, train=["lora"])
    config, tensors = save(Net(summed))
    assert (config["r"], config["lora_alpha"], len(tensors)) == (4, 4, 2)
    assert_same_weights(load_peft(FC, tmp_path / "saved"), summed)
    mixed = sum_adapters(FC, {"lora": sets["lora"], "dora": sets["dora"]})
    unsaved(r"fc .*: its update is not a product of two factors", mixed)


def test_another_base_is_noticed_and_exchanged_layers_are_named(tmp_path):
    layers = [eqx.nn.Linear(4, 4, key=jax.random.key(i)) for i in range(3)]
    save_peft(Net({"layers": layers}).lora(rank=2), tmp_path)
    load_peft({"layers": layers}, tmp_path)  # warns of nothing
    with pytest.warns(match=r"another base.*\n.*layers.0: here is the weight of layers.1"):
        load_peft({"layers": [layers[1], layers[0], layers[2]]}, tmp_path)
    other = eqx.nn.Linear(4, 4, key=jax.random.key(7))
    with pytest.warns(match=r"another base.*\n.*layers.2\n"):
        load_peft({"layers": [*layers[:2], other]}, tmp_path)
    half = jax.tree.map(lambda x: x.astype("bfloat16"), eqx.filter(layers, eqx.is_array))
    load_peft({"layers": eqx.combine(half, layers)}, tmp_path)  # nobody can tell
