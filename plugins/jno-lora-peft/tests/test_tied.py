"""Embeddings whose table an output head reads: who sees an adapter, against NumPy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.files import PREFIX, lora_tensors, normal, read_files, write_files
from peft_cases.tied import (
    IDS,
    ROWS,
    SIZE,
    TIED,
    adapted,
    close,
    holding,
    logits,
    moved,
    parts,
    reading,
    sharing,
)

from jno.lora import (
    PeftFormatError,
    apply_lora,
    lora_report,
    lora_trainable_filter,
    merge_lora,
    unwrap_lora,
)
from jno.lora.peft import Untied, load_peft, save_peft, untie

TABLE = np.asarray(parts()[0].weight)
A, B = normal(2, ROWS), normal(SIZE, 2, seed=1)
# The update of the table with rank 2 and alpha 3.
UPDATE = 1.5 * (B @ A).T
EMBEDDING = {
    f"{PREFIX}embed_tokens.lora_embedding_A": A,
    f"{PREFIX}embed_tokens.lora_embedding_B": B,
}
# The arrays that PEFT writes once more if it ties the head.
HEAD = {
    f"{PREFIX}lm_head.lora_A.weight": np.ascontiguousarray(B.T),
    f"{PREFIX}lm_head.lora_B.weight": np.ascontiguousarray(A.T),
}
TARGETS = {"target_modules": ["embed_tokens"]}


class Config(eqx.Module):
    tie_word_embeddings: bool = eqx.field(static=True)


class Configured(eqx.Module):
    embed_tokens: eqx.nn.Embedding
    config: Config | None


@pytest.mark.parametrize("form", TIED)
def test_an_adapter_of_peft_acts_on_lookups_alone(form, tmp_path):
    make, rename = TIED[form]
    model = load_peft(make(), write_files(tmp_path, EMBEDDING, **TARGETS), rename=rename)
    expected = logits(TABLE + UPDATE, TABLE)
    assert close(model(IDS), expected)
    assert close(eqx.filter_jit(model)(IDS), expected)
    # Merged, the head still has the plain table, and so has everything if the adapter goes.
    assert close(merge_lora(model)(IDS), expected)
    assert close(unwrap_lora(model)(IDS), logits(TABLE, TABLE))


@pytest.mark.parametrize("form", ["indexes", "calls", "shared"])
def test_the_head_sees_the_adapter_if_the_file_ties_it(form, tmp_path):
    make, rename = TIED[form]
    folder = write_files(tmp_path, EMBEDDING | HEAD, **TARGETS, ensure_weight_tying=True)
    model = load_peft(make(), folder, rename=rename)
    both = TABLE + UPDATE
    assert close(model(IDS), logits(both, both))
    assert close(merge_lora(model)(IDS), logits(both, both))
    assert [row.wrapper.__name__ for row in lora_report(model).rows] == ["LoRAEmbedding"]


@pytest.mark.parametrize("form", ["twice", "own head"])
def test_a_head_of_its_own_carries_the_adapter_that_the_file_has_for_it(form, tmp_path):
    folder = write_files(tmp_path, EMBEDDING | HEAD, **TARGETS, ensure_weight_tying=True)
    model = load_peft(TIED[form][0](), folder)
    assert close(model(IDS), logits(TABLE + UPDATE, TABLE + UPDATE))
    assert {row.path for row in lora_report(model).rows} == {"embed_tokens", "lm_head"}


@pytest.mark.parametrize(
    ("change", "config", "reason"),
    [
        (
            {f"{PREFIX}lm_head.lora_B.weight": normal(ROWS, 2)},
            {},
            "its tensors differ from the tensors of 'embed_",
        ),
        (
            {},
            {"alpha_pattern": {"embed_tokens": 5}},
            "it and 'embed_.*' have rank 2 with alpha 3 and rank 2 with alpha 5",
        ),
        ({}, {"use_dora": True}, "PEFT scales its rows"),
    ],
)
def test_a_tied_head_that_differs_is_refused(change, config, reason, tmp_path):
    tensors = EMBEDDING | HEAD | change
    folder = write_files(tmp_path, tensors, **TARGETS, ensure_weight_tying=True, **config)
    with pytest.raises(PeftFormatError, match=f"lm_head: {reason}.*a head of its own"):
        load_peft(reading(), folder)


def test_an_adapter_of_the_head_alone_is_refused_if_lookups_would_see_it(tmp_path):
    tensors = lora_tensors("lm_head", ROWS, SIZE)
    folder = write_files(tmp_path, tensors, target_modules=["lm_head"])
    rename = {"^lm_head": "shared/pytree/lm_head"}
    with pytest.raises(PeftFormatError, match=r"lm_head: other layers read its weight through"):
        load_peft(sharing("lm_head"), folder, rename=rename)
    with pytest.raises(PeftFormatError, match=r"No module of the file.*\n  - lm_head: "):
        load_peft(reading(), folder)
    ours = moved(apply_lora(sharing("lm_head"), 2, 3.0, target="lm_head", key=jax.random.key(0)))
    with pytest.raises(PeftFormatError, match=r"LoRALinear\): other layers read its weight"):
        save_peft(ours, tmp_path / "new")


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_saved_table_is_that_of_lookups_unless_the_file_ties_it(is_tied, tmp_path):
    new = normal(ROWS, SIZE, seed=5)
    tensors = {f"{PREFIX}embed_tokens.weight": new} | lora_tensors("proj", SIZE, SIZE)
    tensors |= {f"{PREFIX}lm_head.weight": new} if is_tied else {}
    config = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": is_tied}
    model = load_peft(reading(), write_files(tmp_path, tensors, **config))
    proj = np.asarray(merge_lora(model).proj.weight)
    assert close(model(IDS), logits(new, new if is_tied else TABLE, proj))
    # And again.
    save_peft(model, tmp_path / "again", tied=is_tied)
    again = load_peft(reading(), tmp_path / "again")
    assert close(again(IDS), model(IDS))
    assert read_files(tmp_path / "again")[0]["modules_to_save"] == ["embed_tokens"]


@pytest.mark.parametrize("form", TIED)
def test_a_table_that_peft_writes_beside_its_adapter_is_that_of_both_sides(form, tmp_path):
    new = normal(ROWS, SIZE, seed=5)
    make, rename = TIED[form]
    base = {f"{PREFIX}embed_tokens.base_layer.weight": new}
    model = load_peft(make(), write_files(tmp_path, EMBEDDING | base, **TARGETS), rename=rename)
    # A copy in a head is one that the model trains apart.
    assert close(model(IDS), logits(new + UPDATE, TABLE if form == "own head" else new))
    back = {"shared/pytree/": ""} if rename else None
    save_peft(model, tmp_path / "again", rename=back)
    written = read_files(tmp_path / "again")[1]
    assert np.array_equal(written[f"{PREFIX}embed_tokens.base_layer.weight"], new)
    assert close(load_peft(make(), tmp_path / "again", rename=rename)(IDS), model(IDS))
    same = {f"{PREFIX}embed_tokens.base_layer.weight": TABLE}
    model = make()
    loaded = load_peft(model, write_files(tmp_path, EMBEDDING | same, **TARGETS), rename=rename)
    arrays = {id(array) for array in jax.tree.leaves(loaded)}
    assert {id(array) for array in jax.tree.leaves(model)} <= arrays


def test_an_ambiguous_use_of_a_tied_table_is_refused(tmp_path):
    folder = write_files(tmp_path, EMBEDDING, **TARGETS)
    table = load_peft(reading(), folder).embed_tokens.weight
    assert (table.shape, table.ndim, table.size, table.dtype) == ((7, 4), 2, 28, jnp.float32)
    assert close(table[2], (TABLE + UPDATE)[2]) and close(table[-1], (TABLE + UPDATE)[-1])
    assert close(table[IDS[:, None]], (TABLE + UPDATE)[np.asarray(IDS)][:, None])
    assert close(table @ jnp.ones(SIZE), TABLE.sum(1)) and close(table.mT, TABLE.T)
    half = table.astype(jnp.bfloat16)
    assert half[IDS].dtype == half.T.dtype == jnp.bfloat16
    for read_it in (
        lambda: jnp.take(table, IDS, axis=0),
        lambda: jnp.einsum("rs,s->r", table, jnp.ones(SIZE)),
        lambda: jnp.ones(ROWS) @ table,
        lambda: table[:3],
    ):
        with pytest.raises(TypeError, match=r"(?s)this could be either.*tied=False"):
            read_it()
    plain = load_peft(reading(), folder, tied=False)
    assert close(jnp.take(plain.embed_tokens.weight, IDS, axis=0), (TABLE + UPDATE)[IDS])


def test_a_file_with_the_table_fits_a_model_that_is_untied_already(tmp_path):
    base = {f"{PREFIX}embed_tokens.base_layer.weight": TABLE}
    folder = write_files(tmp_path, EMBEDDING | base, **TARGETS)
    plain = untie(reading(), "embed_tokens")
    assert eqx.tree_equal(load_peft(plain, folder), load_peft(reading(), folder))
    folder = write_files(tmp_path, EMBEDDING | HEAD, **TARGETS, ensure_weight_tying=True)
    with pytest.raises(PeftFormatError, match="lm_head: the file ties it to 'embed_tokens'"):
        load_peft(plain, folder)


@pytest.mark.parametrize(
    ("config", "is_seen"),
    [
        (TARGETS, True),
        ({"target_modules": ".*embed_tokens"}, True),
        # PEFT looks for a target that is the short name of an embedding.
        ({"target_modules": r"lm\.embed_tokens"}, False),
        (TARGETS | {"modules_to_save": ["other.lm_head"]}, False),
    ],
)
def test_a_file_without_its_head_is_tied_if_peft_would_tie_it(config, is_seen, tmp_path):
    tensors = {
        name.replace("embed_tokens", "lm.embed_tokens"): tensor
        for name, tensor in EMBEDDING.items()
    }
    folder = write_files(tmp_path, tensors, **config, ensure_weight_tying=True)
    model = load_peft({"lm": reading()}, folder)["lm"]
    head = TABLE + UPDATE if is_seen else TABLE
    assert close(model(IDS), logits(TABLE + UPDATE, head))


def test_a_tied_dora_without_its_head_is_refused(tmp_path):
    tensors = EMBEDDING | {f"{PREFIX}embed_tokens.lora_magnitude_vector": normal(SIZE)}
    folder = write_files(tmp_path, tensors, **TARGETS, use_dora=True, ensure_weight_tying=True)
    with pytest.raises(PeftFormatError, match=r"with magnitudes of its own\. If no head reads"):
        load_peft(reading(), folder)
    assert type(load_peft(reading(), folder, tied=False).embed_tokens).__name__ == "DoRAEmbedding"


def test_an_embedding_in_two_places_does_not_tell_of_a_head(tmp_path):
    embedding = parts()[0]
    model = {"encoder": Configured(embedding, None), "decoder": Configured(embedding, None)}
    rename = {"^embed": "decoder/embed"}
    loaded = load_peft(model, write_files(tmp_path, EMBEDDING, **TARGETS), rename=rename)
    assert type(loaded["decoder"].embed_tokens) is Untied
    assert type(loaded["encoder"].embed_tokens) is eqx.nn.Embedding


def test_a_table_of_numpy_may_be_tied_too(tmp_path):
    model = eqx.tree_at(lambda m: m.embed_tokens.weight, reading(), TABLE)
    loaded = load_peft(model, write_files(tmp_path, EMBEDDING, **TARGETS))
    assert close(loaded.embed_tokens.weight.T, TABLE.T)


@pytest.mark.parametrize("flag", [False, True])
def test_a_model_with_a_flag_says_itself_whether_it_is_tied(flag, tmp_path):
    model = Configured(parts()[0], Config(flag))
    save_peft(adapted(model), tmp_path)
    assert read_files(tmp_path)[0]["ensure_weight_tying"] is flag
    loaded = load_peft(model, write_files(tmp_path, EMBEDDING, **TARGETS))
    assert (type(loaded.embed_tokens) is Untied) is flag


def test_gradients_reach_the_adapter_through_lookups_alone(tmp_path):
    model = load_peft(reading(), write_files(tmp_path, EMBEDDING, **TARGETS))
    trains, rest = eqx.partition(model, lora_trainable_filter(model))

    def loss(trains):
        return jnp.sum(eqx.combine(trains, rest)(IDS) ** 2)

    grads = jax.jit(jax.grad(loss))(trains)
    rows = np.abs(np.asarray(grads.embed_tokens.layer.lora_A)).sum(0)
    assert np.array_equal(np.flatnonzero(rows), [0, 3, 6])  # a head would reach every row


def test_a_copy_in_a_head_is_another_array():
    model = holding()
    assert model.lm_head.weight is model.embed_tokens.weight


@pytest.mark.parametrize("use", [list, np.asarray])
def test_a_table_is_neither_iterated_nor_made_an_array(use):
    model = {"embed_tokens": eqx.nn.Embedding(5, 3, key=jax.random.key(0))}
    weight = untie(model, "embed_tokens")["embed_tokens"].weight
    assert len(weight) == 5
    with pytest.raises(TypeError, match=r"Write `weight\[ids\]`"):
        use(weight)


def test_an_untied_table_of_numpy_is_looked_up():
    table = eqx.nn.Embedding(5, 3, key=jax.random.key(0))
    model = {"embed_tokens": eqx.tree_at(lambda e: e.weight, table, np.asarray(table.weight))}
    untied = untie(model, "embed_tokens")["embed_tokens"]
    assert np.array_equal(untied.weight[np.array([1, 2])], table.weight[1:3])
