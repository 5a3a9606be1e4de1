"""A worker process: builds cases and times them, on request. JSON lines in and out.

    python -m benchmarks.worker ours|jno|peft|physicsnemo cpu|gpu

| request | answer |
|---|---|
| `{"do": "hello"}` | `versions`, `device` |
| `{"do": "build", "as": NAME, "case": {...}}` | `facts`, `measures` (their names) |
| `{"do": "run", "as": NAME, "measure": M, "calls": N}` | `seconds` per call |
| `{"do": "free", "as": NAME}` | |

The answer to a request that fails is `{"error": "..."}`. The process ends with its standard input.
It runs in any environment, so it imports only the standard library until a request needs more.
"""

import gc
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

DISTRIBUTIONS = {
    "ours": [
        *("jno-lora", "jno-lora-conditional", "jno-lora-foundax", "jno-lora-zoo"),
        *("jax", "jaxlib", "equinox", "foundax", "optax", "optimistix", "numpy"),
    ],
    "jno": ["jax-neural-operators", "jax", "jaxlib", "equinox", "optax", "numpy"],
    "peft": ["peft", "torch", "numpy"],
    "physicsnemo": ["nvidia-physicsnemo", "torch", "numpy"],
}
TORCH = ("peft", "physicsnemo")


def versions(environment: str) -> dict[str, str]:
    """The versions of Python and of the environment's distributions."""
    installed = {name: importlib.metadata.version(name) for name in DISTRIBUTIONS[environment]}
    return {"python": platform.python_version(), **installed}


def device_name(environment: str, device: str) -> str:
    """The device that computes. **Raises** the library's error if there is no such device."""
    if environment in TORCH:
        import torch

        return torch.cuda.get_device_name() if device == "gpu" else "cpu"
    import jax

    # The first import of our package or jNO's: the answer says that it works.
    importlib.import_module("jno.lora")
    return jax.devices("cuda" if device == "gpu" else "cpu")[0].device_kind


def builder(environment: str, device: str) -> Callable[[dict[str, Any]], Any]:
    """The function that builds the subject of a case in this environment."""

    def build(case: dict[str, Any]) -> Any:
        library = "torch" if environment in TORCH else "jax"
        module = importlib.import_module(f"benchmarks.sides.{library}_{case['kind']}")
        return module.build(case, device)

    return build


def serve(hello: Callable[[], dict[str, Any]], build: Callable[[dict[str, Any]], Any]) -> None:
    """Answer requests until the standard input ends.

    **Arguments:**

    - `hello`: returns the answer to the greeting.
    - `build`: builds an object with `facts` and `measures` (see `benchmarks.sides`) from a case.
    """
    # Libraries may print. Their output goes to the error stream, and only answers to the output.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    subjects: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(request, subjects, hello, build)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {first}"[:200]}
        answers.write(json.dumps(answer) + "\n")


def _answer(request: dict[str, Any], subjects: dict[str, Any], hello: Any, build: Any) -> Any:
    match request:
        case {"do": "hello"}:
            return hello()
        case {"do": "build", "as": name, "case": spec}:
            subject = subjects[name] = build(spec)
            return {"facts": subject.facts, "measures": list(subject.measures)}
        case {"do": "run", "as": name, "measure": measure, "calls": calls}:
            return {"seconds": subjects[name].measures[measure](calls)}
        case {"do": "free", "as": name}:
            subjects.pop(name, None)
            gc.collect()
            return {}
    raise ValueError(f"no such request: {request}")


def main() -> None:
    """Serve the environment and device of the command line."""
    environment, device = sys.argv[1:]
    serve(
        lambda: {
            "versions": versions(environment),
            "device": device_name(environment, device),
        },
        builder(environment, device),
    )


if __name__ == "__main__":
    main()
