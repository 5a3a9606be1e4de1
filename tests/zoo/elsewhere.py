"""Loads a file of adapters in a process of its own: `python elsewhere.py FILE OUT`.

The test that starts it runs it as a module too, for the model and its outputs.
"""

import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

VARIANTS = ["lora", "dora", "pissa", "lora-xs", "vera", "lokr"]


def base():
    """The model, the same in every process: a layer, and a layer in half precision."""
    keys = jax.random.split(jax.random.key(3), 2 * len(VARIANTS)).reshape(-1, 2)
    dtypes = {"linear": jnp.float32, "half": jnp.bfloat16}
    return {
        variant: {
            kind: eqx.nn.Linear(7, 6, dtype=dtype, key=key)
            for (kind, dtype), key in zip(dtypes.items(), pair, strict=True)
        }
        for variant, pair in zip(VARIANTS, keys, strict=True)
    }


@eqx.filter_jit
def outputs(model):
    """The outputs of every layer."""
    x = jnp.linspace(-1, 1, 7)
    return {
        f"{variant}/{kind}": layer(x.astype(jnp.bfloat16 if kind == "half" else x.dtype))
        for variant, layers in model.items()
        for kind, layer in layers.items()
    }


def bits(arrays):
    """The arrays as bytes, whatever their dtype."""
    return {name: np.asarray(array).view(np.uint8) for name, array in arrays.items()}


def main(file, out):
    """Inspect, load, and write down what the loaded model computes."""
    from click.testing import CliRunner

    from jno.lora import load_adapters
    from jno.lora._commands._cli import cli

    shown = CliRunner().invoke(cli, ["inspect", file, "--json", "--values"])
    assert shown.exit_code == 0, shown.output
    assert len(json.loads(shown.output)["adapters"]) == 2 * len(VARIANTS)
    assert not [m for m in sys.modules if m.startswith("jno_lora_")], "inspect imported a plugin"
    model = load_adapters(base(), file)
    plugins = {m.partition(".")[0] for m in sys.modules if m.startswith("jno_lora_")}
    assert plugins == {"jno_lora_zoo"}, plugins
    np.savez(out, **bits(outputs(model)))


if __name__ == "__main__":
    main(*sys.argv[1:])
