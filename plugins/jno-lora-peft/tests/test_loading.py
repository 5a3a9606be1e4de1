"""The files that `load_peft` reads, how it finds layers, and what it says of damaged files."""

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
    merge_lora,
)
from jno_lora_peft import load_peft
from jno_lora_zoo import LoRALinear

KEY = jax.random.key(0)
FC = lora_tensors("fc", 3, 4)


def update(tensors, module, scale):
    A, B = (tensors[f"{PREFIX}{module}.lora_{name}.weight"] for name in "AB")
    return scale * (B @ A)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_lora_becomes_lora_with_its_own_numbers_in_float32(dtype, linear, load):
    tensors = {name: t.astype(dtype) for name, t in FC.items()}
    adapter = load({"fc": linear}, tensors)["fc"]
    assert type(adapter) is LoRALinear
    assert (adapter.rank, adapter.alpha) == (2, 3.0)
    assert adapter.lora_A.dtype == jnp.float32
    assert np.array_equal(adapter.lora_A, tensors[f"{PREFIX}fc.lora_A.weight"])
    assert adapter.base.weight is linear.weight


def test_a_rank_beyond_the_layers_is_held_with_the_rank_of_the_layer(linear, load):
    tensors = lora_tensors("fc", 3, 4, rank=7)
    model = load({"fc": linear}, tensors, r=7)
    assert model["fc"].rank == 3
    expected = linear.weight + update(tensors, "fc", 3 / 7)
    assert np.allclose(merge_lora(model)["fc"].weight, expected, rtol=1e-5)


def test_saved_modules_take_the_place_of_the_models_in_its_dtype(linear, load):
    conv = eqx.nn.Conv2d(2, 3, (1, 2), key=KEY)
    weight, bias, kernel = normal(3, 4), normal(3), normal(3, 2, 1, 2)
    tensors = FC | {
        f"{PREFIX}head.weight": weight,
        f"{PREFIX}head.modules_to_save.bias": bias,
        f"{PREFIX}head.original_module.bias": normal(3, seed=1),
        f"{PREFIX}conv.weight": kernel,
        f"{PREFIX}conv.bias": bias,
    }
    head = jax.tree.map(lambda a: a.astype(jnp.bfloat16), linear)
    model = {"fc": linear, "head": head, "conv": conv}
    model = load(model, tensors, modules_to_save=["head", "conv"])
    assert model["head"].weight.dtype == jnp.bfloat16
    assert np.array_equal(model["head"].weight, weight.astype(jnp.bfloat16))
    assert np.array_equal(model["head"].bias, bias.astype(jnp.bfloat16))
    assert np.array_equal(model["conv"].weight, kernel)
    assert np.array_equal(model["conv"].bias, bias.reshape(3, 1, 1))


def test_a_saved_weight_of_another_shape_is_refused(refuse):
    head = eqx.nn.Linear(4, 1, key=KEY)
    reason = r"head/weight: the model has float32\[1, 4\], the"
    for shape in ((4, 1), (4,), (1, 4, 1)):
        refuse(reason, {"head": head}, {f"{PREFIX}head.weight": normal(*shape)})


def test_layers_that_the_configuration_names_and_the_file_lacks_are_listed(linear, load, refuse):
    model = {
        "layers": [{"fc": linear, "out": linear, "drop": eqx.nn.Dropout()} for _ in range(2)],
        "head": linear,
    }
    half = lora_tensors("layers.0.fc", 3, 4) | lora_tensors("layers.1.fc", 3, 4)
    settings = {"target_modules": ["fc", "out", "drop"], "modules_to_save": ["head", "score"]}
    message = refuse(r"layers\.0\.out: target_modules names it", model, half, **settings)
    assert "layers.1.out" in message and "head: modules_to_save names it" in message
    assert ".fc" not in message and "drop" not in message and "score" not in message
    head = {f"{PREFIX}head.weight": normal(3, 4), f"{PREFIX}head.bias": normal(3)}
    for targets in ({"target_modules": ["fc"]}, {"target_modules": r".*\.fc"}):
        load(model, half | head, **settings | targets)
    # One layer of one kind is missing, also of those that a number selects.
    del half[f"{PREFIX}layers.1.fc.lora_A.weight"], half[f"{PREFIX}layers.1.fc.lora_B.weight"]
    refuse(r"layers\.1\.fc: target_modules", model, half, target_modules=["fc"])
    load(model, half, target_modules=["fc"], layers_to_transform=[0], layers_pattern="layers")


def test_numbers_that_are_not_finite_are_loaded_with_a_warning(linear, load):
    tensors = lora_tensors("fc", 3, 4)
    tensors[f"{PREFIX}fc.lora_B.weight"][1, 0] = np.nan
    with pytest.warns(JnoLoraWarning, match=r"fc\.lora_B\.weight: 1 of 6 numbers"):
        model = load({"fc": linear}, tensors)
    assert jnp.isnan(model["fc"].lora_B[1, 0])


class ZooOnly(Registry):
    def resolve(self, name):
        assert name.startswith("jno-lora-zoo:"), f"{name!r} was looked for among all plugins"
        return super().resolve(name)


def test_for_the_layers_that_peft_knows_no_other_plugin_is_loaded(linear, tmp_path):
    embedded = {
        f"{PREFIX}embed.lora_embedding_{x}": normal(*s) for x, s in (("A", (2, 7)), ("B", (4, 2)))
    }
    model = {"fc": linear, "embed": eqx.nn.Embedding(7, 4, key=KEY)}
    folder = write_files(tmp_path, FC | embedded)
    loaded = load_peft(model, folder, tied=False, registry=ZooOnly())
    assert {type(layer).__name__ for layer in loaded.values()} == {"LoRALinear", "LoRAEmbedding"}


def test_a_kronecker_product_of_large_ranks_takes_no_more_than_the_layer(linear, load):
    rank = 100_000
    parts = {"w1_a": (1, rank), "w1_b": (rank, 2), "w2_a": (3, rank), "w2_b": (rank, 2)}
    tensors = {f"{PREFIX}fc.lokr_{name}": normal(*shape) for name, shape in parts.items()}
    model = load({"fc": linear}, tensors, peft_type="LOKR", r=rank, alpha=rank)
    a1, b1, a2, b2 = tensors.values()
    change = merge_lora(model)["fc"].weight - linear.weight
    assert np.allclose(change, np.kron(a1 @ b1, a2 @ b2), rtol=1e-4)


def test_adapters_lie_on_the_mesh_of_their_layers(load):
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))
    layer = eqx.nn.Linear(4, 6, key=KEY)
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    layer = jax.tree.map(lambda a: jax.device_put(a, sharding), layer)
    tensors = lora_tensors("fc", 6, 4) | {f"{PREFIX}fc.lora_B.bias": normal(6)}
    model = load([layer], tensors, lora_bias=True, rename={"fc": "0"})
    assert model[0].lora_B.sharding.spec[0] == "x"
    assert model[0].base.bias.sharding == layer.bias.sharding
    assert np.allclose(model[0].base.bias, layer.bias + 1.5 * normal(6))


# --- names


def test_a_table_or_a_function_says_where_a_module_is_here(linear, load):
    tensors = lora_tensors("model.encoder.layers.0.mlp.fc", 3, 4)
    table = {"^model/": "", "encoder/": "", r"layers/(\d+)/mlp": r"blocks/\1"}
    function = lambda name: name.replace("model.encoder.layers", "blocks").replace(".mlp", "")  # noqa: E731
    for rename in (table, function):
        model = load({"blocks": [{"fc": linear}]}, tensors, rename=rename)
        assert isinstance(model["blocks"][0]["fc"], LoRALinear)
    with pytest.raises(SelectionError, match="pattern '\\(' of `rename` is bad"):
        load({"blocks": [{"fc": linear}]}, tensors, rename={"(": ""})


def test_the_layers_of_a_stack_are_named_by_their_index(load, refuse):
    tensors = lora_tensors("layers.1.fc", 3, 4, seed=5) | lora_tensors("layers.0.fc", 3, 4)
    rename = {r"layers/(\d+)/(.*)": r"layers/\2[\1]"}
    plain = {"layers": {"fc": stack_of(2)}}
    model = load(plain, tensors, rename=rename)
    change = merge_lora(model)["layers"]["fc"].weight - plain["layers"]["fc"].weight
    for i in range(2):
        assert np.allclose(change[i], update(tensors, f"layers.{i}.fc", 1.5), atol=1e-5)
    three = {"layers": {"fc": stack_of(3)}}
    message = refuse("a stack of 3 layers", three, tensors, rename=rename)
    assert "2: not in the file" in message
    alphas = {"alpha_pattern": {"0.fc": 9}}
    refuse("need one rank and alpha, but these have", plain, tensors, rename=rename, **alphas)


@pytest.mark.parametrize(
    ("config", "targeted"),
    [
        ({"target_modules": "all-linear"}, True),
        ({"target_modules": None}, True),
        ({"target_modules": ["c"]}, False),
        ({"target_modules": r".*\.0\.fc"}, True),
        ({"target_modules": r".*\.1\.fc"}, False),
        ({"exclude_modules": r".*\.0\..*"}, False),
        ({"exclude_modules": ["blocks.1.fc"]}, True),
        ({"target_modules": ["fc"], "layers_to_transform": 0}, True),
        ({"target_modules": ["fc"], "layers_to_transform": [1, 2]}, False),
        ({"target_modules": ["fc"], "layers_to_transform": [0], "layers_pattern": "blocks"}, True),
        # The number of the layer is the last group.
        ({"layers_to_transform": [0], "layers_pattern": "(?P<index>b)locks"}, True),
        ({"target_modules": ["fc"], "layers_to_transform": [0], "layers_pattern": ["rows"]}, False),
        ({"modules_to_save": ["blocks"]}, False),
    ],
)
def test_which_modules_are_meant(config, targeted, linear, load, refuse):
    tensors = lora_tensors("model.blocks.0.fc", 3, 4)
    model = {"model": {"blocks": [{"fc": linear}]}}
    if targeted:
        assert type(load(model, tensors, **config)["model"]["blocks"][0]["fc"]) is LoRALinear
    else:
        refuse("does not target it", model, tensors, **config)


# --- configurations and damaged files


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "PSOFT"}, "whose signs are not in the file(.|\n)*merge_and_unload"),
        ({"peft_type": "NEW"}, "no adapter of jno.lora computes the same"),
        ({"lora_alpha": "16"}, "lora_alpha is '16', not a number"),
        ({"target_modules": "("}, "not a valid regular expression"),
        ({"layer_replication": [[0, 2]]}, "layers of the model are copied"),
        ({"init_lora_weights": "loftq"}, "takes something out of the layer's weight"),
    ],
)
def test_an_unsupported_configuration_says_why(config, reason, linear, refuse):
    refuse(reason, {"fc": linear}, FC, **config)


def test_a_setting_that_the_type_lacks_in_peft_warns(linear, load):
    with pytest.warns(JnoLoraWarning, match="sets 'lora_aplha', which PEFT 0.21 does not have"):
        load({"fc": linear}, FC, lora_aplha=False)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_damaged_files_are_named(name, linear, tmp_path):
    path = write_files(tmp_path, FC) / name
    path.write_bytes(b"\xff" * 20)
    for reason in ("not JSON|not a safetensors file", "No such file"):
        with pytest.raises(PeftFormatError, match=reason) as error:
            load_peft({"fc": linear}, tmp_path)
        assert str(path) in str(error.value)
        path.unlink(missing_ok=True)


def test_pickles_empty_files_and_tensors_of_integers_are_refused(linear, tmp_path, refuse):
    refuse("holds no tensors", {"fc": linear}, {})
    integers = {name: t.astype(np.int8) for name, t in FC.items()}
    refuse("expected floating numbers, got int8", {"fc": linear}, integers)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(PeftFormatError, match="a pickle, which can run any program"):
        load_peft({"fc": linear}, tmp_path)
    with pytest.raises(PeftFormatError, match="is not a directory"):
        load_peft({"fc": linear}, tmp_path / "adapter_model.bin")


# --- adapters that do not fit the model: all reasons at once


def test_when_nothing_matches_both_sides_are_shown(linear, refuse):
    model = {"layers": [{"q_proj": linear, "k_proj": linear}]}
    tensors = lora_tensors("model.layers.0.q_proj", 3, 4)
    message = refuse("No module of the file is in the model", model, tensors)
    assert "- model.layers.0.q_proj: the model has no such layer" in message
    assert "'layers/0/q_proj'" in message and 'rename={"^model/": ""}' in message


class Computed(eqx.Module):
    weight: jax.Array = eqx.field(default_factory=lambda: jnp.ones((3, 4)))
    half_bias: jax.Array = eqx.field(default_factory=lambda: jnp.ones(3))
    in_features: int = eqx.field(static=True, default=4)
    out_features: int = eqx.field(static=True, default=3)

    @property
    def bias(self):
        return 2 * self.half_bias

    def __call__(self, x):
        return self.weight @ x + self.bias


def test_everything_that_does_not_fit_is_listed_at_once(linear, refuse):
    model = {
        **dict.fromkeys(("good", "not_meant", "first"), linear),
        "small": eqx.nn.Linear(4, 2, key=KEY),
        "carries": LoRALinear(linear, 1, 1.0, key=KEY),
        "attention": eqx.nn.MultiheadAttention(2, 4, key=KEY),
        "norm": eqx.nn.WeightNorm(linear),
        "rows": stack_of(2),
        "computed": Computed(),
        "up": eqx.nn.ConvTranspose1d(2, 2, 3, key=KEY),
        "whole": eqx.tree_at(lambda m: m.bias, linear, jnp.zeros(3, jnp.int8)),
    }
    tensors = {}
    for name in (*(model.keys() - {"norm", "up", "whole"}), "norm.layer", "oops", "second"):
        tensors |= lora_tensors(name, 3, 4)
    del tensors[f"{PREFIX}good.lora_A.weight"]
    tensors[f"{PREFIX}good.lora_C"] = normal(1)
    tensors[f"{PREFIX}small.bias"] = normal(7)
    tensors |= {f"{PREFIX}{name}.bias": normal(3) for name in ("carries", "computed", "whole")}
    tensors[f"{PREFIX}up.weight"] = normal(2, 2, 3)
    message = refuse(
        "does not fit", model, tensors, exclude_modules=["not_meant"], rename={"second": "first"}
    )
    for line in (
        "good: lora_A.weight: missing",
        "good/lora_C: the Linear has no such array",
        "small/bias: the model has float32[2], the file has float32[7]",
        "small: lora_B.weight: expected shape (2, 2), got (3, 2)",
        "carries: its layer carries a LoRALinear already",
        "carries: the file replaces arrays of this layer",
        "attention: it is a MultiheadAttention; PEFT's tensors fit",
        "norm.layer: its layer is inside the norm at 'norm'",
        "not_meant: adapter_config.json does not target it",
        "rows: the model has a stack of 2 layers there",
        "computed/bias: the Computed has no such array",
        "up/weight: Torch lays out the kernel",
        "it stands for the same layer as",
        "whole/bias: the model has int8[3], the file has float32[3]",
        "oops: the model has no such layer; the nearest are",
        "Nothing was loaded.",
    ):
        assert line in message


def test_a_bias_that_the_file_adds_to_must_be_there(refuse, linear):
    tensors = FC | {f"{PREFIX}fc.lora_B.bias": normal(3)}
    refuse("the Computed holds no such array", {"fc": Computed()}, tensors, lora_bias=True)
    scalar = eqx.tree_at(lambda m: m.bias, linear, jnp.zeros(()))
    refuse(r"fc/bias: the model has float32\[\]", {"fc": scalar}, tensors, lora_bias=True)


def test_convolutions_that_peft_computes_otherwise_are_refused(refuse):
    shapes = {"lora_A.weight": (2, 3, 3), "lora_B.weight": (4, 2, 1)}
    tensors = {f"{PREFIX}conv.{name}": normal(*shape) for name, shape in shapes.items()}
    circular = {"padding_mode": "CIRCULAR", "padding": 1}
    for options, reason in ((circular, "'CIRCULAR'"), ({"dilation": 2}, r"dilation=\(2,\)")):
        refuse(reason, {"conv": eqx.nn.Conv1d(3, 4, 3, key=KEY, **options)}, tensors)


def test_a_layer_that_a_stack_lacks_is_told(linear, refuse):
    tensors = lora_tensors("0.fc", 3, 4) | lora_tensors("1.fc", 3, 4, seed=5)
    tensors |= {f"{PREFIX}2.fc.bias": np.ones(3, "f4")}
    rename = {r"(\d+)/(.*)": r"\2[\1]"}
    refuse(r"here for \[2\]", {"fc": stack_of(2)}, tensors, rename=rename)
    refuse("one layer there, not a stack", {"fc": linear}, FC, rename={"fc": "fc[3]"})
