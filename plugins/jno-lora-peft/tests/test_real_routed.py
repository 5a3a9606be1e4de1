"""aLoRA and Poly, against PEFT itself: `make test-peft`. (Lily is among the cases of all types.)"""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.files import normal
from peft_cases.twins import twin

from jno.lora.peft import load_peft, save_peft
from jno_lora_routed import with_invocation, with_task

if importlib.util.find_spec("peft") is None:
    message = "needs torch and peft, which `make test-peft` installs"
    if os.environ.get("JNO_LORA_TEST_PEFT"):
        raise ImportError(message)
    pytest.skip(message, allow_module_level=True)

from peft_cases import torch_side as torch

TASKS = [0, 2]
TOKENS = np.asarray(
    [[7, 3, 7, 3, 1, 7], [7, 3, 3, 7, 1, 3], [1, 7, 7, 7, 3, 7], [0, 1, 2, 4, 7, 3]]
)
X = {"wide": normal(4, 6, 8), "deep": normal(4, 6, 6, seed=1)}


def assert_close(ours, theirs):
    for name in X:
        ours_, theirs_ = np.asarray(ours[name]), theirs[name]
        np.testing.assert_allclose(ours_, theirs_, atol=1e-5 * np.abs(theirs_).max(), rtol=0)


def ours_of(model, kind):
    def outputs(how, x):
        chosen = with_task(model, how) if kind == "poly" else with_invocation(model, how)
        return {name: jax.vmap(chosen[name])(x[name]) for name in X}

    how = jnp.asarray(TASKS * 2) if kind == "poly" else jnp.asarray(TOKENS)
    return jax.jit(jax.vmap(outputs))(how, jax.tree.map(jnp.asarray, X))


@pytest.mark.parametrize("kind", torch.ROUTED)
def test_files_compute_the_same_here_and_are_written_back(kind, tmp_path):
    plain = twin(torch.weights(torch.model()))
    theirs = torch.trained(torch.ROUTED[kind])
    expected = torch.routed_outputs(theirs, kind, X, TASKS * 2, TOKENS)
    theirs.save_pretrained(tmp_path)
    ours = load_peft(plain, tmp_path, tied=False)
    assert_close(ours_of(ours, kind), expected)
    if kind == "alora":
        base = {name: jax.vmap(jax.vmap(plain[name]))(jnp.asarray(x)) for name, x in X.items()}
        start = [2, 0, 3, 4]  # of the last [7, 3] in each row
        for name, y in ours_of(ours, kind).items():
            for row, first in enumerate(start):
                assert np.array_equal(y[row, :first], base[name][row, :first])
                assert not np.allclose(y[row, first:], base[name][row, first:], atol=1e-3)
    save_peft(ours, tmp_path / "again", tied=False)
    again, warned = torch.loaded(tmp_path / "again")
    assert not [text for text in warned if "missing" in text or "unexpected" in text]
    assert_close(expected, torch.routed_outputs(again, kind, X, TASKS * 2, TOKENS))
