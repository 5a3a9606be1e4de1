"""Adapters of other types than LoRA: what one file of PEFT has room for, and the odd cases."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.files import PREFIX, assert_same_weights, normal, trained

from jno.lora import SelectionError
from jno_lora_peft import load_peft
from jno_lora_peft.types.positions import normal as drawn, permuted

KEY = jax.random.key(0)
PLAIN = {
    "wide": eqx.nn.Linear(8, 6, key=KEY),
    "deep": eqx.nn.Linear(6, 8, use_bias=False, key=KEY),
    "conv": eqx.nn.Conv2d(2, 4, 3, key=KEY),
    "grouped": eqx.nn.Conv2d(4, 4, 3, groups=2, key=KEY),
}
EMBEDDING = eqx.nn.Embedding(7, 4, key=KEY)
STACK = {"fc": eqx.filter_vmap(lambda k: eqx.nn.Linear(4, 6, key=k))(jax.random.split(KEY, 2))}


def of(variant, *targets, **spec):
    return [{"target": target, "wrapper": variant, **spec} for target in targets]


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        (
            [*of("hra", "wide", rank=2), *of("hra", "deep", rank=4)],
            r"PEFT has one `r` for all layers of .*\n  - deep: 4\n  - wide: 2",
        ),
        (
            [*of("oft-in", "wide", rank=2), *of("oft-in", "deep", rank=3, options={"terms": 6})],
            "PEFT has one `use_cayley_neumann` for all layers",
        ),
        (
            [
                *of("supertuning", "wide", options={"count": 2}),
                *of("supertuning", "deep", options={"count": 9}),
            ],
            "no `sparsity` for all layers",
        ),
        (of("fourierft", "wide"), "Torch draws PEFT's positions by a seed"),
        (of("oft-in", "wide", rank=5), "PEFT's blocks divide the 8 inputs, unlike 5"),
        (of("hira", "grouped"), "convolutions without groups"),
        (of("miss", "conv"), "PEFT has adapters of this type for linear, not conv2d"),
        (of("ia3", "wide"), "use IA3Out"),
        (of("ia3-in", "conv"), "one factor for all of a channel in a kernel"),
        (of("c3a", "wide", options={"multiplier": 0.5}), "PEFT's type has no scale for it"),
        (of("randlora", "wide"), "bases are drawn for each layer"),
    ],
)
def test_adapters_that_do_not_fit_into_one_file_are_listed(specs, reason, unsaved):
    model = trained(PLAIN, specs=specs)
    if specs[0]["wrapper"] == "ia3-in":
        scale = model["conv"].scale.at[0].add(1.0)
        model = eqx.tree_at(lambda m: m["conv"].scale, model, scale)
    unsaved(reason, model)


@pytest.mark.parametrize(
    ("specs", "kind"),
    [
        ([*of("oft-in", "wide", rank=4), *of("oft-in", "deep", rank=3)], "OFT"),
        ([*of("delora", "wide", rank=3), *of("delora", "deep")], "DELORA"),
        (of("delora", "conv"), "LORA"),  # PEFT has it for linear layers alone
        (of("gralora", "wide", options={"multiplier": 0.5}), "GRALORA"),
        (of("vera-shared", "conv"), "LORA"),
        (of("vb-lora", "wide", options={"vector_length": 2}), "LORA"),  # PEFT's has no scale
        (of("vb-lora", "wide", alpha=1.0, options={"vector_length": 4}), "LORA"),
        (of("tied-lora", "wide", "deep"), "LORA"),
    ],
)
def test_the_type_of_a_file_follows_from_its_adapters(specs, kind, save, tmp_path):
    model = trained(PLAIN, specs=specs)
    assert save(model)[0]["peft_type"] == kind
    assert_same_weights(load_peft(PLAIN, tmp_path / "saved"), model)


@pytest.mark.parametrize("wrapper", ["miss", "vb-lora"])
def test_the_layers_of_a_stack_are_of_any_type(wrapper, save, tmp_path):
    options = {"vectors": 6, "vector_length": 2} if wrapper == "vb-lora" else {}
    model = trained(STACK, wrapper, alpha=1.0, options=options)
    config, tensors = save(model, rename={r"fc\[(\d+)\]": r"\1/fc"})
    if wrapper == "miss":
        assert tensors[f"{PREFIX}1.fc.miss_block"].shape == (2, 6)
    else:  # one bank for both
        assert config["topk"] == 2
        assert tensors["base_model.vblora_vector_bank"].shape == (6, 2)
    again = load_peft(STACK, tmp_path / "saved", rename={r"(\d+)/fc": r"fc[\1]"})
    assert eqx.tree_equal(again, model)


def test_bases_of_several_files_are_not_one_pair(save, unsaved, tmp_path):
    bases = {"wide": (normal(2, 6), normal(8, 6)), "deep": (normal(2, 6, seed=1), normal(8, 6))}
    specs = [*(of("randlora", name, options={"bases": own})[0] for name, own in bases.items())]
    unsaved("one 'randlora_A' for all layers", trained(PLAIN, specs=specs))
    specs[1]["options"] = specs[0]["options"]
    model = trained(PLAIN, specs=specs)
    assert save(model)[0]["peft_type"] == "RANDLORA"
    assert_same_weights(load_peft(PLAIN, tmp_path / "saved"), model)


def test_shared_matrices_are_read_whole_and_written_as_large_as_the_layers(save, tmp_path):
    model = trained(PLAIN, specs=of("vera-shared", "wide", "deep", "conv"))
    assert model["conv"].A.array.shape == (2, 18)
    linear = {**model, "conv": PLAIN["conv"]}
    config, tensors = save(linear)
    assert config["peft_type"] == "VERA" and config["save_projection"] is True
    assert config["bias"] == "none"
    assert tensors["base_model.vera_A"].shape == (2, 8)
    assert tensors["base_model.vera_B"].shape == (8, 2)
    again = load_peft(PLAIN, tmp_path / "saved")
    assert type(again["wide"]).__name__ == "VeRASharedLinear"
    assert np.array_equal(again["deep"].A.array, linear["deep"].A.array[:, :8])
    # The default alpha is 1 there, and `b` has the scale.
    assert np.allclose(again["wide"].b, 3 * linear["wide"].b)
    # A second file does not get the arrays of the first.
    save(trained(PLAIN, specs=of("vera-shared", "wide")))
    first = load_peft(PLAIN, tmp_path / "saved")
    save(trained(PLAIN, specs=of("vera-shared", "deep")))
    with pytest.raises(SelectionError, match="share an array 'vera-A' already"):
        load_peft(first, tmp_path / "saved")


def test_a_trained_array_is_not_taken_for_the_one_that_was_loaded(load, save, unsaved, tmp_path):
    bias = {f"{PREFIX}wide.beft_bias": normal(1, 6)}
    loaded = load(PLAIN, bias, peft_type="BEFT", target_modules=["wide"])
    assert np.allclose(loaded["wide"].bias - PLAIN["wide"].bias, normal(6), atol=1e-6)
    assert save(loaded)[0]["peft_type"] == "BEFT"
    moved = eqx.tree_at(lambda m: m["wide"].bias, loaded, loaded["wide"].bias + 1)
    unsaved("carries no adapters to save", moved)
    assert save(moved, modules_to_save="wide/bias")[0]["peft_type"] == "LN_TUNING"
    assert eqx.tree_equal(load_peft(PLAIN, tmp_path / "saved"), moved)


def test_rows_that_do_not_fit_are_told(refuse):
    tensors = {f"{PREFIX}embed.trainable_tokens_delta": normal(2, 4)}
    model, reason = {"embed": EMBEDDING}, "embed/weight: .* must be different rows of the 7"
    for rows in ([1, 9], [1, 1], [1], None):
        refuse(reason, model, tensors, peft_type="TRAINABLE_TOKENS", token_indices=rows)


def test_a_tied_head_sees_the_rows_that_were_trained(load):
    tensors = {f"{PREFIX}embed.trainable_tokens_delta": normal(2, 4, seed=1)}
    settings = {"peft_type": "TRAINABLE_TOKENS", "token_indices": [5, 0]}
    loaded = load({"embed": EMBEDDING, "head": EMBEDDING.weight}, tensors, **settings)
    assert np.array_equal(loaded["embed"].weight[jnp.array([5, 0])], normal(2, 4, seed=1))
    assert loaded["head"] is loaded["embed"].weight


def test_the_draws_are_those_of_torch():
    # torch.randperm(48, generator=torch.Generator().manual_seed(777))
    assert permuted(48, 6, 777).tolist() == [23, 22, 33, 26, 47, 16]
    assert permuted(6, 6, 3).tolist() == [4, 0, 3, 2, 1, 5]
    assert len(drawn(32, 42)) == 16
    assert sorted(permuted(5, 5, 1)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["LOHA", "LOKR"])
def test_updates_that_peft_runs_with_another_padding_are_refused(kind, load, refuse):
    parts = {"lokr_w1": (2, 1), "lokr_w2": (2, 2, 3)}
    if kind == "LOHA":
        parts = {"hada_w1_a": (4, 1), "hada_w1_b": (1, 6), "hada_w2_a": (4, 1), "hada_w2_b": (1, 6)}
    tensors = {f"{PREFIX}fc.{name}": normal(*shape) for name, shape in parts.items()}
    settings = {"peft_type": kind, "r": 1, "alpha": 1}
    dilated = eqx.nn.Conv1d(2, 4, 3, key=KEY, dilation=2)
    change = load({"fc": dilated}, tensors, **settings)["fc"].weight - dilated.weight
    assert np.abs(change).max() > 0.1
    circular = eqx.nn.Conv1d(2, 4, 3, key=KEY, padding_mode="CIRCULAR")
    refuse("padding_mode='CIRCULAR'", {"fc": circular}, tensors, **settings)
