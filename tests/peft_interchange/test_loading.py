"""What `load_peft` reads, how it finds layers, and what it says of what does not fit."""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jno.lora import (
    JnoLoraWarning,
    PeftFormatError,
    PluginError,
    Registry,
    SelectionError,
    apply_lora,
    merge_lora,
)
from jno.lora.peft import load_peft
from jno_lora_zoo import LoRALinear, rsLoRALinear

from .files import PREFIX, lora_tensors, normal, write_files


@pytest.fixture
def linear():
    return eqx.nn.Linear(4, 3, key=jax.random.key(0))


def stack_of(count):
    keys = jax.random.split(jax.random.key(0), count)
    return eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 3, key=key))(keys)


def update(tensors, module, scale):
    A, B = (tensors[f"{PREFIX}{module}.lora_{name}.weight"] for name in "AB")
    return scale * (B @ A)


# --- what is read


def test_lora_becomes_lora_with_its_own_numbers(linear, tmp_path):
    tensors = lora_tensors("fc", 3, 4)
    model = load_peft({"fc": linear}, write_files(tmp_path, tensors))
    adapter = model["fc"]
    assert type(adapter) is LoRALinear
    assert (adapter.rank, adapter.alpha) == (2, 3.0)
    assert np.array_equal(adapter.lora_A, tensors[f"{PREFIX}fc.lora_A.weight"])
    assert adapter.base.weight is linear.weight
    expected = linear.weight + update(tensors, "fc", 3 / 2)
    assert np.allclose(merge_lora(model)["fc"].weight, expected, rtol=1e-6)


def test_patterns_give_single_layers_another_rank_and_alpha(linear, tmp_path):
    tensors = lora_tensors("fc", 3, 4) | lora_tensors("a.fc", 3, 4, rank=1)
    folder = write_files(
        tmp_path, tensors, rank_pattern={r"a\.fc": 1}, alpha_pattern={"^fc": 8}, use_rslora=True
    )
    model = load_peft({"fc": linear, "a": {"fc": linear}}, folder)
    assert isinstance(model["fc"], rsLoRALinear)
    assert (model["fc"].rank, model["fc"].alpha) == (2, 8.0)
    assert (model["a"]["fc"].rank, model["a"]["fc"].alpha) == (1, 3.0)


def test_a_rank_beyond_the_layers_is_held_with_the_rank_of_the_layer(linear, tmp_path):
    tensors = lora_tensors("fc", 3, 4, rank=7)
    model = load_peft({"fc": linear}, write_files(tmp_path, tensors, r=7))
    assert model["fc"].rank == 3
    expected = linear.weight + update(tensors, "fc", 3 / 7)
    assert np.allclose(merge_lora(model)["fc"].weight, expected, rtol=1e-5)


def test_half_precision_is_read_into_float32(linear, tmp_path):
    tensors = {name: t.astype(jnp.bfloat16) for name, t in lora_tensors("fc", 3, 4).items()}
    model = load_peft({"fc": linear}, write_files(tmp_path, tensors))
    assert model["fc"].lora_A.dtype == jnp.float32
    assert np.array_equal(model["fc"].lora_A, tensors[f"{PREFIX}fc.lora_A.weight"])


def test_saved_modules_take_the_place_of_the_models_in_its_dtype(linear, tmp_path):
    weight, bias = normal(3, 4), normal(3)
    tensors = lora_tensors("fc", 3, 4) | {
        f"{PREFIX}head.weight": weight,
        f"{PREFIX}head.modules_to_save.bias": bias,
        f"{PREFIX}head.original_module.bias": normal(3, seed=1),
    }
    head = jax.tree.map(lambda a: a.astype(jnp.bfloat16), linear)
    folder = write_files(tmp_path, tensors, modules_to_save=["head"])
    model = load_peft({"fc": linear, "head": head}, folder)
    assert model["head"].weight.dtype == jnp.bfloat16
    assert np.array_equal(model["head"].weight, weight.astype(jnp.bfloat16))
    assert np.array_equal(model["head"].bias, bias.astype(jnp.bfloat16))


def test_a_saved_bias_gets_the_axes_of_a_convolution(tmp_path):
    conv = eqx.nn.Conv2d(2, 3, (1, 2), key=jax.random.key(0))
    weight, bias = normal(3, 2, 1, 2), normal(3)
    tensors = {f"{PREFIX}conv.weight": weight, f"{PREFIX}conv.bias": bias}
    folder = write_files(tmp_path, tensors, modules_to_save=["conv"])
    loaded = load_peft({"conv": conv}, folder)["conv"]
    assert np.array_equal(loaded.weight, weight)
    assert np.array_equal(loaded.bias, bias.reshape(3, 1, 1))


@pytest.mark.parametrize("shape", [(4, 1), (4,), (1, 4, 1)])
def test_a_saved_weight_of_another_shape_is_refused(shape, tmp_path):
    head = eqx.nn.Linear(4, 1, key=jax.random.key(0))
    tensors = {f"{PREFIX}head.weight": normal(*shape)}
    folder = write_files(tmp_path, tensors, modules_to_save=["head"])
    with pytest.raises(PeftFormatError, match=r"head/weight: the model has float32\[1, 4\], the"):
        load_peft({"head": head}, folder)


def test_numbers_that_are_not_finite_are_loaded_with_a_warning(linear, tmp_path):
    tensors = lora_tensors("fc", 3, 4)
    tensors[f"{PREFIX}fc.lora_B.weight"][1, 0] = np.nan
    with pytest.warns(JnoLoraWarning, match=r"fc\.lora_B\.weight: 1 of 6 numbers"):
        model = load_peft({"fc": linear}, write_files(tmp_path, tensors))
    assert jnp.isnan(model["fc"].lora_B[1, 0])


class ZooOnly(Registry):
    def resolve(self, name):
        raise AssertionError(f"{name!r} was looked for among all plugins")


def test_for_the_layers_that_peft_knows_no_other_plugin_is_loaded(linear, tmp_path):
    tensors = lora_tensors("fc", 3, 4) | {
        f"{PREFIX}conv.lora_A.weight": normal(2, 2, 3),
        f"{PREFIX}conv.lora_B.weight": normal(3, 2, 1),
        f"{PREFIX}embed.lora_embedding_A": normal(2, 7),
        f"{PREFIX}embed.lora_embedding_B": normal(4, 2),
    }
    model = {
        "fc": linear,
        "conv": eqx.nn.Conv1d(2, 3, 3, key=jax.random.key(0)),
        "embed": eqx.nn.Embedding(7, 4, key=jax.random.key(0)),
    }
    loaded = load_peft(model, write_files(tmp_path, tensors), registry=ZooOnly())
    assert {name: type(layer).__name__ for name, layer in loaded.items()} == {
        "fc": "LoRALinear",
        "conv": "LoRAConv",
        "embed": "LoRAEmbedding",
    }


def test_the_kernel_of_a_transposed_convolution_is_laid_out_otherwise(tmp_path):
    conv = eqx.nn.ConvTranspose1d(2, 2, 3, key=jax.random.key(0))
    tensors = {f"{PREFIX}up.weight": normal(2, 2, 3)}
    with pytest.raises(PeftFormatError, match="up/weight: Torch lays out the kernel"):
        load_peft({"up": conv}, write_files(tmp_path, tensors, modules_to_save=["up"]))


def test_a_pattern_of_layers_may_have_a_group_of_any_name(linear, tmp_path):
    tensors = lora_tensors("blocks.1.fc", 3, 4)
    folder = write_files(
        tmp_path, tensors, layers_to_transform=[1], layers_pattern="(?P<index>b)locks"
    )
    model = load_peft({"blocks": [{"fc": linear}, {"fc": linear}]}, folder)
    assert isinstance(model["blocks"][1]["fc"], LoRALinear)


def test_a_kronecker_product_of_large_ranks_takes_no_more_than_the_layer(linear, tmp_path):
    rank = 100_000
    parts = {"w1_a": (1, rank), "w1_b": (rank, 2), "w2_a": (3, rank), "w2_b": (rank, 2)}
    tensors = {f"{PREFIX}fc.lokr_{name}": normal(*shape) for name, shape in parts.items()}
    model = load_peft(
        {"fc": linear}, write_files(tmp_path, tensors, peft_type="LOKR", r=rank, alpha=rank)
    )
    a1, b1, a2, b2 = tensors.values()
    update = merge_lora(model)["fc"].weight - linear.weight
    assert np.allclose(update, np.kron(a1 @ b1, a2 @ b2), rtol=1e-4)


def test_what_the_model_carries_already_stays(linear, tmp_path):
    folder = write_files(tmp_path, lora_tensors("fc", 3, 4))
    adapted = apply_lora({"fc": linear, "other": linear}, 1, key=jax.random.key(0), target="other")
    model = load_peft(adapted, folder)
    assert eqx.tree_equal(model["other"], adapted["other"])
    assert isinstance(model["fc"], LoRALinear)


def test_adapters_lie_on_the_mesh_of_their_layers(tmp_path):
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))
    layer = eqx.nn.Linear(4, 6, key=jax.random.key(0))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    layer = jax.tree.map(lambda a: jax.device_put(a, sharding), layer)
    tensors = lora_tensors("fc", 6, 4) | {f"{PREFIX}fc.lora_B.bias": normal(6)}
    model = load_peft([layer], write_files(tmp_path, tensors, lora_bias=True), rename={"fc": "0"})
    assert model[0].lora_B.sharding.spec[0] == "x"
    assert model[0].base.bias.sharding == layer.bias.sharding
    assert np.allclose(model[0].base.bias, layer.bias + 1.5 * normal(6))


# --- names


@pytest.mark.parametrize(
    "rename",
    [
        {"^model/": "", "encoder/": "", r"layers/(\d+)/mlp": r"blocks/\1"},
        lambda name: name.replace("model.encoder.layers", "blocks").replace(".mlp", ""),
        lambda name: "blocks/0/fc",
    ],
)
def test_a_table_or_a_function_says_where_a_module_is_here(rename, linear, tmp_path):
    folder = write_files(tmp_path, lora_tensors("model.encoder.layers.0.mlp.fc", 3, 4))
    model = load_peft({"blocks": [{"fc": linear}]}, folder, rename=rename)
    assert isinstance(model["blocks"][0]["fc"], LoRALinear)


def test_a_key_may_hold_a_dot(linear, tmp_path):
    folder = write_files(tmp_path, lora_tensors("block.fc", 3, 4))
    assert isinstance(load_peft({"block.fc": linear}, folder)["block.fc"], LoRALinear)


def test_the_layers_of_a_stack_are_named_by_their_index(tmp_path):
    tensors = lora_tensors("layers.1.fc", 3, 4, seed=5) | lora_tensors("layers.0.fc", 3, 4)
    rename = {r"layers/(\d+)/(.*)": r"layers/\2[\1]"}
    folder = write_files(tmp_path, tensors)
    plain = {"layers": {"fc": stack_of(2)}}
    model = load_peft(plain, folder, rename=rename)
    merged = merge_lora(model)["layers"]["fc"].weight - plain["layers"]["fc"].weight
    for i in range(2):
        assert np.allclose(merged[i], update(tensors, f"layers.{i}.fc", 1.5), atol=1e-5)

    with pytest.raises(PeftFormatError) as error:
        load_peft({"layers": {"fc": stack_of(3)}}, folder, rename=rename)
    assert "a stack of 3 layers" in str(error.value)
    assert "2: not in the file" in str(error.value)
    with pytest.raises(PeftFormatError, match="need one rank and alpha, but these have"):
        load_peft(plain, write_files(tmp_path, tensors, alpha_pattern={"0.fc": 9}), rename=rename)


def test_a_bad_rename_is_an_error_of_selection(linear, tmp_path):
    folder = write_files(tmp_path, lora_tensors("fc", 3, 4))
    with pytest.raises(SelectionError, match="The rule"):
        load_peft({"fc": linear}, folder, rename={"(": ""})
    with pytest.raises(SelectionError, match="must return a string"):
        load_peft({"fc": linear}, folder, rename=lambda name: None)


# --- what does not fit


def test_when_nothing_matches_both_sides_are_shown(linear, tmp_path):
    folder = write_files(tmp_path, lora_tensors("model.layers.0.q_proj", 3, 4))
    with pytest.raises(PeftFormatError) as error:
        load_peft({"layers": [{"q_proj": linear, "k_proj": linear}]}, folder)
    message = str(error.value)
    assert "No module of the file is in the model" in message
    assert "- model.layers.0.q_proj" in message
    assert "- layers/0/q_proj" in message
    assert 'rename={"^model/": ""}' in message


def test_everything_that_does_not_fit_is_listed_at_once(linear, tmp_path):
    key = jax.random.key(0)
    model = {
        "good": linear,
        "small": eqx.nn.Linear(4, 2, key=key),
        "carries": LoRALinear(linear, 1, 1.0, key=key),
        "attention": eqx.nn.MultiheadAttention(2, 4, key=key),
        "norm": eqx.nn.WeightNorm(linear),
        "not_meant": linear,
        "rows": stack_of(2),
    }
    tensors = {}
    for name in (*(name for name in model if name != "norm"), "norm.layer", "oops"):
        tensors |= lora_tensors(name, 3, 4)
    del tensors[f"{PREFIX}good.lora_A.weight"]
    tensors[f"{PREFIX}good.lora_C"] = normal(1)
    tensors[f"{PREFIX}small.bias"] = normal(7)
    folder = write_files(tmp_path, tensors, exclude_modules=["not_meant"])
    with pytest.raises(PeftFormatError) as error:
        load_peft(model, folder)
    message = str(error.value)
    for line in (
        "good: lora_A.weight: missing",
        "good/lora_C: the Linear has no such array",
        "small/bias: the model has float32[2], the file has float32[7]",
        "small: lora_B.weight: expected shape (2, 2), got (3, 2)",
        "carries: the layer at 'carries' carries a LoRALinear already",
        "attention: the layer at 'attention' is a MultiheadAttention; PEFT's tensors fit",
        "norm.layer: the layer at 'norm/layer' is inside the norm at 'norm'",
        "not_meant: adapter_config.json does not target it",
        "rows: the model has a stack of 2 layers there",
        "oops: the model has no such layer; the nearest are",
        "Nothing was loaded.",
    ):
        assert line in message


class Computed(eqx.Module):
    """A linear layer whose bias is a property."""

    weight: jax.Array
    half_bias: jax.Array
    in_features: int = eqx.field(static=True, default=4)
    out_features: int = eqx.field(static=True, default=3)

    @property
    def bias(self):
        return 2 * self.half_bias

    def __call__(self, x):
        return self.weight @ x + self.bias


def test_what_a_layer_computes_cannot_be_replaced(tmp_path):
    model = {"fc": Computed(jnp.ones((3, 4)), jnp.ones(3))}
    folder = write_files(tmp_path, {f"{PREFIX}fc.bias": normal(3)}, bias="all")
    with pytest.raises(PeftFormatError, match="fc/bias: the Computed has no such array"):
        load_peft(model, folder)
    tensors = lora_tensors("fc", 3, 4) | {f"{PREFIX}fc.lora_B.bias": normal(3)}
    with pytest.raises(PeftFormatError, match="fc/bias: the Computed computes it"):
        load_peft(model, write_files(tmp_path, tensors, lora_bias=True))


def test_a_bias_of_another_form_is_told(linear, tmp_path):
    layer = eqx.tree_at(lambda m: m.bias, linear, jnp.zeros(()))
    tensors = lora_tensors("fc", 3, 4) | {f"{PREFIX}fc.lora_B.bias": normal(3)}
    with pytest.raises(PeftFormatError, match=r"fc/bias: the model has float32\[\], the file has"):
        load_peft({"fc": layer}, write_files(tmp_path, tensors, lora_bias=True))


def test_two_modules_of_one_path_are_refused(linear, tmp_path):
    folder = write_files(tmp_path, lora_tensors("a", 3, 4) | lora_tensors("b", 3, 4))
    with pytest.raises(PeftFormatError, match="b: renamed to the same path as 'a'"):
        load_peft({"a": linear, "b": linear}, folder, rename={"b": "a"})


@pytest.mark.parametrize(
    ("options", "shape", "reason"),
    [
        ({"padding_mode": "CIRCULAR", "padding": 1}, (2, 3, 3), "padding_mode='CIRCULAR'"),
        ({"dilation": 2}, (2, 3, 3), r"dilation=\(2,\)"),
    ],
)
def test_convolutions_that_peft_computes_otherwise_are_refused(options, shape, reason, tmp_path):
    layer = eqx.nn.Conv1d(3, 4, 3, key=jax.random.key(0), **options)
    tensors = {
        f"{PREFIX}conv.lora_A.weight": normal(*shape),
        f"{PREFIX}conv.lora_B.weight": normal(4, 2, 1),
    }
    with pytest.raises(PeftFormatError, match=reason):
        load_peft({"conv": layer}, write_files(tmp_path, tensors))


def test_a_missing_plugin_is_named(linear, tmp_path, monkeypatch):
    tensors = {
        f"{PREFIX}embed.lora_embedding_A": normal(2, 7),
        f"{PREFIX}embed.lora_embedding_B": normal(4, 2),
    }
    model = {"embed": eqx.nn.Embedding(7, 4, key=jax.random.key(0)), "fc": linear}
    monkeypatch.setenv("JNO_LORA_BLOCK", "jno-lora-embedding")
    with pytest.raises(PluginError, match="pip install jno-lora-embedding"):
        load_peft(model, write_files(tmp_path, tensors), registry=Registry())
    with pytest.raises(PluginError, match=r"jno-lora\[zoo\]"):
        load_peft(
            model,
            write_files(tmp_path, lora_tensors("fc", 3, 4)),
            registry=Registry(discover=False),
        )


# --- damaged files, and types that are not held


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "OFT"}, "rotates the inputs of a layer"),
        ({"peft_type": "NEW"}, "no adapter of jno.lora has its form"),
        ({"peft_type": 3}, "has the peft_type 3"),
        ({"r": 0}, "r is 0, not a whole number above 0"),
        ({"lora_alpha": "16"}, "lora_alpha is '16', not a number"),
        ({"target_modules": "("}, "not a valid regular expression"),
        ({"target_modules": "a{99999999999}"}, "not a valid regular expression"),
        ({"target_modules": 9999 * "(" + 9999 * ")"}, "not a valid regular expression"),
        ({"rank_pattern": {"fc": 1.5}}, "not a table of ranks"),
        ({"layer_replication": [[0, 2]]}, "layers of the model are copied"),
        ({"init_lora_weights": "loftq"}, "takes something out of the layer's weight"),
        ({"bias": "some"}, "PEFT knows 'none', 'all'"),
    ],
)
def test_a_configuration_that_is_not_held_says_why(config, reason, linear, tmp_path):
    folder = write_files(tmp_path, lora_tensors("fc", 3, 4), **config)
    with pytest.raises(PeftFormatError, match=reason):
        load_peft({"fc": linear}, folder)


def test_what_is_not_known_warns_as_in_peft(linear, tmp_path):
    folder = write_files(tmp_path, lora_tensors("fc", 3, 4), use_news=True, no_news=False)
    with pytest.warns(JnoLoraWarning, match="sets 'use_news', which is not known"):
        load_peft({"fc": linear}, folder)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("adapter_config.json", None, "No such file"),
        ("adapter_config.json", b"{", "no JSON"),
        ("adapter_config.json", b"[]", "no JSON object"),
        ("adapter_config.json", b"\xff", "cannot be used"),
        ("adapter_model.safetensors", None, "No such file"),
        ("adapter_model.safetensors", b"\0" * 7, "cut short"),
        ("adapter_model.safetensors", b"\xff" * 20, "header should have"),
    ],
)
def test_damaged_files_are_named(name, content, reason, linear, tmp_path):
    path = write_files(tmp_path, lora_tensors("fc", 3, 4)) / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(PeftFormatError, match=reason) as error:
        load_peft({"fc": linear}, tmp_path)
    assert str(path) in str(error.value)


def test_a_pipe_in_the_place_of_the_configuration_is_not_waited_for(linear, tmp_path):
    path = write_files(tmp_path, lora_tensors("fc", 3, 4)) / "adapter_config.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PeftFormatError, match="a pipe or a device"):
        load_peft({"fc": linear}, tmp_path)


def test_a_pickle_is_not_opened(linear, tmp_path):
    write_files(tmp_path, {})
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(PeftFormatError, match="a pickle, which can run any program"):
        load_peft({"fc": linear}, tmp_path)
    with pytest.raises(PeftFormatError, match="is not a directory"):
        load_peft({"fc": linear}, tmp_path / "adapter_model.bin")


def test_an_empty_file_and_tensors_of_integers_are_refused(linear, tmp_path):
    with pytest.raises(PeftFormatError, match="holds no tensors"):
        load_peft({"fc": linear}, write_files(tmp_path, {}))
    tensors = {name: t.astype(np.int8) for name, t in lora_tensors("fc", 3, 4).items()}
    with pytest.raises(PeftFormatError, match="expected floating numbers, got int8"):
        load_peft({"fc": linear}, write_files(tmp_path, tensors))


def test_numbers_of_another_kind_are_no_bias(linear, tmp_path):
    layer = eqx.tree_at(lambda m: m.bias, linear, jnp.zeros(3, jnp.int8))
    tensors = lora_tensors("fc", 3, 4) | {f"{PREFIX}fc.bias": np.asarray([1.5, -3.7, 1e9], "f4")}
    with pytest.raises(PeftFormatError, match=r"has int8\[3\], the file has float32\[3\]"):
        load_peft({"fc": layer}, write_files(tmp_path, tensors, bias="lora_only"))


def test_two_arrays_of_one_path_are_not_both_replaced(linear, tmp_path):
    tensors = lora_tensors("fc", 3, 4) | {f"{PREFIX}fc.bias": np.ones(3, "f4")}
    model = {"fc": linear, "fc/bias": jnp.zeros(3)}
    with pytest.raises(SelectionError, match="Two arrays have the path 'fc/bias'"):
        load_peft(model, write_files(tmp_path, tensors, bias="lora_only"))


@pytest.mark.parametrize("index", [2, 3])
def test_a_bias_of_a_layer_that_a_stack_lacks_is_told(tmp_path, index):
    tensors = lora_tensors("0.fc", 3, 4) | lora_tensors("1.fc", 3, 4, seed=5)
    tensors |= {f"{PREFIX}{index}.fc.bias": np.ones(3, "f4")}
    folder = write_files(tmp_path, tensors, bias="lora_only")
    rename = {r"(\d+)/(.*)": r"\2[\1]"}
    with pytest.raises(PeftFormatError, match=rf"of which \[{index}\] is meant"):
        load_peft({"fc": stack_of(2)}, folder, rename=rename)
