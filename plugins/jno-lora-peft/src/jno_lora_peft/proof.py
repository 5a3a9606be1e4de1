"""Does an adapter of PEFT, loaded on Torch, compute what it computed where it was saved?

    python -m jno_lora_peft.proof FOLDER --model ID_OR_PATH            # check
    python -m jno_lora_peft.proof FOLDER --model ID_OR_PATH --write    # make the proof here

Needs NumPy, safetensors, Torch, Transformers and PEFT, and neither JAX nor the rest of jno-lora:
copy this file to where they are. `save_peft(..., proof=inputs)` writes the proof that it reads,
and `jno_lora_proof.prove` reads the proof that it writes.
"""

# pyright: reportMissingImports=false
import argparse
import collections
import copy
import json
import pathlib
from importlib import metadata
from typing import Any

import numpy as np
import safetensors.numpy

FILE, WIDTH, SAME, LINEAR = "adapter_proof.safetensors", 64, 0.01, slice(5, 9)
ROUNDING = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.05}


def hashes(size: int, seed: int) -> np.ndarray:
    """Fixed pseudo-random 32-bit numbers, as in `jno_lora_proof`."""
    x = np.arange(1, size + 1, dtype=np.uint32) * np.uint32(0x9E3779B1) ^ np.uint32(seed * 7919)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def signature(array: np.ndarray) -> np.ndarray:
    """Nine numbers of a matrix `D`: `|D|`, `|D v|`, `|u D|`, `u D v`, for fixed signs `u`, `v`."""
    matrix = array.reshape(array.shape[0] if array.ndim else 1, -1).astype(np.float64)
    rows, columns = matrix.shape
    left = np.where(np.stack([hashes(rows, 1), hashes(rows, 2)]) & 1, 1.0, -1.0)
    right = np.where(np.stack([hashes(columns, 3), hashes(columns, 4)]) & 1, 1.0, -1.0)
    out, into = matrix @ right.T, left @ matrix
    norms = [np.linalg.norm(matrix), *np.linalg.norm(out, axis=0), *np.linalg.norm(into, axis=1)]
    return np.asarray([*norms, *(left @ out).ravel()])


def sketch(outputs: np.ndarray) -> np.ndarray:
    """A count sketch of each example's outputs."""
    matrix = outputs.reshape(len(outputs), -1).astype(np.float64)
    h = hashes(matrix.shape[1], 5)
    buckets = (h >> np.uint32(8)) % np.uint32(WIDTH)
    return np.stack([np.bincount(buckets, row, WIDTH) for row in np.where(h & 1, matrix, -matrix)])


def measure(model: Any, args: list[np.ndarray]) -> dict[str, Any]:
    """Sketches and signatures of a `PeftModel`, called on `args`."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    def numbers(tensor: Any) -> np.ndarray:
        return tensor.detach().float().cpu().numpy()

    def run() -> np.ndarray:
        output = model(*map(torch.from_numpy, args))
        return sketch(numbers(output if torch.is_tensor(output) else next(iter(output.values()))))

    updates, bases, trained, model = {}, {}, {}, model.eval()
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, BaseTunerLayer) and hasattr(module.get_base_layer(), "weight"):
            layer = copy.deepcopy(module).float()
            before = numbers(layer.get_base_layer().weight).copy()
            if not module.disable_adapters:
                layer.merge()
            after = numbers(layer.get_base_layer().weight)
            is_flipped = type(module.get_base_layer()).__name__ == "Conv1D"  # (in, out), as GPT-2
            turn = np.transpose if is_flipped else np.asarray
            updates[f"{name}/weight"], bases[f"{name}/weight"] = turn(after - before), turn(before)
        if isinstance(module, ModulesToSaveWrapper):
            for key, tensor in module.modules_to_save[module.active_adapters[0]].named_parameters():
                trained[f"{name}/{key.replace('.', '/')}"] = numbers(tensor)
    found: dict[str, Any] = {"updates": updates, "bases": bases, "trained": trained}
    if args:  # a proof of updates alone has no inputs
        found["adapted"] = run()
        with model.disable_adapter():
            found["plain"] = run()
    dtypes = (str(p.dtype) for p in model.parameters() if p.is_floating_point())
    return {**found, "scheme": next(dtypes).removeprefix("torch.")}


def near(found: np.ndarray, wanted: np.ndarray, tolerance: float = SAME) -> bool:
    """Whether two signatures are equal up to a relative tolerance."""
    return bool(np.linalg.norm(found - wanted) <= tolerance * np.linalg.norm(wanted))


def finding(name: str, was: dict[str, Any], found: dict[str, Any]) -> str:
    """What happened to one update or its base; empty if they are as they were."""
    update, base = was["updates"][name], was["bases"][name]
    if name not in found["updates"]:
        return "missing"
    matrix, here = found["updates"][name], signature(found["bases"][name])
    there = signature(matrix)
    if not near(here, base, ROUNDING[found["scheme"]]):
        is_merged = near((here - base)[LINEAR], update[LINEAR], 0.5)
        return "already merged" if is_merged else "another base"
    slack = float(np.linalg.norm(here - base) / max(np.linalg.norm(update), 1e-30))
    if near(there, update, SAME + slack):  # a multiplicative update moves with its base
        return ""
    if not there.any():
        return "zero: inactive, or never trained"
    factor = there[LINEAR] @ update[LINEAR] / (update[LINEAR] @ update[LINEAR])
    if near(there[LINEAR], factor * update[LINEAR]) and near(there[:5], abs(factor) * update[:5]):
        return f"scale wrong by {factor:.3g}"
    if near(signature(matrix.T), update):
        return "transposed: A and B are exchanged"
    for other, update_there in was["updates"].items():
        if update_there.any() and near(there, update_there):
            return f"the update of {other}"
    return "rows in another order" if np.allclose(there[:3], update[:3], SAME) else "another update"


def judge(was: dict[str, Any], found: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The verdict, and what was found at each array."""
    rows = {name: finding(name, was, found) for name, x in was["updates"].items() if x.any()}
    for name, signed in was["trained"].items():
        is_same = name in found["trained"] and near(signature(found["trained"][name]), signed, 0.05)
        rows[name] = "" if is_same else "this trained array was not loaded"
    counts = collections.Counter(filter(None, rows.values()))
    fault = f"fault: {counts.most_common(1)[0][0] if counts else 'the outputs differ'}"
    if "adapted" not in found:
        return (fault if counts else "acts"), rows
    size = np.linalg.norm(was["adapted"] - was["plain"])
    error = np.linalg.norm(found["adapted"] - was["adapted"]) / max(size, 1e-30)
    drift = np.linalg.norm(found["plain"] - was["plain"])
    is_rounded = drift <= ROUNDING[found["scheme"]] * np.linalg.norm(was["plain"])
    if error <= SAME:
        return "acts", rows
    if is_rounded and not counts and error <= max(SAME, 3 * drift / size):
        return "acts, rounded", rows
    return fault, rows


def read(folder: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The record of a folder, and the arrays to call the model with."""
    with safetensors.safe_open(pathlib.Path(folder, FILE), framework="numpy") as file:
        tensors, facts = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    lists = json.loads(facts["lists"])
    was: dict[str, Any] = {"adapted": tensors["adapted"], "plain": tensors["plain"]}
    for key, names in (("updates", "entries"), ("bases", "entries"), ("trained", "trained")):
        was[key] = dict(zip(lists[names], tensors[key], strict=True))
    return was, [tensors[x["name"]] for x in json.loads(facts["inputs"])["args"]["items"]]


def write(model: Any, folder: Any, args: list[np.ndarray]) -> None:
    """Put the proof of a `PeftModel` into its folder."""
    found = measure(model, args)
    tensors = {key: found[key].astype(np.float32) for key in ("adapted", "plain")}
    for key in ("updates", "bases", "trained"):
        tensors[key] = np.array([signature(x) for x in found[key].values()]).reshape(-1, 9)
    inputs = {f"inputs/{i}": x for i, x in enumerate(args)}
    items = [{"is": "array", "name": name} for name in inputs]
    call = {"args": {"is": "tuple", "items": items}, "kwargs": {"is": "dict", "items": {}}}
    lists = {"entries": [*found["updates"]], "trained": [*found["trained"]]}
    lists["methods"] = ["lora"] * len(found["updates"])
    facts = {"format": "1", "scheme": found["scheme"], "lists": json.dumps(lists)}
    facts["inputs"] = json.dumps({"batched": True, "seed": 0, "high": 100, **call})
    facts["versions"] = json.dumps({x: metadata.version(x) for x in ("torch", "peft")})
    safetensors.numpy.save_file(tensors | inputs, pathlib.Path(folder, FILE), facts)


def main() -> int:
    """The command line."""
    import torch
    import transformers
    from peft import PeftConfig, PeftModel

    parser = argparse.ArgumentParser("jno_lora_peft.proof")
    parser.add_argument("folder")
    parser.add_argument("--model", required=True, help="of Transformers: a name or a path")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--write", action="store_true", help="make the proof, on random tokens")
    options = parser.parse_args()
    heads = {"CAUSAL_LM": "ForCausalLM", "SEQ_CLS": "ForSequenceClassification"}
    head = heads.get(PeftConfig.from_pretrained(options.folder).task_type, "")
    make = getattr(transformers, f"AutoModel{head}").from_pretrained
    base = make(options.model, dtype=getattr(torch, options.dtype))
    model = PeftModel.from_pretrained(base, options.folder)
    if options.write:
        tokens = np.random.default_rng(0).integers(0, base.config.vocab_size, (8, 16))
        write(model, options.folder, [tokens])
        return 0
    was, args = read(options.folder)
    verdict, rows = judge(was, measure(model, args))
    lines = (f"  {name}: {text}" for name, text in rows.items() if text)
    print(f"{options.folder}: {verdict}", *lines, sep="\n")
    return int(verdict.startswith("fault"))


if __name__ == "__main__":
    raise SystemExit(main())
