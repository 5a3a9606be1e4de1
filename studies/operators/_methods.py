"""The methods of the study, the most important first: adding one is adding a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jno.lora import Net

from ._problems import Problem

RANK, ALPHA = 2, 4.0


@dataclass(frozen=True)
class Method:
    """How a net trains, and around which learning rate.

    **Arguments:**

    - `wrappers`: of the adapters, in order of priority.
    - `trains`: what trains without adapters: `"all"`, `"head"`, or a regex of paths.
    - `target`: regex of the layers that get adapters; `None` for every layer.
    - `rate`: the middle one of the learning rates.
    - `from_data`: whether the adapters start from batches of the training samples.
    """

    name: str
    wrappers: Sequence[str] = ()
    trains: str | None = None
    rank: int = RANK
    target: str | None = None
    rate: float = 3e-3
    from_data: bool = False

    def applied(self, model: Any, problem: Problem, seed: int, batches: Any, loss: Any) -> Net:
        """The model, with its trainable part chosen. `batches()` are of the training samples."""
        net = Net(model, key=jax.random.key(seed))
        if self.trains == "all":
            return net
        if self.trains is not None:
            where = problem.family.head if self.trains == "head" else self.trains
            return net.freeze().mask(where).unfreeze()
        more = {"calibrate": (batches(), loss)} if self.from_data else {}
        alpha = ALPHA / RANK * self.rank
        return net.freeze().lora(
            self.rank, alpha, target=self.target, wrapper=list(self.wrappers), **more
        )


def _with_lora(name: str, **settings: Any) -> Method:
    """A method of the zoo where it has an adapter, and LoRA for spectral weights."""
    return Method(name, [name, "lora"], **settings)


# Dense layers only: an FNO's spectral weights stay as they are.
_DENSE = r"^(?!.*layers_conv)"

METHODS = (
    Method("full", trains="all", rate=1e-3),
    Method("lora", ["lora"]),
    Method("lora, rank 1", ["lora"], rank=1),
    Method("head", trains="head"),
    Method("biases", trains="bias", rate=1e-2),
    Method("lora, dense", ["lora"], target=_DENSE),
    _with_lora("dora"),
    _with_lora("pissa"),
    _with_lora("ia3", rate=1e-2),
    Method("ia3, dense", ["ia3"], target=_DENSE, rate=1e-2),
    _with_lora("lokr"),
    _with_lora("oft"),
    Method("lora, rank 8", ["lora"], rank=8),
    *(
        _with_lora(name)
        for name in (
            *("rslora", "lora-fa", "adalora", "delora", "olora", "deft", "milora", "lora-xs"),
            *("tinylora", "psoft", "vera", "vera-shared", "hira", "loha", "miss", "randlora"),
            *("gralora", "c3a", "boft", "hra", "oft-in", "road", "ia3-in", "ia3-out"),
            *("fourierft", "waveft", "shira", "supertuning", "tied-lora", "vb-lora"),
        )
    ),
    *(_with_lora(name, from_data=True) for name in ("eva", "corda", "lora-ga", "lora-one")),
)
