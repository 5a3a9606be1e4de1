"""Adapters of embeddings whose table an output head reads, as they are written for PEFT."""

import equinox as eqx
import jax
import numpy as np
import pytest
from peft_cases.files import PREFIX, read_files
from peft_cases.tied import IDS, TIED, adapted, close, moved, parts, reading

from jno.lora import (
    Net,
    PeftFormatError,
    SelectionError,
    apply_lora,
    lora_report,
)
from jno.lora.peft import load_peft, save_peft, untie

TABLE = np.asarray(parts()[0].weight)


@pytest.mark.parametrize("tied", [None, True])
def test_an_adapter_that_the_head_sees_is_written_so(tied, tmp_path):
    ours = adapted(reading(), "rsLoRAEmbedding")
    save_peft(ours, tmp_path, tied=tied)
    config, tensors = read_files(tmp_path)
    assert config["ensure_weight_tying"] is True
    assert config["target_modules"] == ["embed_tokens"]
    for one, other in (("lora_A", "embedding_B"), ("lora_B", "embedding_A")):
        mirrored = tensors[f"{PREFIX}lm_head.{one}.weight"].T
        assert np.array_equal(mirrored, tensors[f"{PREFIX}embed_tokens.lora_{other}"])
    assert eqx.tree_equal(load_peft(reading(), tmp_path), ours)


def test_a_shared_table_is_tied_whatever_the_caller_says(tmp_path):
    make, rename = TIED["shared"]
    plain = make()
    ours = adapted(plain)
    save_peft(ours, tmp_path, rename={"^shared/pytree/": ""}, tied=False)
    assert read_files(tmp_path)[0]["ensure_weight_tying"] is True
    assert eqx.tree_equal(load_peft(plain, tmp_path, rename=rename), ours)


def test_the_tied_head_has_the_scale_of_its_embedding(tmp_path):
    specs = [{"target": "embed", "rank": 1, "wrapper": "LoRAEmbedding"}, {"rank": 3}]
    model = {"lm": reading(), "b": reading().proj, "c": reading().proj}
    ours = moved(apply_lora(model, specs=specs, key=jax.random.key(0)))
    save_peft(ours, tmp_path)
    config, _ = read_files(tmp_path)
    assert config["r"] == 3
    assert config["rank_pattern"] == {r"^lm\.embed_tokens": 1, "^lm_head": 1}


@pytest.mark.parametrize(
    ("wrapper", "name", "tied", "reason"),
    [
        ("DoRAEmbedding", "embed_tokens", None, "a head may read the adapted table"),
        ("DoRAEmbedding", "embed_tokens", True, "a head reads the adapted table"),
        ("LoRAEmbedding", "wte", None, "say tied=False; if one does, `untie`"),
        ("LoRAEmbedding", "wte", True, "only for LoRA and rsLoRA on an embedding"),
    ],
)
def test_tables_that_peft_cannot_tie_are_refused(wrapper, name, tied, reason, tmp_path):
    ours, rename = adapted(reading(), wrapper), {"embed_tokens": name}
    with pytest.raises(PeftFormatError, match=reason):
        save_peft(ours, tmp_path, rename=rename, tied=tied)
    save_peft(ours, tmp_path, rename=rename, tied=False)
    assert read_files(tmp_path)[0]["ensure_weight_tying"] is False


@pytest.mark.parametrize("form", ["twice", "own head"])
def test_an_adapter_beside_an_untied_head_is_written_for_lookups_alone(form, tmp_path):
    ours = adapted(TIED[form][0]())
    save_peft(ours, tmp_path)
    config, tensors = read_files(tmp_path)
    assert config["ensure_weight_tying"] is False
    assert {name.split(".")[2] for name in tensors} == {"embed_tokens"}
    assert eqx.tree_equal(load_peft(TIED[form][0](), tmp_path), ours)


def test_a_hidden_layer_as_wide_as_the_vocabulary_is_not_taken_for_a_head(tmp_path):
    up, down = (eqx.nn.Linear(*sizes, key=jax.random.key(0)) for sizes in ((4, 7), (7, 4)))
    model = {"lm": adapted(reading()), "up": up, "down": down}
    save_peft(model, tmp_path, rename={"^lm/": ""})
    assert read_files(tmp_path)[0]["ensure_weight_tying"] is True
    save_peft({"lm": model["lm"], "up": up}, tmp_path, rename={"^lm/": ""})
    assert read_files(tmp_path)[0]["ensure_weight_tying"] is False


def test_lookups_are_trained_and_written_alone_once_they_are_untied(tmp_path):
    plain = untie(reading(), "embed_tokens")
    assert close(plain(IDS), reading()(IDS))
    net = Net(plain).freeze().lora(2, 3.0, target="embed_tokens", wrapper="DoRAEmbedding")
    assert [row.path for row in lora_report(net.module).rows] == ["embed_tokens/layer"]
    ours = moved(net.module)
    save_peft(ours, tmp_path)
    config, tensors = read_files(tmp_path)
    assert config["ensure_weight_tying"] is False and config["target_modules"] == ["embed_tokens"]
    assert {name.split(".")[2] for name in tensors} == {"embed_tokens"}
    for model in (reading(), plain):
        assert eqx.tree_equal(load_peft(model, tmp_path), ours)


@pytest.mark.parametrize(
    ("model", "path", "reason"),
    [
        (reading, "embed_token", "no layer 'embed_token'; the nearest are embed_tokens"),
        (reading, "proj", "is a Linear, and only a plain embedding"),
        (lambda: adapted(reading()), "embed_tokens", "is a LoRAEmbedding, and only a plain"),
        (lambda: untie(reading(), "embed_tokens"), "embed_tokens", "is a Untied"),
    ],
)
def test_only_a_plain_embedding_is_untied(model, path, reason):
    with pytest.raises(SelectionError, match=reason):
        untie(model(), path)
