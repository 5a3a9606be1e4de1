"""The time to adapt the layers of an equivariant force field, to merge them, and to call them.

    python -m benchmarks.equivariant [--wrappers LoRAE3nn DoRAE3nn] [--calls]

The layers are e3nn's linear layers of a model like SevenNet-0: five interaction blocks with up to
128x0e + 64x1o + 32x2e, four linear layers in each. `--calls` compares the ways to call an adapted
layer of such a block: the fast path of a layer with one set of matrices, and merging at each call,
by which layers with weights for each species are called. Needs jno-lora-e3nn.
"""

import argparse
import time

import e3nn_jax as e3nn
import equinox as eqx
import jax
import jax.numpy as jnp

import jno.lora
from jno.lora import Net, lora_trainable_filter, merge_lora
from jno_lora_e3nn import LoRAE3nn

HIDDEN = "128x0e + 64x1o + 32x2e"
# After the tensor product with spherical harmonics up to l = 2, and with the gates' scalars.
MESSAGES = "224x0e + 352x1o + 320x2e"
GATED = "224x0e + 64x1o + 32x2e"


def layers(key: jax.Array, blocks: int = 5) -> list[eqx.Module]:
    """The linear layers of all blocks. Each layer is made anew, as a model makes its layers."""
    shapes = []
    for block in range(blocks):
        inputs = "128x0e" if block == 0 else HIDDEN
        messages = "128x0e + 128x1o + 128x2e" if block == 0 else MESSAGES
        outputs = "128x0e" if block == blocks - 1 else GATED
        shapes += [(inputs, inputs), (messages, outputs), (inputs, outputs), (outputs, outputs)]
    shapes += [("128x0e", "64x0e"), ("64x0e", "1x0e")]
    keys = jax.random.split(key, len(shapes))
    return [
        e3nn.equinox.Linear(irreps_in=inputs, irreps_out=outputs, key=k)
        for (inputs, outputs), k in zip(shapes, keys, strict=True)
    ]


def seconds(function, *args) -> float:
    """The processor's time of one call, with everything that it compiles."""
    start = time.process_time()
    jax.block_until_ready(eqx.filter(function(*args), eqx.is_array))
    return time.process_time() - start


def step_seconds(call, adapter, *args) -> float:
    """The processor's time of a step: the gradient by the trained arrays and by the features."""
    trainable, frozen = eqx.partition(adapter, lora_trainable_filter(adapter))
    *species, x = args

    def loss(arrays, *species):
        trainable, array = arrays
        y = call(eqx.combine(trainable, frozen), *species, e3nn.IrrepsArray(x.irreps, array))
        return jnp.sum(y.array**2)

    step = jax.jit(jax.grad(loss))
    arguments = (trainable, x.array), *species
    jax.block_until_ready(step(*arguments))
    return min(seconds(step, *arguments) for _ in range(30))


def print_calls(key: jax.Array, species: int = 8) -> None:
    """The time of a step with one layer, whose adapter is called in two ways."""
    forms = {"one set": {}, "indexed": {"linear_type": "indexed", "num_indexed_weights": species}}
    ways = {
        "fast path": lambda adapter, *args: adapter(*args),
        "merging": lambda adapter, *args: adapter.merge()(*args),
        "no adapter": lambda adapter, *args: adapter.base(*args),
    }
    for form, options in forms.items():
        layer = e3nn.equinox.Linear(irreps_in=HIDDEN, irreps_out=GATED, key=key, **options)
        adapter = LoRAE3nn(layer, 8, 8.0, key=key)
        for atoms in (32, 256):
            args = [jnp.arange(atoms) % species] * bool(options) + [
                e3nn.normal(HIDDEN, key, (atoms,))
            ]
            times = {name: step_seconds(way, adapter, *args) for name, way in ways.items()}
            shown = ", ".join(f"{name} {1e3 * t:.2f} ms" for name, t in times.items())
            print(f"{form}, {atoms} atoms: {shown}", flush=True)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wrappers", nargs="+", default=["LoRAE3nn", "DoRAE3nn", "PiSSAE3nn"])
    parser.add_argument("--calls", action="store_true", help="measure calls instead")
    options = parser.parse_args()
    key = jax.random.key(0)
    if options.calls:
        print_calls(key)
        return
    load = seconds(jno.lora.registered)
    model = layers(key)
    print(f"{len(model)} layers, {jax.devices()[0].device_kind}; plugins loaded in {load:.1f} s")
    for wrapper in options.wrappers:
        net = Net(model)
        build = seconds(lambda net=net, w=wrapper: net.lora(rank=8, alpha=8, wrapper=w).module)
        merge = seconds(merge_lora, net.module)
        print(f"{wrapper}: adapt {build:.1f} s, merge {merge:.1f} s, the first time in a process")


if __name__ == "__main__":
    main()
