"""Extract a LoRA for PEFT from two files of weights: a model and its fine-tuned copy."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import JnoLoraWarning, PeftFormatError, SelectionError, extract_adapters
from jno.lora.extending import bullets, tracked
from jno_lora_combine import UpdateReport, UpdateRow, extract_lora
from jno_lora_peft.bases import as_metadata
from jno_lora_peft.files import Directory, write
from jno_lora_peft.layouts import layout_of
from jno_lora_peft.names import EMBEDDING, HEAD, PREFIX, compiled, is_embedding
from jno_lora_peft.saving import targets
from jno_lora_proof import Entry, sign, write_entries

from ._adapter_files import lora_settings
from ._arrays import Array, flat
from ._states import open_state

# The names of embeddings in models of Hugging Face.
EMBEDDINGS = r"(^|\.)(embed(_\w+)?|\w*embeddings?|wte|wpe|shared)$"


def extract_peft(
    base: Directory,
    tuned: Directory,
    directory: Directory,
    *,
    rank: int | None = None,
    energy: float | None = None,
    leftovers: Literal["raise", "keep", "drop"] = "raise",
    embeddings: str = EMBEDDINGS,
    transposed: str | None = None,
    tied: bool | None = None,
) -> UpdateReport:
    """Write the LoRA that is nearest to a full fine-tune, as PEFT's files: see `extract_lora`.

    Weights with two axes belong to linear layers or embeddings, and larger weights to convolutions
    without groups. One matrix is in memory at a time, beside the adapter.

    **Arguments:**

    - `base`, `tuned`: the whole states of a model of Torch: a safetensors file, or a folder of
        safetensors files.
    - `directory`: for the adapter, which must not exist.
    - `rank`, `energy`: as for `extract_lora`.
    - `leftovers`: what happens to changed biases, norms and bare arrays: `"raise"`, `"drop"`, or
        `"keep"`, which writes the biases of adapted layers, and other modules whole, as PEFT's
        `modules_to_save`.
    - `embeddings`, `transposed`: regular expressions for the names of the modules that are
        embeddings, and of linear layers with a weight `(in, out)`, such as the Conv1D of GPT-2.
    - `tied`: whether an output head reads the table of an embedding; needed if embeddings changed
        and the files have no `lm_head.weight`. PEFT ties a head to `embed_tokens` alone.

    The folder has a proof of the updates (`jno_lora_proof.prove`), without inputs.

    **Returns:** the report of the layers. Layers whose weights are equal get no adapter. As
    for `extract_lora`, a warning says if less than 90 % of the change is kept.

    **Raises:** `SelectionError` if arrays are left over, or an argument makes no sense;
    `PeftFormatError` if a file cannot be read or written, if `directory` exists, if the files have
    different arrays, if no weight changed that LoRA adapts, or if a square weight changed that
    is not transposed, beside transposed weights; `WrapperError` that names a weight with NaN or
    infinity.
    """
    if Path(directory).exists():
        raise PeftFormatError(f"{str(directory)!r} exists. Give a new name.")
    old, new = (flat(open_state(Path(place)).tree) for place in (base, tuned))
    _check_equal_shapes(old, new)
    weights = [name for name in old if name.endswith(".weight") and len(old[name].shape) > 1]
    left = [x for x in old if x not in weights and not np.array_equal(old[x], new[x])]
    if left and leftovers == "raise":
        raise SelectionError(
            f"LoRA does not adapt these arrays, which differ:\n{bullets(left)}\n"
            'leftovers="keep" writes their values, and leftovers="drop" leaves them out.'
        )
    rows: list[UpdateRow] = []
    ranks: dict[str, int] = {}
    entries: dict[str, Entry] = {}
    tensors: dict[str, np.ndarray] = {}
    modules = {name.removesuffix(".weight") for name in weights if len(old[name].shape) == 2}
    patterns = [compiled(x or "(?!)", "a kind of layer") for x in (embeddings, transposed)]
    tables, flipped = ({name for name in modules if x.search(name)} for x in patterns)
    if transposed and not flipped - tables:
        raise SelectionError(f"transposed={transposed!r} matches no linear layer.")
    with contextlib.closing(tracked(weights, "Decomposing")) as names:
        for name in names:
            module = name.removesuffix(".weight")
            kinds = module in tables, module in flipped
            layers = [_layer(np.array(state[name]), *kinds) for state in (old, new)]
            with warnings.catch_warnings():  # the report of all modules warns, and not of each
                warnings.filterwarnings("ignore", "The LoRA keeps", JnoLoraWarning)
                pair = ({module: x} for x in layers)
                adapted, report = extract_lora(*pair, rank=rank, energy=energy)
            rows += report.rows
            entries |= {f"{module}/weight": entry for entry in sign(adapted).values()}
            layout = layout_of(layers[0])
            assert layout is not None
            for adapter in extract_adapters(adapted).adapters.values():
                ranks[module] = len(adapter.state["lora_A"])
                for field, (end, shape) in layout.pair("lora", ranks[module]).items():
                    array = np.asarray(adapter.state[field]).reshape(shape)
                    tensors[f"{PREFIX}{module}.{end}"] = array
    if not ranks:
        changed = f" Only these arrays changed. Share them:\n{bullets(left)}" if left else ""
        raise PeftFormatError(f"No weight for LoRA changed, so no adapter was written.{changed}")
    linear = (modules - tables) & ranks.keys()
    # The shape of other weights tells which axis is the inputs.
    square = [x for x in sorted(linear - flipped) if len({*old[f"{x}.weight"].shape}) == 1]
    if linear & flipped and square:
        raise PeftFormatError(f"PEFT has one fan_in_fan_out, and {square[0]} is not transposed.")
    settings = {
        "target_modules": targets(ranks, {name.rpartition(".")[0] for name in old}),
        **_kept(new, left if leftovers == "keep" else [], ranks, tensors),
        **_tied("lm_head.weight" in old, tied, ranks, tensors),
    }
    settings |= lora_settings(ranks, ranks, is_transposed=bool(linear & flipped))  # the scale is 1
    report = UpdateReport(tuple(rows), tuple(left)).warn_of_loss()
    bases = {module: np.array(old[f"{module}.weight"]) for module in ranks if module in modules}
    write(directory, settings, tensors, as_metadata(bases))
    write_entries(directory, entries, str(old[f"{next(iter(ranks))}.weight"].dtype))
    return report


def _check_equal_shapes(old: Mapping[str, Array], new: Mapping[str, Array]) -> None:
    """**Raises:** `PeftFormatError` that lists arrays with other shapes, or in one state only."""
    shapes = [{name: x.shape for name, x in state.items()} for state in (old, new)]
    if lines := [
        f"{name}: {shapes[0].get(name, 'nothing')} and {shapes[1].get(name, 'nothing')}"
        for name in {**old, **new}
        if shapes[0].get(name) != shapes[1].get(name)
    ]:
        raise PeftFormatError(f"The arrays of the base and the copy differ:\n{bullets(lines)}")


def _layer(weight: np.ndarray, is_embedding: bool, is_transposed: bool) -> eqx.Module:
    first, second, *kernel = weight.shape
    if kernel:
        make: Callable[..., eqx.Module] = functools.partial(
            eqx.nn.Conv, len(kernel), second, first, tuple(kernel), use_bias=False
        )
    elif is_embedding:
        make = functools.partial(eqx.nn.Embedding, first, second)
    else:
        weight = weight.T if is_transposed else weight
        make = functools.partial(eqx.nn.Linear, *reversed(weight.shape), use_bias=False)
    template = eqx.filter_eval_shape(make, key=jax.random.key(0))
    return eqx.tree_at(lambda layer: layer.weight, template, jnp.asarray(weight))


def _kept(
    state: Mapping[str, Array],
    names: list[str],
    adapted: Container[str],
    tensors: dict[str, np.ndarray],
) -> dict[str, object]:
    """Add the arrays of these names to `tensors`. **Returns:** PEFT's settings for them."""
    modules: dict[str, None] = {}
    for name in names:
        module, _, field = name.rpartition(".")
        inside = {x.removeprefix(f"{module}."): x for x in state if x.startswith(f"{module}.")}
        if module in adapted and field == "bias":
            tensors[f"{PREFIX}{module}.base_layer.bias"] = np.array(state[name])
        elif module in adapted or not module or any("." in key for key in inside):
            raise PeftFormatError(
                f"PEFT keeps whole modules without adapters inside, and so not {name!r}."
            )
        else:
            modules[module] = None
            tensors |= {PREFIX + key: np.array(state[key]) for key in inside.values()}
    has_bias = any(name.endswith(".base_layer.bias") for name in tensors)
    return {"modules_to_save": [*modules] or None, "bias": "lora_only" if has_bias else "none"}


def _tied(
    has_head: bool, tied: bool | None, ranks: dict[str, int], tensors: dict[str, np.ndarray]
) -> dict[str, object]:
    """Let PEFT's head see the adapter of the table that it reads."""
    tables = [name for name in ranks if f"{PREFIX}{name}.lora_embedding_A" in tensors]
    if not tables or has_head or tied is False:
        return {}
    table = next(filter(is_embedding, tables), None)
    if tied is None or table is None:
        raise SelectionError(
            f"{', '.join(tables)} changed, and there is no lm_head.weight. If no output head reads "
            f"such a table, say tied=False. If a head reads {EMBEDDING}, say tied=True. PEFT "
            "cannot tie a head to another table: then share the fine-tuned model itself."
        )
    ranks[HEAD] = ranks[table]
    A, B = (tensors[f"{PREFIX}{table}.lora_embedding_{letter}"] for letter in "AB")
    tensors |= {f"{PREFIX}{HEAD}.lora_A.weight": B.T, f"{PREFIX}{HEAD}.lora_B.weight": A.T}
    return {"ensure_weight_tying": True}
