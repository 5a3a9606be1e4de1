"""Files of adapters that depend on the input, against their laws in NumPy: aLoRA, Lily, Poly."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.files import PREFIX, normal

from jno.lora import apply_lora, resolve
from jno_lora_peft import load_peft
from jno_lora_routed import average_over, with_invocation, with_task

IN, OUT, R = 4, 6, 2
KEY = jax.random.key(0)
PLAIN = {name: eqx.nn.Linear(IN, OUT, key=KEY) for name in ("q", "v")}
X = normal(5, IN, seed=9)


def tensors_of(module, seed=0, **shapes):
    names = enumerate(shapes.items(), seed)
    return {f"{PREFIX}{module}.{n.replace('__', '.')}": normal(*s, seed=k) for k, (n, s) in names}


LORA = tensors_of("q", lora_A__weight=(R, IN), lora_B__weight=(OUT, R))
LILY = {}
for n, name in enumerate(PLAIN):
    shapes = {"lily_A__weight": (R, IN), "lily_B__weight": (3 * R, OUT)}
    LILY |= tensors_of(name, 7 * n, **shapes, lily_router__weight=(3, R))
LILY_SETTINGS = {"peft_type": "LILY", "scaling": 0.5}


def updates(model, name):
    """What the adapter adds for each token of `X`, which are on one axis of `vmap`."""
    batch = jax.vmap(lambda x: model[name](x) - PLAIN[name](x), axis_name="tokens")
    return batch(jnp.asarray(X))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def assert_written(written, tensors, **settings):
    config, again = written
    assert settings.items() <= config.items()
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(again[name], tensor, atol=1e-6)


def test_alora_acts_from_the_last_invocation_on(load, save, unsaved):
    model = load(PLAIN, LORA, alora_invocation_tokens=[7, 3], use_rslora=True, target_modules=["q"])
    A, B = LORA.values()
    invoked = with_invocation(model, jnp.asarray([7, 3, 7, 3, 1]), axis="tokens")
    expected = 3 / np.sqrt(R) * X @ A.T @ B.T
    np.testing.assert_allclose(updates(invoked, "q")[2:], expected[2:], atol=1e-5)
    assert not updates(invoked, "q")[:2].any()
    # PEFT looks for the invocation in this task alone.
    settings = {"alora_invocation_tokens": [7, 3], "task_type": "CAUSAL_LM", "use_rslora": False}
    written = save(invoked)
    assert_written(written, LORA, **settings)
    assert written[0]["lora_alpha"] == pytest.approx(3 * np.sqrt(R))
    unsaved("CAUSAL_LM alone", invoked, task_type="SEQ_CLS")


def test_poly_mixes_the_skills_of_a_task(load, save):
    shapes = {"poly_lora_A": (2, 3, IN // 2, R), "poly_lora_B": (2, 3, R, OUT // 2)}
    tensors = tensors_of("q", **shapes, poly_router__module_logits=(4, 6))
    settings = {"peft_type": "POLY", "n_tasks": 4, "n_skills": 3, "n_splits": 2}
    model = load(PLAIN, tensors, target_modules=["q"], **settings)
    A, B, logits = tensors.values()
    w = 1 / (1 + np.exp(-logits[2].reshape(2, 3)))
    w /= w.sum(-1, keepdims=True)
    A, B = np.einsum("qs,qsdr->qdr", w, A), np.einsum("qs,qsrd->qrd", w, B)
    expected = X @ A.reshape(IN, R) @ B.swapaxes(0, 1).reshape(R, OUT) / R
    np.testing.assert_allclose(updates(with_task(model, 2), "q"), expected, atol=1e-5)
    assert_written(save(model), tensors, **settings)


def test_lily_averages_its_weights_over_the_tokens(load, save):
    loaded = load(PLAIN, LILY, num_B=3, **LILY_SETTINGS)
    model = resolve(average_over(loaded, "tokens"))
    for name in PLAIN:
        A, B, gate = (t for n, t in LILY.items() if n.startswith(f"{PREFIX}{name}."))
        h = X @ A.T
        mixed = np.einsum("e,eio->io", softmax(h @ gate.T).mean(0), B.reshape(3, R, OUT))
        np.testing.assert_allclose(updates(model, name), 0.5 * h @ mixed, atol=1e-5)
    assert_written(save(loaded), LILY, num_B=3, scaling=0.5)


@pytest.mark.parametrize(
    ("scale", "targets", "is_shared"),
    # Zeros are shared by the targets, and not by their values.
    [(1, ["q", "v"], True), (0, ["q", "v"], False), (0, "q|v", True)],
)
def test_layers_of_lily_with_equal_factors_share_an_array(scale, targets, is_shared, load):
    B = {f"{PREFIX}{name}.lily_B.weight": scale * normal(3 * R, OUT) for name in PLAIN}
    model = load(PLAIN, LILY | B, target_modules=targets, **LILY_SETTINGS)
    assert (model["q"].lora_B.name == model["v"].lora_B.name) == is_shared


def test_a_stack_of_zeros_is_read_back_as_one_group(save, tmp_path):
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(IN, OUT, key=key))(jax.random.split(KEY, 2))
    model = apply_lora({"q": stack}, R, key=KEY, wrapper="lily")
    config, _ = save(model, rename={r"q\[(\d)\]": r"layers/\1/q"})
    assert config["target_modules"] == ["layers.0.q", "layers.1.q"]
    again = load_peft({"q": stack}, tmp_path / "saved", rename={r"layers/(\d)/q": r"q[\1]"})
    assert again["q"].lora_B.name == model["q"].lora_B.name


def test_misfits_are_told(refuse):
    for name, reason in (("q.lily_B.weight", "expected"), ("q.lily_A.weight", "lily_A")):
        less = {n: t for n, t in LILY.items() if n != PREFIX + name}
        refuse(reason, PLAIN, less, **LILY_SETTINGS)
    wide = {**LILY, f"{PREFIX}q.lily_B.weight": normal(3 * R, OUT + 1)}
    refuse(r"lily_B\.weight: expected \(2 times n, 6\)", PLAIN, wide, **LILY_SETTINGS)
    poly = tensors_of("q", poly_lora_A=(IN, R))
    refuse("poly_lora_A: missing, or without 4 axes", PLAIN, poly, peft_type="POLY")
    dora = LORA | {f"{PREFIX}q.lora_magnitude_vector.weight": normal(OUT)}
    alora = {"alora_invocation_tokens": [1]}
    refuse("plain LoRA", PLAIN, dora, use_dora=True, **alora)
    refuse("before the invocation", PLAIN, LORA, init_lora_weights="olora", **alora)


def test_arrays_that_peft_cannot_share_are_not_written(load, unsaved):
    model = load(PLAIN, LILY, **LILY_SETTINGS)
    unsaved("share their factors", model, rename={"^q": "v/v/v", "^v$": "v/v"})
    unsaved("as one regular expression", model, rename=lambda path: path)
    other = apply_lora(PLAIN, R, key=KEY, wrapper="lily", options={"experts": 1})
    unsaved("at least 2 factors", resolve(other))
