"""Files of adapters that depend on the input, against their laws in NumPy: aLoRA, Lily, Poly."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.files import PREFIX, normal, read_files, write_files

from jno.lora import PeftFormatError, apply_lora, resolve
from jno.lora.peft import load_peft, save_peft
from jno_lora_routed import average_over, with_invocation, with_task

IN, OUT, R = 4, 6, 2
KEY = jax.random.key(0)
PLAIN = {name: eqx.nn.Linear(IN, OUT, key=KEY) for name in ("q", "v")}
X = normal(5, IN, seed=9)
TOKENS = jnp.asarray([7, 3, 7, 3, 1])


def tensors_of(module, seed=0, **shapes):
    names = enumerate(shapes.items(), seed)
    return {f"{PREFIX}{module}.{n.replace('__', '.')}": normal(*s, seed=k) for k, (n, s) in names}


def updates(model, name):
    """What the adapter adds for each token of `X`, which are on one axis of `vmap`."""
    batch = jax.vmap(lambda x: model[name](x) - PLAIN[name](x), axis_name="tokens")
    return batch(jnp.asarray(X))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def assert_written(model, folder, tensors, **settings):
    save_peft(model, folder)
    config, again = read_files(folder)
    assert settings.items() <= config.items()
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(again[name], tensor, atol=1e-6)


def test_alora_acts_from_the_last_invocation_on(tmp_path):
    tensors = tensors_of("q", lora_A__weight=(R, IN), lora_B__weight=(OUT, R))
    config = {"alora_invocation_tokens": [7, 3], "use_rslora": True}
    model = load_peft(PLAIN, write_files(tmp_path, tensors, **config))
    A, B = tensors.values()
    invoked = with_invocation(model, TOKENS)
    expected = 3 / np.sqrt(R) * X @ A.T @ B.T
    np.testing.assert_allclose(updates(invoked, "q")[2:], expected[2:], atol=1e-5)
    assert not updates(invoked, "q")[:2].any()
    save_peft(invoked, tmp_path / "again")
    config, again = read_files(tmp_path / "again")
    assert config["alora_invocation_tokens"] == [7, 3]
    assert config["task_type"] == "CAUSAL_LM"  # PEFT looks for the invocation nowhere else
    assert not config["use_rslora"]
    assert config["lora_alpha"] == pytest.approx(3 * np.sqrt(R))
    assert all(np.array_equal(again[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(PeftFormatError, match="CAUSAL_LM alone"):
        save_peft(invoked, tmp_path / "again", task_type="SEQ_CLS")


def test_poly_mixes_the_skills_of_a_task(tmp_path):
    tensors = tensors_of(
        "q",
        poly_lora_A=(2, 3, IN // 2, R),
        poly_lora_B=(2, 3, R, OUT // 2),
        poly_router__module_logits=(4, 6),
    )
    counts = {"n_tasks": 4, "n_skills": 3, "n_splits": 2}
    model = load_peft(PLAIN, write_files(tmp_path, tensors, peft_type="POLY", **counts))
    A, B, logits = tensors.values()
    w = 1 / (1 + np.exp(-logits[2].reshape(2, 3)))
    w /= w.sum(-1, keepdims=True)
    A, B = np.einsum("qs,qsdr->qdr", w, A), np.einsum("qs,qsrd->qrd", w, B)
    expected = X @ A.reshape(IN, R) @ B.swapaxes(0, 1).reshape(R, OUT) / R
    np.testing.assert_allclose(updates(with_task(model, 2), "q"), expected, atol=1e-5)
    assert_written(model, tmp_path / "again", tensors, peft_type="POLY", **counts)


def lily_file(folder, **config):
    tensors = {}
    for n, name in enumerate(PLAIN):
        shapes = {"lily_A__weight": (R, IN), "lily_B__weight": (3 * R, OUT)}
        tensors |= tensors_of(name, 7 * n, **shapes, lily_router__weight=(3, R))
    return tensors, write_files(folder, tensors, peft_type="LILY", scaling=0.5, **config)


def test_lily_averages_its_weights_over_the_tokens(tmp_path):
    tensors, folder = lily_file(tmp_path, num_B=3)
    loaded = load_peft(PLAIN, folder)
    model = resolve(average_over(loaded, "tokens"))
    for name in PLAIN:
        A, B, gate = (t for n, t in tensors.items() if n.startswith(f"{PREFIX}{name}."))
        h = X @ A.T
        mixed = np.einsum("e,eio->io", softmax(h @ gate.T).mean(0), B.reshape(3, R, OUT))
        np.testing.assert_allclose(updates(model, name), 0.5 * h @ mixed, atol=1e-5)
    assert_written(loaded, tmp_path / "again", tensors, num_B=3, scaling=0.5)


def test_layers_of_lily_with_equal_factors_share_an_array(tmp_path):
    tensors, _ = lily_file(tmp_path)
    tensors[f"{PREFIX}v.lily_B.weight"] = tensors[f"{PREFIX}q.lily_B.weight"]
    folder = write_files(tmp_path, tensors, peft_type="LILY", scaling=0.5)
    model = load_peft(PLAIN, folder)
    assert model["q"].lora_B.name == model["v"].lora_B.name


@pytest.mark.parametrize("targets", [["q", "v"], "q|v"])
def test_zeros_are_shared_by_the_targets_and_not_by_their_values(targets, tmp_path):
    tensors, _ = lily_file(tmp_path)
    for name in PLAIN:
        tensors[f"{PREFIX}{name}.lily_B.weight"] = np.zeros((3 * R, OUT), np.float32)
    folder = write_files(tmp_path, tensors, peft_type="LILY", target_modules=targets)
    model = load_peft(PLAIN, folder)
    is_shared = model["q"].lora_B.name == model["v"].lora_B.name
    assert is_shared == isinstance(targets, str)


def test_a_stack_of_zeros_is_read_back_as_one_group(tmp_path):
    stack = {
        "q": eqx.filter_vmap(lambda key: eqx.nn.Linear(IN, OUT, key=key))(jax.random.split(KEY, 2))
    }
    model = apply_lora(stack, R, key=KEY, wrapper="lily")
    save_peft(model, tmp_path, rename={r"q\[(\d)\]": r"layers/\1/q"})
    assert read_files(tmp_path)[0]["target_modules"] == ["layers.0.q", "layers.1.q"]
    again = load_peft(stack, tmp_path, rename={r"layers/(\d)/q": r"q[\1]"})
    assert again["q"].lora_B.name == model["q"].lora_B.name


def test_misfits_are_told(tmp_path):
    tensors, _ = lily_file(tmp_path)
    for name, message in (("q.lily_B.weight", "expected"), ("q.lily_A.weight", "lily_A")):
        less = {n: t for n, t in tensors.items() if n != PREFIX + name}
        with pytest.raises(PeftFormatError, match=message):
            load_peft(PLAIN, write_files(tmp_path, less, peft_type="LILY"))
    wide = {**tensors, f"{PREFIX}q.lily_B.weight": normal(3 * R, OUT + 1)}
    with pytest.raises(PeftFormatError, match=r"lily_B\.weight: expected \(2 times n, 6\)"):
        load_peft(PLAIN, write_files(tmp_path, wide, peft_type="LILY"))
    poly = tensors_of("q", poly_lora_A=(IN, R))
    with pytest.raises(PeftFormatError, match="poly_lora_A: missing, or without 4 axes"):
        load_peft(PLAIN, write_files(tmp_path, poly, peft_type="POLY"))
    lora = tensors_of("q", lora_A__weight=(R, IN), lora_B__weight=(OUT, R))
    dora = lora | {f"{PREFIX}q.lora_magnitude_vector.weight": normal(OUT)}
    words = {"use_dora": (dora, "plain LoRA"), "init_lora_weights": (lora, "before the invocation")}
    for setting, (file, message) in words.items():
        config = {"alora_invocation_tokens": [1], setting: "olora"}
        with pytest.raises(PeftFormatError, match=message):
            load_peft(PLAIN, write_files(tmp_path, file, **config))
    with pytest.raises(PeftFormatError, match="alora_invocation_tokens is 'go', not list"):
        load_peft(PLAIN, write_files(tmp_path, lora, alora_invocation_tokens="go"))


def test_arrays_that_peft_cannot_share_are_not_written(tmp_path):
    _, folder = lily_file(tmp_path)
    model = load_peft(PLAIN, folder)
    with pytest.raises(PeftFormatError, match="share their factors"):
        save_peft(model, tmp_path / "again", rename={"^q": "v/v/v", "^v$": "v/v"})
    with pytest.raises(PeftFormatError, match="as one regular expression"):
        save_peft(model, tmp_path / "again", rename=lambda path: path)
    other = apply_lora(PLAIN, R, key=KEY, wrapper="lily", options={"experts": 1})
    with pytest.raises(PeftFormatError, match="at least 2 factors"):
        save_peft(resolve(other), tmp_path / "again")
