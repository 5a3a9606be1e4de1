"""From records to tables: columns, cells, and a verdict on each target."""

from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]

SIDES = {
    "jno": "jNO",
    "peft": "PEFT",
    "floor": "floor",
    "full": "full fine-tuning",
    "svd": "full SVD",
    "small": "ours, 2,000 layers",
    "plain": "plain adapter",
    "without": "without film",
    "by hand": "FiLM by hand",
    "one": "one adapter",
    "copies": "copies",
    "no derivative": "no derivative",
    "difference": "finite difference",
    "reverse": "reverse mode",
    "adam": "Adam",
}
MEASURES = {
    "temp": "temporary memory",
    "forward temp": "temporary memory of forward",
    "accepted": "accepted steps",
}

MAIN = (("step", "jno"), ("forward", "jno"), ("temp", "jno"), ("step", "floor"), ("step", "peft"))


@dataclass(frozen=True)
class Group:
    """One family of cases. A column is `(measure, over)`; over `None` stands a plain number."""

    title: str
    text: str
    tables: tuple[tuple[tuple[str, str | None], ...], ...]


GROUPS = {
    "linear": Group(
        "Adapters of linear layers",
        "Four `Linear(1024, 1024)` with ReLU between them, batch 256, rank 16 (VeRA: 256). OFT has "
        "one layer here, because jNO's can hang with several.",
        (
            MAIN,
            (("step", "full"), ("forward", "floor"), ("forward", "peft"), ("flops", "jno")),
            tuple((m, "jno") for m in ("compile", "apply", "init", "merge", "merge jitted")),
            (("save", "full"), ("load", "full")),
            (("trainable", None), ("trainable", "jno"), ("trainable", "peft"), ("traces", None)),
        ),
    ),
    "later": Group(
        "Methods that jNO lacks",
        "The same model. Ranks and sizes of blocks are 16, and 32 for C3A and RandLoRA. PEFT has "
        "the same method with the same sizes; a few of its defaults differ.",
        (
            (("step", "floor"), ("step", "full"), ("step", "peft"), ("forward", "floor")),
            (("forward", "peft"), ("temp", "floor"), ("temp", "full"), ("flops", "floor")),
            (("trainable", None), ("trainable", "peft")),
        ),
    ),
    "batch": Group("Smaller batches", "The same model.", (MAIN,)),
    "laplacian": Group(
        "A loss of second derivatives",
        "A step on the mean squared residual of a Poisson equation, `trace(jax.hessian(u)(x))` "
        "against a right-hand side, at 1,024 points. `u` is an MLP with two inputs, four hidden "
        "layers of 256 and tanh; rank 4.",
        ((("step", "floor"), ("step", "full"), ("temp", "floor"), ("flops", "floor")),),
    ),
    "deep": Group(
        "OFT in several layers",
        "On a machine with few cores, linear solves by LAPACK in several layers can deadlock. "
        "`timed out` means that a side was stopped after 30 seconds.",
        (MAIN,),
    ),
    "large": Group(
        "Layers of a large model",
        "Two linear layers in bfloat16 with a ReLU between them, 4096 to 4096 to 4096 and 4096 to "
        "11008 to 4096; 4096 tokens, rank 16 (VeRA: 256). Adapters are float32; full fine-tuning "
        "is of the bfloat16 weights. On a GPU only.",
        (
            (("step", "floor"), ("step", "full"), ("step", "peft"), ("forward", "peft")),
            (("forward", "floor"), ("temp", "floor"), ("temp", "full"), ("flops", "full")),
        ),
    ),
    "conv": Group(
        "Adapters of convolutions",
        "Two `Conv2d` with 3x3 kernels and a ReLU between them on 32x32 images. 64 channels: batch "
        "16, rank 8; 256 channels: batch 4, rank 16; VeRA: four times as many as channels.",
        (
            (("step", "jno"), ("forward", "jno"), ("temp", "jno")),
            (
                *(("step", "floor"), ("step", "full")),
                *((m, "jno") for m in ("flops", "compile", "merge")),
            ),
        ),
    ),
    "dispatch": Group(
        "Finding and wrapping layers",
        "Models of many `Linear(8, 8)` with the default adapter, rank 4. Calls are warm, except in "
        "the row of first calls in a process. The last row shows how the cost "
        "grows with five times as many layers.",
        (
            (
                *((m, "jno") for m in ("apply", "filter", "merge", "merge jitted")),
                ("apply", "small"),
            ),
        ),
    ),
    "init": Group(
        "Initialisation by singular vectors",
        "The constructor around one layer, rank 16, against `jnp.linalg.svd` of its matrix. "
        "*Energy* is the energy of our adapter's space, as a fraction of the energy of the 16 "
        "largest singular values. *Decaying* means the singular values 1, 1/2, 1/3, …",
        ((("init", "svd"), ("init", "jno"), ("energy", None)),),
    ),
    "spectral": Group(
        "Spectral weights",
        "`CPSpectral` of rank 4, alone and with LoRA of rank 1 on all other layers, and this LoRA "
        "alone, on the Fourier neural operator of [the study](operators.md): three layers of 32 "
        "channels and 12 modes, 64 points, batch 8. In the last rows, the spectral layers are of a "
        "user's class with one complex64 array, declared by `ModeWeights`.",
        (
            tuple((m, "full") for m in ("step", "compile", "forward", "temp", "flops")),
            (("trainable", None), ("trainable", "full")),
        ),
    ),
    "conditional": Group(
        "Conditional adapters",
        "A step of an adapter that is a [function of a parameter](../conditional.md), with a "
        "value of the parameter for the whole batch, or for each example. A *plain adapter* has "
        "the same rank, and does not depend on the parameter; floor and full fine-tuning are steps "
        "of the plain model. *Copies* means that each example has copies of the fields that move. "
        "*FiLM by hand* is full fine-tuning with a scale and a shift of each output, in plain JAX. "
        "MLP: as above. Convolutions: as above, 64 channels. FNO: `FNO1D` of foundax, three layers "
        "of 64 channels and 16 modes, 256 points, batch 16, rank 4, with LoRA on its convolutions.",
        (
            (
                *(("step", "plain"), ("forward", "plain"), ("temp", "plain")),
                *(("step", "full"), ("step", "floor")),
            ),
            (
                *(("step", "copies"), ("forward", "copies"), ("temp", "copies")),
                *(("forward temp", "plain"), ("temp", "full"), ("flops", "plain")),
                *(("step", "without"), ("step", "by hand")),
            ),
        ),
    ),
    "ensemble": Group(
        "Ensembles",
        "A step of an [ensemble](../uncertainty.md) of five LoRAs, each with the whole batch, over "
        "a step of one. The floor is the same step of five in plain JAX. MLP: as above, batch 64. "
        "Convolutions: three of 3 x 3 on 32 x 32 images with ReLU, batch 8, an eighth of the "
        "channels as rank. FNO: the operator of *Spectral weights*, batch 8, rank 4, CP on its "
        "spectral weights and LoRA on its convolutions.",
        (
            (
                *(("step", "one"), ("step", "floor"), ("forward", "one"), ("forward", "floor")),
                *(("temp", "one"), ("temp", "floor")),
            ),
        ),
    ),
    "slope": Group(
        "The derivative by the parameter",
        "The same models: the mean square of the outputs, and its derivative by the parameter. "
        "Ours is forward mode (`jax.jvp`), as `fit` uses it. *No derivative* is the loss alone, "
        "*finite difference* two of these in one program, and *reverse mode* `jax.vjp`. With a "
        "value for each example, each example has a loss and a derivative. XLA makes one fusion of "
        "the loss of the MLP, and counts no memory inside a fusion, so the memory of the MLP is "
        "not compared.",
        (
            tuple(("derivative", over) for over in ("no derivative", "difference", "reverse")),
            tuple(("temp", over) for over in ("no derivative", "difference", "reverse")),
            tuple(("flops", over) for over in ("no derivative", "difference", "reverse")),
        ),
    ),
    "gauss-newton": Group(
        "Steps of second order",
        "Ten damped Gauss-Newton steps: `optimistix.LevenbergMarquardt`, with [the Jacobian that "
        "costs one gradient](../physics.md#train-one-adapter-for-a-range-of-values). Each is a "
        "step that the solver tries, with a separate Jacobian and linear system, whether the "
        "step is accepted or not. The network of two hidden layers of 20 learns Poisson's equation "
        "with a peak that moves, from 600 points, in double precision. Equation and sizes are "
        "[the study's](physics.md#results), but the network starts from random values, not from a "
        "trained base. *Full fine-tuning* tries as many steps with all parameters; for a range of "
        "values, its network has the parameter as an input. *Adam* is ten steps of Adam on the "
        "arrays of our side.",
        (
            (("step", "full"), ("step", "adam"), ("temp", "full"), ("temp", "adam")),
            (("trainable", None), ("trainable", "full"), ("accepted", None)),
        ),
    ),
}


def heading(measure: str, over: str | None) -> str:
    """The title of a column."""
    name = MEASURES.get(measure, measure)
    return f"{name} (ours)" if over is None else f"{name} / {SIDES[over]}"


def number(value: float) -> str:
    """Three significant digits; an integer in full."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{float(f'{value:.3g}'):g}" if value < 1e3 else f"{value:,.0f}"


def spread(ratio: Record) -> str:
    """A ratio: median and quartiles, or one value if it does not vary."""
    median = number(ratio["median"])
    if ratio["rounds"] == 1:
        return median
    return f"{median} [{number(ratio['q1'])}, {number(ratio['q3'])}]"


def aim_of(record: Record, measure: str, over: str | None) -> float | None:
    """The target of a cell."""
    for target_measure, target_over, most in record["targets"]:
        if (target_measure, target_over) == (measure, over):
            return most
    return None


def is_missed(record: Record, measure: str, over: str | None) -> bool:
    """Whether the median, rounded as it is shown, lies above the target."""
    most, value = aim_of(record, measure, over), value_of(record, measure, over)
    return most is not None and value is not None and float(f"{value:.3g}") > most


def value_of(record: Record, measure: str, over: str | None) -> float | None:
    """The number of a cell, if it was measured."""
    if over is None:
        return record["sides"]["ours"].get(measure)
    ratio = record["ratios"].get(measure, {}).get(over)
    return None if ratio is None else ratio["median"]


def cell(record: Record, measure: str, over: str | None) -> str:
    """The measured value and the target, bold if it was missed; a peer's failure in words."""
    value = value_of(record, measure, over)
    if value is None:
        side = record["sides"].get(over or "ours", {"status": "ok"})
        status = side["status"].split(":")[0]
        is_timed = measure in record["measures"]
        return status if status != "ok" and (is_timed or over is None) else ""
    text = number(value) if over is None else spread(record["ratios"][measure][over])
    most = aim_of(record, measure, over)
    if most is None:
        return text
    return f"{f'**{text}**' if is_missed(record, measure, over) else text} (≤ {number(most)})"


def table(records: list[Record], columns: tuple[tuple[str, str | None], ...]) -> str:
    """A Markdown table without empty columns."""
    cells = {column: [cell(record, *column) for record in records] for column in columns}
    used = [column for column in columns if any(cells[column])]
    if not used:
        return ""
    lines = ["| | " + " | ".join(heading(*column) for column in used) + " |"]
    lines.append("|---" * (len(used) + 1) + "|")
    for row, record in enumerate(records):
        label = record["label"] + ("*" if "note" in record else "")
        lines.append(f"| {label} | " + " | ".join(cells[c][row] for c in used) + " |")
    return "\n".join(lines)


def verdicts(records: list[Record]) -> list[str]:
    """A plain sentence for every target that is missed or was not measured."""
    sentences = []
    for record in records:
        label, ours = record["label"], record["sides"]["ours"]["status"]
        if ours != "ok":
            sentences.append(f"{label}: our side did not finish ({ours}).")
            continue
        for measure, over, most in record["targets"]:
            value, name = value_of(record, measure, over), heading(measure, over)
            if value is None:
                status = record["sides"][over]["status"] if over else "no value"
                sentences.append(f"{label}, {name}: not measured ({status}).")
            elif is_missed(record, measure, over):
                ratio = record["ratios"].get(measure, {}).get(over)
                shown = number(value) if ratio is None else spread(ratio)
                near = ratio is not None and ratio["rounds"] > 1 and ratio["q1"] <= most
                close = " The target lies above the lower quartile." if near else ""
                sentences.append(f"{label}, {name}: {shown}, the target is {number(most)}.{close}")
    return sentences
