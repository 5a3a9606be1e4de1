"""Adapters that move between precisions of their layer: trained on one, loaded onto another."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import adapters, assert_close, build, cast_floats, equal_leaves, law_of, perturb
from zoo_cases.layers import matrix_of

from jno.lora import extract_adapters, load_adapters, merge_lora, save_adapters, swap_adapters

MOVES = [
    ("bfloat16", "float32"),
    ("float32", "bfloat16"),
    ("float64", "float32"),
    ("float32", "float64"),
]
# The error that the law may have, relative to the largest entry.
LOST = {"float32": 1e-6, "float64": 1e-12, "bfloat16": 1e-5}


@pytest.mark.parametrize(("made_for", "dtype"), MOVES)
@adapters()
def test_an_adapter_follows_its_law_on_a_layer_of_another_precision(
    adapter, base, made_for, dtype, tmp_path
):
    file = tmp_path / "adapters.safetensors"
    with jax.enable_x64(True) if "float64" in (made_for, dtype) else contextlib.nullcontext():
        old, new = ([cast_floats(base.layer, name)] for name in (made_for, dtype))
        trained = [perturb(build(adapter, old[0], rank=base.rank))]
        save_adapters(trained, file)
        loaded = load_adapters(new, file)
        # No bit of the adapter changes, and the way back leads to where it began.
        assert equal_leaves(loaded[0].state(), trained[0].state())
        assert equal_leaves(swap_adapters(new, extract_adapters(trained)), loaded)
        save_adapters(loaded, file)
        assert equal_leaves(load_adapters(old, file), trained)

        (merged,), (x,) = merge_lora(loaded), base.arguments(dtype)
        assert loaded[0](x).dtype == merged.weight.dtype == dtype
        on_new = dataclasses.replace(base, layer=new[0])
        W, fields = on_new.matrix(), {}
        if adapter.method in ("PiSSA", "MiLoRA"):
            # Their update is known exactly, and the layer it is added to is the new one.
            B, A = (np.asarray(trained[0].state()[f"initial_{n}"], np.float64) for n in "BA")
            fields["residual"] = W - 3.0 / trained[0].rank * B @ A
            rounding = float(jnp.finfo(dtype).eps) if dtype == "bfloat16" else 0
            assert_close(matrix_of(loaded[0].base), fields["residual"], LOST[dtype] + rounding)
            if dtype == "bfloat16":
                fields["residual"] = matrix_of(loaded[0].base)
        law = law_of(adapter, loaded[0], on_new, **fields)
        rounded = 0.5 * float(jnp.finfo(dtype).eps) * np.abs(law) if dtype == "bfloat16" else 0
        error = np.abs(matrix_of(merged) - law)
    assert (error <= rounded + LOST[dtype] * np.max(np.abs(law))).all()
