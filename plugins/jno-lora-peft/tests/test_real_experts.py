"""Arrays of fused experts, against PEFT itself: `make test-peft`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases import torch_experts as torch
from peft_cases.files import normal, read_files
from peft_cases.torch_side import weights

from jno_lora_arrays import declare, plain
from jno_lora_peft import load_peft, save_peft

X = normal(torch.EXPERTS, 6, torch.IN)
ORDER = ["up$", "down$", "gate"]


def arrays_of(layout):
    theirs = weights(torch.model(layout))
    gate = eqx.nn.Linear(torch.IN, torch.EXPERTS, use_bias=False, key=jax.random.key(0))
    gate = eqx.tree_at(lambda g: g.weight, gate, jnp.asarray(theirs["mlp.gate.weight"]))
    experts = {n: jnp.asarray(theirs[f"mlp.experts.{n}"]) for n in ("up", "down")}
    axes = "soi" if layout == "outputs-first" else "sio"
    return declare({"mlp": {"experts": experts, "gate": gate}}, {"experts/": axes})


def outputs(model, layout):
    mlp = plain(model)["mlp"]
    up, down = (mlp["experts"][name] for name in ("up", "down"))
    if layout == "outputs-first":
        up, down = up.swapaxes(1, 2), down.swapaxes(1, 2)
    gate, value = jnp.split(X @ up, 2, -1)
    return [(jax.nn.sigmoid(gate) * value) @ down, X @ mlp["gate"].weight.T]


def assert_close(ours, theirs, tolerance=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0)


@pytest.mark.parametrize("layout", torch.LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "rank_pattern": {"experts.down": 3}}])
def test_experts_compute_the_same_here_and_are_written_back(layout, options, tmp_path):
    theirs, bare = torch.trained(layout, **options), arrays_of(layout)
    theirs.save_pretrained(tmp_path)
    ours, expected = load_peft(bare, tmp_path), torch.outputs(theirs, X)
    assert_close(outputs(ours, layout), expected)
    with pytest.raises(AssertionError):
        assert_close(outputs(bare, layout), expected, 1e-2)
    if layout == "as-outputs":
        return  # PEFT reads the outputs by `A`, which is read and not written
    rename = {"gate$": "gate/weight"}
    save_peft(ours, tmp_path / "again", rename=rename, target_parameters=ORDER)
    assert set(read_files(tmp_path / "again")[0]["target_parameters"]) == {
        *("mlp.experts.up", "mlp.experts.down", "mlp.gate.weight")
    }
    again = torch.loaded(layout, tmp_path / "again")
    assert_close(torch.outputs(again, X), expected)
    assert_close(outputs(load_peft(bare, tmp_path / "again"), layout), expected)
