"""Declared arrays beside layers and beside merging: a step's flops, memory, tracing and compiling.

    python -m benchmarks.arrays [--quick] [--write docs/evidence/flax-and-haiku.md]

Two models, each as Equinox layers and as a dict of arrays, as Flax keeps them: an **MLP** of six
matrices, and an **attention** block with kernels `(in, heads, size)`. A step is the gradient by the
adapters. Its sides: **layers**, the adapters of the zoo around Equinox layers; **through**, the
same methods on declared arrays; **merged**, the function of `plain(params)` in the loss.

Flops and temporary memory are XLA's figures of the compiled step. `weights` counts the operations
whose result is as large as a weight, without copies and changes of layout. Tracing and compiling
are medians of several runs, in which the sides take turns in random order, as ratios to merging.
"""

import argparse
import pathlib
import random
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from jno.lora import apply_lora, lora_trainable_filter
from jno_lora_arrays import declare, infer, plain, through

VARIANTS = ("lora", "pissa", "vera", "dora", "oft", "ia3")


class LayersMLP(eqx.Module):
    """The MLP as layers."""

    layers: list[eqx.nn.Linear]

    def __call__(self, x: Any) -> Any:
        """The outputs of a batch."""
        for layer in self.layers:
            x = jnp.tanh(jax.vmap(layer)(x))
        return x


def arrays_mlp(params: Any, x: Any) -> Any:
    """The MLP of `{"kernel": (in, out), "bias": (out,)}`."""
    for layer in params:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x


class LayersAttention(eqx.Module):
    """An attention block as layers."""

    layers: dict[str, eqx.nn.Linear]
    heads: int = eqx.field(static=True)

    def __call__(self, x: Any) -> Any:
        """The outputs for sequences, `(batch, tokens, size)`."""
        call = {name: jax.vmap(jax.vmap(layer)) for name, layer in self.layers.items()}
        q, k, v = (call[name](x).reshape(*x.shape[:2], self.heads, -1) for name in "qkv")
        return call["o"](_attention(q, k, v).reshape(x.shape))


def arrays_attention(params: Any, x: Any) -> Any:
    """The attention block of kernels `(in, heads, size)` and `(heads, size, out)`."""
    q, k, v = (jnp.einsum("bti,ihd->bthd", x, params[name]["kernel"]) for name in "qkv")
    return jnp.einsum("bthd,hdo->bto", _attention(q, k, v), params["o"]["kernel"])


def _attention(q: Any, k: Any, v: Any) -> Any:
    scores = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5)
    return jnp.einsum("bhts,bshd->bthd", scores, v)


def models(is_quick: bool) -> dict[str, tuple[Any, Any, Any, Any]]:
    """For each model: its layers, arrays of the same values, their function, and inputs."""
    size, batch = (128, 64) if is_quick else (1024, 256)
    keys = jr.split(jr.key(0), 10)
    linears = [eqx.nn.Linear(size, size, key=key) for key in keys[:6]]
    arrays = [{"kernel": layer.weight.T, "bias": layer.bias} for layer in linears]
    mlp = (LayersMLP(linears), arrays, arrays_mlp, jr.normal(keys[6], (batch, size)))
    size, tokens, heads = (64, 16, 4) if is_quick else (512, 128, 8)
    projections = {
        name: eqx.nn.Linear(size, size, use_bias=False, key=key)
        for name, key in zip("qkvo", keys[:4], strict=True)
    }
    kernels = {
        name: {
            "kernel": p.weight.T.reshape((heads, -1, size) if name == "o" else (size, heads, -1))
        }
        for name, p in projections.items()
    }
    x = jr.normal(keys[7], (8, tokens, size))
    attention = (LayersAttention(projections, heads), kernels, arrays_attention, x)
    return {"MLP": mlp, "attention": attention}


def steps_of(model: Any, variant: str) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Each side's function that computes the gradient, and its arguments."""
    layers, params, function, x = model
    declared = declare(params, infer(function, params, x))
    sides = {
        "layers": (layers, lambda m, x: m(x)),
        "through": (declared, through(function)),
        "merged": (declared, lambda m, x: function(plain(m), x)),
    }
    steps = {}
    for side, (base, call) in sides.items():
        adapted = apply_lora(base, 16, 16.0, key=jr.key(1), wrapper=variant)
        trainable, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))
        arrays, static = eqx.partition(frozen, eqx.is_array)

        def step(
            trainable: Any, arrays: Any, x: Any, static: Any = static, call: Any = call
        ) -> Any:
            def loss(trainable: Any) -> Any:
                return jnp.sum(call(eqx.combine(trainable, arrays, static), x) ** 2)

            return jax.grad(loss)(trainable)

        steps[side] = (step, (trainable, arrays, x))
    return steps


def weight_sized(text: str, sizes: set[int]) -> int:
    """The operations of an HLO whose result has as many entries as a weight."""
    free = {"parameter", "copy", "transpose", "bitcast", "reshape", "get-tuple-element", "tuple"}
    operations = re.findall(r"= \w+\[([\d,]*)\]\S* ([\w-]+)\(", text)
    shapes = [(tuple(map(int, shape.split(","))), name) for shape, name in operations if shape]
    return sum(
        name not in free
        and len(shape) > 1
        and eqx.filter_eval_shape(jnp.zeros, shape).size in sizes
        for shape, name in shapes
    )


def measure(model: Any, variant: str, rounds: int) -> dict[str, dict[str, float]]:
    """The figures of each side."""
    steps = steps_of(model, variant)
    sides: dict[str, dict[str, Any]] = {side: {"trace": [], "compile": []} for side in steps}
    for _ in range(rounds):
        for side in random.sample(list(steps), len(steps)):
            figures = sides[side]
            jax.clear_caches()
            step, args = steps[side]
            start = time.process_time()
            traced = jax.jit(step).trace(*args)
            traced_at = time.process_time()
            lowered = traced.lower()
            lowered_at = time.process_time()
            compiled = lowered.compile()
            figures["trace"].append(traced_at - start)
            figures["compile"].append(time.process_time() - lowered_at)
            figures["flops"] = compiled.cost_analysis()["flops"]
            figures["memory"] = compiled.memory_analysis().temp_size_in_bytes
            sizes = {leaf.size for leaf in jax.tree.leaves(model[1]) if leaf.ndim > 1}
            figures["weights"] = weight_sized(compiled.as_text(), sizes)
    for figures in sides.values():
        figures |= {name: statistics.median(figures[name]) for name in ("trace", "compile")}
    return sides


def table(is_quick: bool) -> str:
    """The figures of every model and method, in Markdown."""
    heads = ("flops", "memory", "trace", "compile")
    lines = [
        "| model | method | flops / layers | memory / layers | "
        + " | ".join(f"{head} / merged" for head in heads)
        + " | weight-sized |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, model in models(is_quick).items():
        for variant in VARIANTS:
            figures = measure(model, variant, 1 if is_quick else 5)
            mine, layers, merged = (figures[side] for side in ("through", "layers", "merged"))
            ratios = [mine[head] / layers[head] for head in heads[:2]]
            ratios += [mine[head] / merged[head] for head in heads]
            cells = [f"{ratio:.2f}" for ratio in ratios]
            cells.append(f"{mine['weights']} (merged {merged['weights']})")
            lines.append(f"| {name} | `{variant}` | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def write(path: pathlib.Path, name: str, text: str) -> None:
    """Put a table between the comments with this name in a page."""
    pattern = rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)"
    page, count = re.subn(pattern, lambda _: text, path.read_text(), flags=re.S)
    assert count == 1, f"{path} needs one place for the table"
    path.write_text(page)


def main() -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--write", type=pathlib.Path, help="the page to write the table into")
    options = parser.parse_args()
    text = f"JAX {jax.__version__}.\n\n{table(options.quick)}"
    if options.write is not None:
        write(options.write, "arrays", text)


if __name__ == "__main__":
    main()
