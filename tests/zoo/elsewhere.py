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
# Also around a convolution, a stack of layers, and a layer in half precision.
OTHERS = ["lora", "pissa", "vera"]


def base():
    """The model, the same in every process."""
    keys = iter(jax.random.split(jax.random.key(3), 40))
    layers = {variant: {"linear": eqx.nn.Linear(7, 6, key=next(keys))} for variant in VARIANTS}
    for variant in OTHERS:
        half = eqx.nn.Linear(7, 6, dtype=jnp.bfloat16, key=next(keys))
        stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(7, 6, key=key))(
            jax.random.split(next(keys), 2)
        )
        conv = eqx.nn.Conv1d(7, 6, 3, key=next(keys))
        layers[variant] |= {"conv": conv, "stack": stack, "half": half}
    return layers


@eqx.filter_jit
def outputs(model):
    """Of every layer."""
    x = jnp.linspace(-1, 1, 7)

    def of(kind, layer):
        if kind == "conv":
            return layer(jnp.stack([x, x * x, jnp.sin(x)], axis=1))
        if kind == "stack":
            return eqx.filter_vmap(lambda layer: layer(x))(layer)
        return layer(x.astype(jnp.bfloat16 if kind == "half" else x.dtype))

    return {
        f"{variant}/{kind}": of(kind, layer)
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
    assert not [m for m in sys.modules if m.startswith("jno_lora_")], "inspect imported a plugin"
    model = load_adapters(base(), file)
    plugins = {m.partition(".")[0] for m in sys.modules if m.startswith("jno_lora_")}
    assert plugins == {"jno_lora_zoo"}, plugins
    assert len(json.loads(shown.output)["adapters"]) == len(VARIANTS) + 3 * len(OTHERS)
    np.savez(out, **bits(outputs(model)))


if __name__ == "__main__":
    main(*sys.argv[1:])
