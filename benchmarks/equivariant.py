"""The time to adapt the layers of an equivariant force field, and to merge them.

    python -m benchmarks.equivariant [--wrappers LoRAE3nn DoRAE3nn]

The layers are e3nn's linear layers of a model like SevenNet-0: five interaction blocks with up to
128x0e + 64x1o + 32x2e, four linear layers in each. Needs jno-lora-e3nn.
"""

import argparse
import time

import e3nn_jax as e3nn
import equinox as eqx
import jax

from jno.lora import Net, merge_lora

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


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wrappers", nargs="+", default=["LoRAE3nn", "DoRAE3nn", "PiSSAE3nn"])
    options = parser.parse_args()
    key = jax.random.key(0)
    model = layers(key)
    print(f"{len(model)} layers, {jax.devices()[0].device_kind}")
    for wrapper in options.wrappers:
        net = Net(model)
        build = seconds(lambda net=net, w=wrapper: net.lora(rank=8, alpha=8, wrapper=w).module)
        merge = seconds(merge_lora, net.module)
        print(f"{wrapper}: adapt {build:.1f} s, merge {merge:.1f} s, the first time in a process")


if __name__ == "__main__":
    main()
