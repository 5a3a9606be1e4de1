"""Adapters of other types than LoRA: what one file of PEFT has room for, and the odd cases."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.files import PREFIX, normal, read_files, write_files

import jno.lora
from jno.lora import PeftFormatError, SelectionError, apply_lora, lora_trainable_filter, merge_lora
from jno.lora.peft import load_peft, save_peft
from jno_lora_peft.types._positions import normal as drawn, permuted

KEY = jax.random.key(0)
PLAIN = {
    "wide": eqx.nn.Linear(8, 6, key=KEY),
    "deep": eqx.nn.Linear(6, 8, use_bias=False, key=KEY),
    "conv": eqx.nn.Conv2d(2, 4, 3, key=KEY),
    "grouped": eqx.nn.Conv2d(4, 4, 3, groups=2, key=KEY),
}


def trained(specs, **options):
    model = apply_lora(PLAIN, 2, 3.0, key=KEY, specs=specs, **options)
    trains, rest = eqx.partition(model, lora_trainable_filter(model))
    return eqx.combine(jax.tree.map(lambda a: a + 0.3, trains), rest)


def of(variant, *targets, **spec):
    return [{"target": target, "wrapper": variant, **spec} for target in targets]


def assert_same(one, other):
    for a, b in zip(
        jax.tree.leaves(merge_lora(one)), jax.tree.leaves(merge_lora(other)), strict=True
    ):
        assert np.allclose(a, b, rtol=1e-5, atol=1e-5)


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
            [*of("gralora", "wide", rank=2), *of("gralora", "deep", rank=2, options={"k": 1})],
            "one `gralora_k` for all layers",
        ),
        (
            [
                *of("supertuning", "wide", options={"count": 2}),
                *of("supertuning", "deep", options={"count": 9}),
            ],
            "no `sparsity` for all layers",
        ),
        (of("fourierft", "wide"), "Torch draws PEFT's positions by a seed"),
        (of("waveft", "wide"), "Torch draws PEFT's positions by a seed"),
        (of("oft-in", "wide", rank=5), "PEFT's blocks divide the 8 inputs, unlike 5"),
        (of("boft", "wide", rank=6), "2 blocks of 6 are not the 8 inputs"),
        (of("hira", "grouped"), "convolutions without groups"),
        (of("miss", "conv"), "PEFT has adapters of this type for linear, and this is conv2d"),
        (of("ia3", "wide"), "use IA3Out"),
        (of("ia3-in", "conv"), "one factor for all of a channel in a kernel"),
        (of("c3a", "wide", options={"multiplier": 0.5}), "PEFT's type has no scale for it"),
        (of("randlora", "wide", "deep"), "bases are drawn for each layer"),
    ],
)
def test_adapters_that_do_not_fit_into_one_file_are_listed(specs, reason, tmp_path):
    model = trained(specs)
    if specs[0]["target"] == "conv" and specs[0]["wrapper"] == "ia3-in":
        scale = model["conv"].scale.at[0].add(1.0)
        model = eqx.tree_at(lambda m: m["conv"].scale, model, scale)
    with pytest.raises(PeftFormatError, match=reason):
        save_peft(model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("specs", "kind"),
    [
        ([*of("oft-in", "wide", rank=4), *of("oft-in", "deep", rank=3)], "OFT"),
        (of("ia3-in", "wide", "conv", "grouped") + of("ia3-out", "deep"), "IA3"),
        ([*of("hira", "wide"), *of("hira", "deep", "conv")], "HIRA"),
        ([*of("delora", "wide", rank=3), *of("delora", "deep")], "DELORA"),
        (of("delora", "conv"), "LORA"),  # PEFT has it for linear layers alone
        (of("psoft", "wide"), "LORA"),
        (of("gralora", "wide", options={"multiplier": 0.5}), "GRALORA"),
        (of("adalora", "wide", "deep"), "ADALORA"),
        (of("boft", "wide", rank=4, options={"factors": 2}), "BOFT"),
        (of("vera-shared", "wide", "deep"), "VERA"),
        (of("vera-shared", "conv"), "LORA"),  # PEFT has it for linear layers alone
        (of("vb-lora", "wide", "deep", alpha=1.0, options={"vector_length": 2}), "VBLORA"),
        (of("vb-lora", "wide", options={"vector_length": 2}), "LORA"),  # PEFT's has no scale
        (of("vb-lora", "wide", alpha=1.0, options={"vector_length": 4}), "LORA"),
        (of("tied-lora", "wide", "deep"), "LORA"),
    ],
)
def test_the_type_of_a_file_follows_from_its_adapters(specs, kind, tmp_path):
    model = trained(specs)
    save_peft(model, tmp_path)
    assert read_files(tmp_path)[0]["peft_type"] == kind
    assert_same(load_peft(PLAIN, tmp_path), model)


def test_the_layers_of_a_stack_are_of_any_type(tmp_path):
    stack = {"fc": eqx.filter_vmap(lambda k: eqx.nn.Linear(4, 4, key=k))(jax.random.split(KEY, 2))}
    model = apply_lora(stack, 2, 2.0, key=KEY, wrapper="miss")
    model = eqx.tree_at(lambda m: m["fc"].D, model, jnp.asarray(normal(2, 2, 4)))
    save_peft(model, tmp_path, rename={r"fc\[(\d+)\]": r"\1/fc"})
    assert read_files(tmp_path)[1][f"{PREFIX}1.fc.miss_block"].shape == (2, 4)
    again = load_peft(stack, tmp_path, rename={r"(\d+)/fc": r"fc[\1]"})
    assert_same(again, model)


def test_bases_of_several_files_are_not_one_pair(tmp_path):
    bases = {"wide": (normal(2, 6), normal(8, 6)), "deep": (normal(2, 6, seed=1), normal(8, 6))}
    specs = [
        {"target": name, "wrapper": "randlora", "options": {"bases": own}}
        for name, own in bases.items()
    ]
    with pytest.raises(PeftFormatError, match="one 'randlora_A' for all layers"):
        save_peft(trained(specs), tmp_path)
    specs[1]["options"] = specs[0]["options"]
    save_peft(trained(specs), tmp_path)
    assert read_files(tmp_path)[0]["peft_type"] == "RANDLORA"
    assert_same(load_peft(PLAIN, tmp_path), trained(specs))


def test_shared_matrices_are_read_whole_and_written_as_large_as_the_layers(tmp_path):
    model = trained([*of("vera-shared", "wide", "deep"), *of("vera-shared", "conv")])
    assert model["conv"].A.array.shape == (2, 18)
    linear = {**model, "conv": PLAIN["conv"]}
    save_peft(linear, tmp_path)
    config, tensors = read_files(tmp_path)
    assert tensors["base_model.vera_A"].shape == (2, 8)
    assert tensors["base_model.vera_B"].shape == (8, 2)
    assert config["save_projection"] is True and config["bias"] == "none"
    again = load_peft(PLAIN, tmp_path)
    assert jno.lora.lora_report(again).rows[0].wrapper.__name__ == "VeRASharedLinear"
    assert np.array_equal(again["deep"].A.array, linear["deep"].A.array[:, :8])
    # The default alpha is 1 there, and `b` has the scale.
    assert np.allclose(again["wide"].b, 3 * linear["wide"].b)


def test_matrices_of_two_models_are_not_one_pair(tmp_path):
    parts = [
        apply_lora(PLAIN, 2, key=jax.random.key(n), wrapper="vera-shared", target=name)
        for n, name in enumerate(("wide", "deep"))
    ]
    with pytest.raises(PeftFormatError, match=r"one 'base_model\.vera_A' for all layers"):
        save_peft({"wide": parts[0]["wide"], "deep": parts[1]["deep"]}, tmp_path)


def test_a_second_file_does_not_get_the_arrays_of_the_first(tmp_path):
    for name in ("wide", "deep"):
        save_peft(trained(of("vera-shared", name)), tmp_path / name)
    first = load_peft(PLAIN, tmp_path / "wide")
    with pytest.raises(SelectionError, match="share an array 'vera-A' already"):
        load_peft(first, tmp_path / "deep")


def test_layers_of_a_stack_share_a_bank(tmp_path):
    stack = {"fc": eqx.filter_vmap(lambda k: eqx.nn.Linear(4, 6, key=k))(jax.random.split(KEY, 2))}
    options = {"vectors": 6, "vector_length": 2}
    model = apply_lora(stack, 2, 1.0, key=KEY, wrapper="vb-lora", options=options)
    trains, rest = eqx.partition(model, lora_trainable_filter(model))
    model = eqx.combine(jax.tree.map(lambda a: a + normal(*a.shape), trains), rest)
    save_peft(model, tmp_path, rename={r"fc\[(\d+)\]": r"\1/fc"})
    config, tensors = read_files(tmp_path)
    assert config["peft_type"] == "VBLORA" and config["topk"] == 2
    assert tensors["base_model.vblora_vector_bank"].shape == (6, 2)
    again = load_peft(stack, tmp_path, rename={r"(\d+)/fc": r"fc[\1]"})
    assert eqx.tree_equal(again, model)


def test_a_trained_array_is_not_taken_for_the_one_that_was_loaded(tmp_path):
    tensors = {f"{PREFIX}wide.beft_bias": normal(1, 6)}
    folder = write_files(tmp_path, tensors, peft_type="BEFT")
    loaded = load_peft(PLAIN, folder)
    assert np.allclose(loaded["wide"].bias - PLAIN["wide"].bias, normal(6), atol=1e-6)
    save_peft(loaded, tmp_path / "again")
    assert read_files(tmp_path / "again")[0]["peft_type"] == "BEFT"
    moved = eqx.tree_at(lambda m: m["wide"].bias, loaded, loaded["wide"].bias + 1)
    with pytest.raises(PeftFormatError, match="carries no adapters to save"):
        save_peft(moved, tmp_path / "moved")
    save_peft(moved, tmp_path / "moved", modules_to_save="wide/bias")
    assert read_files(tmp_path / "moved")[0]["peft_type"] == "LN_TUNING"
    assert eqx.tree_equal(load_peft(PLAIN, tmp_path / "moved"), moved)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([1, 9], "are not different rows of its 7"),
        ([1, 1], "are not different rows of its 7"),
        ([1], r"where rows \[1\] are meant"),
        (None, "whose rows the settings name"),
    ],
)
def test_rows_that_do_not_fit_are_told(rows, reason, tmp_path):
    model = {"embed": eqx.nn.Embedding(7, 4, key=KEY)}
    tensors = {f"{PREFIX}embed.trainable_tokens_delta": normal(2, 4)}
    folder = write_files(tmp_path, tensors, peft_type="TRAINABLE_TOKENS", token_indices=rows)
    with pytest.raises(PeftFormatError, match=reason):
        load_peft(model, folder)


def test_a_tied_head_sees_the_rows_that_were_trained(tmp_path):
    table = jnp.asarray(normal(7, 4))
    embedding = eqx.tree_at(lambda m: m.weight, eqx.nn.Embedding(7, 4, key=KEY), table)
    tensors = {f"{PREFIX}embed.trainable_tokens_delta": normal(2, 4, seed=1)}
    folder = write_files(tmp_path, tensors, peft_type="TRAINABLE_TOKENS", token_indices=[5, 0])
    loaded = load_peft({"embed": embedding, "head": table}, folder)
    assert np.array_equal(loaded["embed"].weight[jnp.array([5, 0])], normal(2, 4, seed=1))
    assert loaded["head"] is loaded["embed"].weight


def test_singular_values_that_are_close_leave_the_start_open(tmp_path):
    layer = eqx.tree_at(lambda m: m.weight, PLAIN["wide"], jnp.eye(6, 8))
    tensors = {
        f"{PREFIX}fc.lora_A.weight": normal(2, 8),
        f"{PREFIX}fc.lora_B.weight": normal(6, 2),
    }
    for start, reason in {
        "pissa": "the singular values 2 and 3 of its weight are so close",
        "pissa_niter_4": "the singular values 2 and 3",
    }.items():
        folder = write_files(tmp_path, tensors, init_lora_weights=start)
        with pytest.raises(PeftFormatError, match=reason):
            load_peft({"fc": layer}, folder)
    layer = eqx.tree_at(lambda m: m.weight, PLAIN["wide"], jnp.ones((6, 8)))
    folder = write_files(tmp_path, tensors, init_lora_weights="olora")
    with pytest.raises(PeftFormatError, match="the first 2 columns of its weight are so close"):
        load_peft({"fc": layer}, folder)


def test_the_draws_are_those_of_torch():
    # torch.randperm(48, generator=torch.Generator().manual_seed(777))
    assert permuted(48, 6, 777).tolist() == [23, 22, 33, 26, 47, 16]
    assert permuted(6, 6, 3).tolist() == [4, 0, 3, 2, 1, 5]
    assert len(drawn(32, 42)) == 16
    assert sorted(permuted(5, 5, 1)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "is_held"), [({"dilation": 2}, True), ({"padding_mode": "CIRCULAR"}, False)]
)
@pytest.mark.parametrize("kind", ["LOHA", "LOKR"])
def test_updates_that_peft_runs_with_another_padding_are_refused(kind, options, is_held, tmp_path):
    layer = eqx.nn.Conv1d(2, 4, 3, key=KEY, **options)
    parts = {"lokr_w1": (2, 1), "lokr_w2": (2, 2, 3)}
    if kind == "LOHA":
        parts = {"hada_w1_a": (4, 1), "hada_w1_b": (1, 6), "hada_w2_a": (4, 1), "hada_w2_b": (1, 6)}
    tensors = {f"{PREFIX}fc.{name}": normal(*shape) for name, shape in parts.items()}
    folder = write_files(tmp_path, tensors, peft_type=kind, r=1, alpha=1)
    if is_held:
        assert_differ(load_peft({"fc": layer}, folder)["fc"].weight, layer.weight)
    else:
        with pytest.raises(PeftFormatError, match="padding_mode='CIRCULAR'"):
            load_peft({"fc": layer}, folder)


def assert_differ(one, other):
    assert one.shape == other.shape
    assert np.abs(one - other).max() > 0.1
