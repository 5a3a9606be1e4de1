"""aLoRA and Poly, against PEFT itself: `make test-peft`. (Lily is among the cases of all types.)"""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.told import TASKS, TOKENS, X, assert_close, ours_of
from peft_cases.twins import twin

from jno.lora.peft import load_peft, save_peft

if importlib.util.find_spec("peft") is None:
    message = "needs torch and peft, which `make test-peft` installs"
    if os.environ.get("JNO_LORA_TEST_PEFT"):
        raise ImportError(message)
    pytest.skip(message, allow_module_level=True)

from peft_cases import torch_side as torch


@pytest.mark.parametrize("kind", torch.ROUTED)
def test_files_compute_the_same_here_and_are_written_back(kind, tmp_path):
    plain = twin(torch.weights(torch.model()))
    theirs = torch.trained(torch.ROUTED[kind])
    expected = torch.routed_outputs(theirs, kind, X, TASKS, TOKENS)
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
    assert_close(expected, torch.routed_outputs(again, kind, X, TASKS, TOKENS))
