"""The files that `load_peft` reads, and how it finds layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from peft_cases.files import PREFIX, lora_tensors, normal, stack_of, write_files

from jno.lora import (
    JnoLoraWarning,
    PeftFormatError,
    Registry,
    SelectionError,
    apply_lora,
    merge_lora,
)
from jno.lora.peft import load_peft
from jno_lora_zoo import LoRALinear, rsLoRALinear


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
    loaded = load_peft(model, write_files(tmp_path, tensors), tied=False, registry=ZooOnly())
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


def test_adapters_that_the_model_already_has_stay(linear, tmp_path):
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
