"""A neural operator moves to another viscosity: which adapter needs the fewest simulations?

A Fourier neural operator learns the solution operator of the viscous Burgers equation

    u_t + u u_x = nu u_xx,    x in [0, 2 pi) periodic,    u(x, 0) -> u(x, 1)

at `nu = 0.1`, from many simulations. At `nu = 0.02` fronts are five times as steep, and only few
simulations exist. Full fine-tuning and adapters learn from 2 to 16 simulations by one protocol:
early stopping on a quarter of the simulations, which also chooses the learning rate.

    pip install "jno-lora[demo]"
    python examples/burgers_operator.py

It takes some minutes on two cores, seconds with `--quick`, and writes `burgers.svg`. The solver and
the protocol are in `jno_lora_demos.burgers`.
"""

import argparse
import pathlib

import jax
import numpy as np

from jno.lora import Net
from jno_lora_demos import burgers

LAYERS = "spectral_layers|proj1"  # the lifting and the last projection have a rank of 2 and 1
# The method where it has an adapter; LoRA for the spectral weights, with one update per mode.
METHODS = {name: [name, "lora"] for name in ("lora", "pissa", "lokr", "oft")}
FULL = "full fine-tuning"
DRAWS = 3  # how many times to draw the few simulations


def main(arguments=None):
    """Run the example; returns the mean test error by method and number of simulations."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="check that it runs")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("burgers.svg"))
    options = parser.parse_args(arguments)
    quick = options.quick
    sizes, steps, draws = ((32, 16), 5, 1) if quick else ((1024, 128), 2000, DRAWS)
    counts, names = ((4,), (FULL, "lora")) if quick else ((2, 4, 8, 16), (FULL, *METHODS))
    protocol = burgers.Protocol(rates=(1e-3,), steps=5, every=5) if quick else burgers.Protocol()

    keys = jax.random.split(jax.random.key(0), 5)
    many = burgers.simulate(keys[0], sizes[0], burgers.SOURCE)
    few = burgers.simulate(keys[1], draws * max(counts), burgers.TARGET)
    test = burgers.simulate(keys[2], sizes[1], burgers.TARGET)
    model = burgers.pretrain(burgers.operator(keys[3]), many, steps)
    before = protocol.error(model, test)
    print(f"pretrained: error {protocol.error(model, many):.3f} at nu = {burgers.SOURCE}", end=", ")
    print(f"{before:.3f} at nu = {burgers.TARGET}")

    errors, models = {"pretrained": [before] * len(counts)}, {"pretrained": model}
    for name in names:
        errors[name] = []
        for count in counts:
            draw_errors = []
            for draw in range(draws):
                net = Net(model, key=keys[4])
                if name in METHODS:
                    net.freeze().lora(rank=4, alpha=8, target=LAYERS, wrapper=METHODS[name])
                first = draw * max(counts)
                adapted = protocol.adapt(net, [fields[first : first + count] for fields in few])
                draw_errors.append(protocol.error(adapted.model, test))
            errors[name].append(float(np.mean(draw_errors)))
        models[name] = net.module
        share = net.summary().trainable / net.summary().total if name in METHODS else 1
        print(
            f"{name:17}", *(f"{e:.3f}" for e in errors[name]), f"from {counts} simulations,", end=""
        )
        print(f" {share:.1%} of the parameters")
    drawn_models = {name: models[name] for name in ("pretrained", FULL, "lora")}
    burgers.draw(options.output, errors, counts, drawn_models, test)
    return errors


if __name__ == "__main__":
    main()
