"""Embeddings whose table an output head reads: who sees an adapter, against NumPy."""

import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.files import PREFIX, lora_tensors, moved, normal, trained

from jno.lora import Net, SelectionError, lora_report, merge_lora, unwrap_lora
from jno_lora_peft import Untied, load_peft, untie

ROWS, SIZE = 7, 4
IDS = jnp.array([3, 0, 6, 3])


class Reading(eqx.Module):
    """Reads `embed_tokens.weight` for its lookups and for its head."""

    embed_tokens: eqx.nn.Embedding
    proj: eqx.nn.Linear

    def __call__(self, ids):
        table = self.embed_tokens.weight
        return jax.vmap(self.proj)(table[ids]) @ table.T


class Sharing(eqx.Module):
    """Ties its head by `eqx.nn.Shared`; `owner` says which side keeps the weight."""

    shared: eqx.nn.Shared
    proj: eqx.nn.Linear

    def __call__(self, ids):
        layers = self.shared()
        x = jax.vmap(self.proj)(jax.vmap(layers["embed_tokens"])(ids))
        return jax.vmap(layers["lm_head"])(x)


class Holding(eqx.Module):
    """Has a head of its own, which may hold the very array of the embedding."""

    embed_tokens: eqx.nn.Embedding
    proj: eqx.nn.Linear
    lm_head: eqx.nn.Linear

    def __call__(self, ids):
        x = jax.vmap(self.proj)(jax.vmap(self.embed_tokens)(ids))
        return jax.vmap(self.lm_head)(x)


def parts():
    keys = jax.random.split(jax.random.key(0), 3)
    embedding = eqx.nn.Embedding(ROWS, SIZE, key=keys[0])
    head = eqx.nn.Linear(SIZE, ROWS, use_bias=False, key=keys[1])
    head = eqx.tree_at(lambda m: m.weight, head, embedding.weight)
    return embedding, eqx.nn.Linear(SIZE, SIZE, use_bias=False, key=keys[2]), head


def sharing(owner="embed_tokens"):
    embedding, proj, head = parts()
    other = {"embed_tokens": "lm_head", "lm_head": "embed_tokens"}[owner]
    pair = {"embed_tokens": embedding, "lm_head": head}
    shared = eqx.nn.Shared(pair, lambda p: p[other].weight, lambda p: p[owner].weight)
    return Sharing(shared, proj)


def reading():
    return Reading(*parts()[:2])


def holding(is_copy=False):
    embedding, proj, head = parts()
    if is_copy:
        head = eqx.tree_at(lambda m: m.weight, head, jnp.array(embedding.weight))
    return Holding(embedding, proj, head)


# By name: the model, and `rename` from PEFT's names.
TIED = {
    "indexes": (reading, None),
    "shared": (sharing, {"^embed_tokens": "shared/pytree/embed_tokens"}),
    "twice": (holding, None),
    "own head": (lambda: holding(is_copy=True), None),
}


def logits(lookups, head, proj=None):
    """The outputs of all these models, from the table of the lookups and that of the head."""
    proj = np.asarray(parts()[1].weight) if proj is None else proj
    return lookups[np.asarray(IDS)] @ proj.T @ head.T


def close(got, expected):
    return np.allclose(np.asarray(got), expected, rtol=1e-5, atol=1e-5)


def adapted(model, wrapper="LoRAEmbedding"):
    return trained(model, wrapper, target="embed_tokens")


TABLE = np.asarray(parts()[0].weight)
A, B = normal(2, ROWS), normal(SIZE, 2, seed=1)
# The update of the table with rank 2 and alpha 3.
UPDATE = 1.5 * (B @ A).T
BOTH = TABLE + UPDATE
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
WITH_HEAD = TARGETS | {"ensure_weight_tying": True}


@pytest.mark.parametrize("form", TIED)
def test_an_adapter_of_peft_acts_on_lookups_alone_unless_the_file_ties_the_head(form, load):
    make, rename = TIED[form]
    model = load(make(), EMBEDDING, rename=rename, **TARGETS)
    expected = logits(BOTH, TABLE)
    assert close(eqx.filter_jit(model)(IDS), expected)
    # Merged, the head still has the plain table, and so has everything if the adapter goes.
    assert close(merge_lora(model)(IDS), expected)
    assert close(unwrap_lora(model)(IDS), logits(TABLE, TABLE))
    model = load(make(), EMBEDDING | HEAD, rename=rename, **WITH_HEAD)
    assert close(model(IDS), logits(BOTH, BOTH))
    assert close(merge_lora(model)(IDS), logits(BOTH, BOTH))
    # A head of its own carries the adapter that the file has for it.
    classes = [row.wrapper.__name__ for row in lora_report(model).rows]
    heads = ["LoRALinear"] if form in ("twice", "own head") else []
    assert classes == ["LoRAEmbedding", *heads]


@pytest.mark.parametrize(
    ("change", "config", "reason"),
    [
        ({f"{PREFIX}lm_head.lora_B.weight": normal(ROWS, 2)}, {}, "its tensors, rank or"),
        ({}, {"alpha_pattern": {"embed_tokens": 5}}, "or alpha differ from 'embed_tokens'"),
        ({}, {"rank_pattern": {"lm_head": 5}}, "rank or alpha differ from 'embed_tokens'"),
        ({}, {"use_dora": True}, "PEFT scales its rows"),
    ],
)
def test_a_tied_head_that_differs_is_refused(change, config, reason, refuse):
    tensors = EMBEDDING | HEAD | change
    refuse(f"lm_head: .*{reason}.*a head of its own", reading(), tensors, **WITH_HEAD, **config)


def test_an_adapter_of_the_head_alone_is_refused_if_lookups_would_see_it(refuse, unsaved):
    tensors, targets = lora_tensors("lm_head", ROWS, SIZE), {"target_modules": ["lm_head"]}
    options = {**targets, "rename": {"^lm_head": "shared/pytree/lm_head"}}
    reason = "lm_head: other layers read its weight through"
    refuse(reason, sharing("lm_head"), tensors, **options)
    refuse(r"No module of the file.*\n  - lm_head: ", reading(), tensors, **targets)
    ours = trained(sharing("lm_head"), target="lm_head")
    unsaved(r"LoRALinear\): other layers read its weight", ours)


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_saved_table_is_for_lookups_unless_the_file_ties_it(
    is_tied, load, save, refuse, tmp_path
):
    new = normal(ROWS, SIZE, seed=5)
    tensors = {f"{PREFIX}embed_tokens.weight": new} | lora_tensors("proj", SIZE, SIZE)
    tensors |= {f"{PREFIX}lm_head.weight": new} if is_tied else {}
    config = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": is_tied}
    model = load(reading(), tensors, **config)
    proj = np.asarray(merge_lora(model).proj.weight)
    assert close(model(IDS), logits(new, new if is_tied else TABLE, proj))
    assert save(model, tied=is_tied)[0]["modules_to_save"] == ["embed_tokens"]
    assert close(load_peft(reading(), tmp_path / "saved")(IDS), model(IDS))
    if is_tied:
        other = tensors | {f"{PREFIX}lm_head.weight": TABLE}
        refuse("lm_head: its tensors", reading(), other, **config)


@pytest.mark.parametrize("form", ["indexes", "shared", "own head"])
def test_a_table_that_peft_writes_beside_its_adapter_is_for_both_sides(form, load, save, tmp_path):
    new = normal(ROWS, SIZE, seed=5)
    (make, rename), name = TIED[form], f"{PREFIX}embed_tokens.base_layer.weight"
    model = load(make(), EMBEDDING | {name: new}, rename=rename, **TARGETS)
    # A copy in a head is one that the model trains apart.
    assert close(model(IDS), logits(new + UPDATE, TABLE if form == "own head" else new))
    back = {"shared/pytree/": ""} if rename else None
    assert np.array_equal(save(model, rename=back)[1][name], new)
    assert close(load_peft(make(), tmp_path / "saved", rename=rename)(IDS), model(IDS))
    # The same numbers leave the arrays of the model as they are.
    model = make()
    loaded = load(model, EMBEDDING | {name: TABLE}, rename=rename, **TARGETS)
    arrays = {id(array) for array in jax.tree.leaves(loaded)}
    assert {id(array) for array in jax.tree.leaves(model)} <= arrays


def test_an_ambiguous_use_of_a_tied_table_is_refused(load):
    table = load(reading(), EMBEDDING, **TARGETS).embed_tokens.weight
    assert (table.shape, table.ndim, len(table), table.dtype) == ((7, 4), 2, 7, jnp.float32)
    assert close(table[2], BOTH[2]) and close(table[-1], BOTH[-1])
    assert close(table[IDS[:, None]], BOTH[np.asarray(IDS)][:, None])
    assert close(table @ jnp.ones(SIZE), TABLE.sum(1)) and close(table.mT, TABLE.T)
    half = table.astype(jnp.bfloat16)
    assert half[IDS].dtype == half.T.dtype == jnp.bfloat16
    for read_it in (
        lambda: jnp.take(table, IDS, axis=0),
        lambda: jnp.ones(ROWS) @ table,
        lambda: table[:3],
        lambda: table[True],
        lambda: list(table),
        lambda: np.asarray(table),
        lambda: np.ones(ROWS) @ table,
    ):
        with pytest.raises(TypeError, match=r"(?s)this could be either.*tied=False"):
            read_it()
    plain = load(reading(), EMBEDDING, tied=False, **TARGETS)
    assert close(jnp.take(plain.embed_tokens.weight, IDS, axis=0), BOTH[IDS])


def test_a_file_with_the_table_fits_a_model_that_is_untied_already(load, refuse):
    tensors = EMBEDDING | {f"{PREFIX}embed_tokens.base_layer.weight": TABLE}
    plain = untie(reading(), "embed_tokens")
    assert eqx.tree_equal(load(plain, tensors, **TARGETS), load(reading(), tensors, **TARGETS))
    refuse("lm_head: the file ties it to 'embed_tokens'", plain, EMBEDDING | HEAD, **WITH_HEAD)


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
def test_a_file_without_its_head_is_tied_if_peft_would_tie_it(config, is_seen, load):
    tensors = {name.replace("embed", "lm.embed", 1): x for name, x in EMBEDDING.items()}
    model = load({"lm": reading()}, tensors, ensure_weight_tying=True, **config)["lm"]
    assert close(model(IDS), logits(BOTH, BOTH if is_seen else TABLE))


def test_a_tied_dora_without_its_head_is_refused(load, refuse):
    tensors = EMBEDDING | {f"{PREFIX}embed_tokens.lora_magnitude_vector": normal(SIZE)}
    config = {**WITH_HEAD, "use_dora": True}
    refuse(r"with magnitudes of its own\. If no head reads", reading(), tensors, **config)
    loaded = load(reading(), tensors, tied=False, **config)
    assert type(loaded.embed_tokens).__name__ == "DoRAEmbedding"


class Configured(eqx.Module):
    embed_tokens: eqx.nn.Embedding
    config: types.SimpleNamespace | None = eqx.field(static=True)


def test_an_embedding_in_two_places_does_not_tell_of_a_head(load):
    model = {name: Configured(parts()[0], None) for name in ("encoder", "decoder")}
    model["encoder"] = model["decoder"]
    loaded = load(model, EMBEDDING, rename={"^embed": "decoder/embed"}, **TARGETS)
    assert type(loaded["decoder"].embed_tokens) is Untied
    assert type(loaded["encoder"].embed_tokens) is eqx.nn.Embedding


@pytest.mark.parametrize("flag", [False, True])
def test_a_model_with_a_flag_says_itself_whether_it_is_tied(flag, load, save):
    model = Configured(parts()[0], types.SimpleNamespace(tie_word_embeddings=flag))
    assert save(adapted(model))[0]["ensure_weight_tying"] is flag
    loaded = load(model, EMBEDDING, **TARGETS)
    assert (type(loaded.embed_tokens) is Untied) is flag


# --- writing


@pytest.mark.parametrize(
    ("form", "tied", "is_tied"),
    [
        ("indexes", None, True),
        ("indexes", True, True),
        ("shared", False, True),  # whatever the caller says
        ("twice", None, False),
        ("own head", None, False),
    ],
)
def test_an_adapter_that_the_head_sees_is_written_so(form, tied, is_tied, save, tmp_path):
    make, rename = TIED[form]
    plain = make()
    ours = adapted(plain, "rsLoRAEmbedding")
    config, tensors = save(ours, rename={"^shared/pytree/": ""}, tied=tied)
    assert config["ensure_weight_tying"] is is_tied
    assert config["target_modules"] == ["embed_tokens"]
    for one, other in (("lora_A", "embedding_B"), ("lora_B", "embedding_A")) if is_tied else ():
        mirrored = tensors[f"{PREFIX}lm_head.{one}.weight"].T
        assert np.array_equal(mirrored, tensors[f"{PREFIX}embed_tokens.lora_{other}"])
    assert len(tensors) == (4 if is_tied else 2)
    assert eqx.tree_equal(load_peft(plain, tmp_path / "saved", rename=rename), ours)


def test_the_tied_head_has_the_scale_of_its_embedding(save):
    specs = [{"target": "embed", "rank": 1, "wrapper": "LoRAEmbedding"}, {"rank": 3}]
    model = {"lm": reading(), "b": reading().proj, "c": reading().proj}
    config, _ = save(trained(model, specs=specs))
    assert config["r"] == 3
    assert config["rank_pattern"] == {r"^lm\.embed_tokens": 1, "^lm_head": 1}


@pytest.mark.parametrize(
    ("wrapper", "name", "tied", "reason"),
    [
        ("DoRAEmbedding", "embed_tokens", None, "a head may read the adapted table"),
        ("LoRAEmbedding", "wte", True, "a head reads the adapted table"),
    ],
)
def test_tables_that_peft_cannot_tie_are_refused(wrapper, name, tied, reason, save, unsaved):
    ours, rename = adapted(reading(), wrapper), {"embed_tokens": name}
    unsaved(reason, ours, rename=rename, tied=tied)
    assert save(ours, rename=rename, tied=False)[0]["ensure_weight_tying"] is False


def test_a_hidden_layer_as_wide_as_the_vocabulary_is_not_taken_for_a_head(save):
    up, down = (eqx.nn.Linear(*sizes, key=jax.random.key(0)) for sizes in ((4, 7), (7, 4)))
    model, rename = {"lm": adapted(reading()), "up": up}, {"^lm/": ""}
    assert save(model, rename=rename)[0]["ensure_weight_tying"] is False
    assert save({**model, "down": down}, rename=rename)[0]["ensure_weight_tying"] is True


def test_lookups_are_trained_and_written_alone_once_they_are_untied(save, tmp_path):
    plain = untie(reading(), "embed_tokens")
    assert close(plain(IDS), reading()(IDS))
    net = Net(plain).freeze().lora(2, 3.0, target="embed_tokens", wrapper="DoRAEmbedding")
    assert [row.path for row in lora_report(net.module).rows] == ["embed_tokens/layer"]
    ours = moved(net.module)
    config, tensors = save(ours)
    assert config["ensure_weight_tying"] is False and config["target_modules"] == ["embed_tokens"]
    assert {name.split(".")[2] for name in tensors} == {"embed_tokens"}
    for model in (reading(), plain):
        assert eqx.tree_equal(load_peft(model, tmp_path / "saved"), ours)


def test_only_a_plain_embedding_is_untied():
    with pytest.raises(SelectionError, match="'embed_token' is not one of embed_tokens"):
        untie(reading(), "embed_token")
    for model in (adapted(reading()), untie(reading(), "embed_tokens")):
        with pytest.raises(SelectionError, match=r"is (LoRAEmbedding|Untied), and only a plain"):
            untie(model, "embed_tokens")
