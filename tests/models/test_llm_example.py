"""The recipe for a language model: killed and resumed, merged, generated from, written for PEFT."""

import ast
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ._example import EXAMPLES, load, skip_without

NAME = "llm_finetune"
EXAMPLE = EXAMPLES / f"{NAME}.py"


@pytest.fixture
def example(monkeypatch):
    skip_without(
        {
            "eqx-zoo": "eqx_zoo",
            "jno-lora-peft": "jno_lora_peft",
            "jno-lora-train": "jno_lora_train",
            "optax": "optax",
        }
    )
    module = load(NAME)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    monkeypatch.setattr(module, "LLAMA", dataclasses.replace(module.LLAMA, **small))
    monkeypatch.setattr(module, "LENGTH", 16)
    monkeypatch.setattr(module, "BATCH", 4)
    return module


@pytest.fixture
def data(example):
    model = example.CausalLM(example.LLAMA, key=jax.random.key(0), dtype=jnp.bfloat16)
    held_out, batches = np.split(example.load_text(), [2])
    return model, batches, held_out


def test_the_whole_script(example, data, tmp_path):
    from jno.lora import lora_report
    from jno_lora_peft import load_peft, save_peft

    results = example.main(["--quick"])
    adapted, plain, run = results["adapted"], results["plain"], results["run"]
    model, _, held_out = data

    # Seven linear layers in each block, none of them the output head; float32 around bfloat16.
    assert len(lora_report(adapted)) == 7 * 2 and type(adapted.lm_head) is eqx.nn.Linear
    assert adapted.model.layers[1].mlp.up_proj.lora_A.dtype == jnp.float32
    assert plain.model.layers[0].self_attn.q_proj.weight.dtype == jnp.bfloat16
    before = np.mean([float(example.loss(model, rows)) for rows in held_out])
    assert run.step == 80 and run.best_loss < before - 0.5

    # The merged model generates by its cache as it does without.
    ids = list(b"The following ")
    for token in results["answer"][:12]:
        logits, _ = plain(jnp.asarray(ids, jnp.int32))
        assert float(logits[-1, token]) >= float(logits[-1].max()) - 0.02
        ids.append(token)

    # Under PEFT's names, without a rename.
    assert results["files"] == ["adapter_config.json", "adapter_model.safetensors"]
    save_peft(adapted, tmp_path / "adapters")
    loaded = load_peft(model, tmp_path / "adapters")
    assert eqx.tree_equal(loaded, adapted)


def test_a_killed_run_ends_with_the_same_bits(example, data, tmp_path, monkeypatch):
    monkeypatch.setattr(example, "EVERY", 5)  # which ACCUMULATE does not divide
    whole, run = example.fine_tune(*data, tmp_path / "whole", steps=16, until=16)
    example.fine_tune(*data, tmp_path / "killed", steps=16, until=8)
    again, rerun = example.fine_tune(*data, tmp_path / "killed", steps=16, until=16)
    assert rerun.step == run.step == 16 and rerun.best_loss == run.best_loss
    assert eqx.tree_equal(rerun.state, run.state)
    assert eqx.tree_equal(again, whole)


def test_the_page_says_how_many_lines_the_recipe_takes():
    text = EXAMPLE.read_text()
    functions = {f.name: f for f in ast.parse(text).body if isinstance(f, ast.FunctionDef)}
    recipe = [functions[name] for name in ("loss", "blocks", "fine_tune")]
    lines = 3  # `save_peft`, `merge_lora` and `generate`
    for function in recipe:
        code = text.splitlines()[function.lineno - 1 : function.end_lineno]
        # Each has a docstring of one line.
        lines += sum(bool(line.strip()) for line in code) - 1
    page = (EXAMPLE.parents[1] / "docs" / "llm.md").read_text()
    assert f"takes {lines} lines of the script" in page
