"""The methods of the study: which arrays train, and how they depend on the parameter."""

from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax

from jno.lora import Net
from jno_lora_conditional import Conditional, Network, Powers

from ._fitting import State
from ._modulation import Affine, Channel, Film, Hidden
from ._tasks import Task


@dataclass(frozen=True)
class Method:
    """A model that may depend on the parameter, and around which rates it is trained.

    **Arguments:**

    - `dense`, `rank`: the adapters of linear layers and convolutions; `None` for none.
    - `every_layer`: whether transformers have adapters beyond attention and the networks after it.
    - `spectral`, `spectral_rank`: the adapters of spectral weights, in models that have them.
      Alpha is always twice the rank.
    - `basis`: what makes the adapters functions of the parameter; `None`: the same for all values.
    - `modulation`: FiLM with features of a kind, or an input channel.
    - `is_full`: whether all weights of the model train.
    - `rate`: the first learning rate of the search. `ratio`: the modulation's rate over it, which
      is searched as well unless it is 1.
    - `replay`: whether a quarter of each batch is samples of the source.
    - `more`: whether the samples are spread over twice as many values.
    """

    name: str
    dense: str | None = None
    rank: int = 1
    every_layer: bool = False
    spectral: str = "cp"
    spectral_rank: int = 4
    basis: Literal["z", "z, z²", "network", "without log"] | None = None
    modulation: Literal["channel", "affine", "network", "anchored", "anchored network"] | None = (
        None
    )
    is_full: bool = False
    rate: float = 1e-2
    ratio: float = 1.0
    replay: bool = False
    more: bool = False

    @property
    def is_conditional(self) -> bool:
        """Whether the adapters are functions of the parameter, with the source unchanged."""
        return self.basis is not None

    def on(self, task: Task) -> bool:
        """Whether the method differs from all earlier methods on this task."""
        if self.every_layer and task.family.attention is None:
            return False
        return task.log or self.basis != "without log"

    def partition(self, task: Task, model: Any, seed: int) -> tuple[State, State]:
        """The trainable and the frozen arrays of the method's state."""
        key = jax.random.key(seed)
        core, trains = self._core(task, model, key)
        state = State(core, self._modulated(task, model, key))
        mask = jax.tree.map(eqx.is_inexact_array, state)
        return eqx.partition(state, eqx.tree_at(lambda state: state.core, mask, trains))

    def _core(self, task: Task, model: Any, key: Any) -> tuple[Any, Any]:
        net = Net(model, key=key)
        if self.is_full:
            return net.module, net.trainable
        if self.dense is None:
            return model, jax.tree.map(lambda _: False, model)
        net.freeze()
        spectral = task.family.spectral
        if spectral is not None:
            alpha = 2.0 * self.spectral_rank
            net.lora(self.spectral_rank, alpha, target=spectral, wrapper=self.spectral)
        target = None if spectral is None else f"^(?!.*{spectral})"
        if not self.every_layer and task.family.attention is not None:
            target = task.family.attention
        net.lora(self.rank, 2.0 * self.rank, target=target, wrapper=self.dense)
        if self.basis is None:
            return net.module, net.trainable
        conditional = Conditional(net, self._basis(task, key))
        return conditional, conditional.trainable

    def _basis(self, task: Task, key: Any) -> Any:
        if self.basis == "network":
            return Network(task.source, task.unit, log=task.log, key=key)
        if self.basis == "without log":
            return Powers(task.source, task.training[-1] - task.source)
        degree = 2 if self.basis == "z, z²" else 1
        return Powers(task.source, task.unit, degree=degree, log=task.log)

    def _modulated(self, task: Task, model: Any, key: Any) -> Any:
        u = Powers(task.source, task.unit, log=task.log)
        if self.modulation == "channel":
            return Channel(task.family, model, u)
        if self.modulation == "affine":
            return Film(task.family, model, Affine(u), 2)
        if self.modulation == "network":
            return Film(task.family, model, Hidden(u, 9, key=key), 9)
        if self.modulation == "anchored":
            return Film(task.family, model, u, 1)
        if self.modulation == "anchored network":
            return Film(
                task.family, model, Network(task.source, task.unit, log=task.log, key=key), 2
            )
        return None


# The adapter that the goal is about was chosen before any run: the best small adapter of the first
# study, as a function of the parameter.
HEADLINE = "conditional lora 1, cp 4"
COMBINED = "conditional lora 1, cp 4 + film"
POOLED, FULL = "lora 1, cp 4", "full"
FILM = Method("full + film", modulation="network", is_full=True, rate=1e-4, ratio=100.0)

# All of them run on all tasks and numbers of samples, in this order.
MAIN = (
    Method(HEADLINE, "lora", basis="z"),
    FILM,
    Method(FULL, is_full=True, rate=3e-4),
    Method("full + channel", modulation="channel", is_full=True, rate=1e-4, ratio=100.0),
    Method("film", modulation="network"),
    Method(POOLED, "lora", rate=3e-3),
    Method(COMBINED, "lora", basis="z", modulation="anchored", rate=3e-3),
    Method("conditional adalora 1, cp 4", "adalora", basis="z"),
)
# These run with one number of samples.
SECOND = (
    Method(
        "conditional adalora 1, cp 4 + film",
        "adalora",
        basis="z",
        modulation="anchored",
        rate=3e-3,
    ),
    Method(
        "conditional lora 1, cp 4, network + film",
        "lora",
        basis="network",
        modulation="anchored network",
        rate=3e-3,
    ),
    Method("conditional lora 1, cp 4, (z, z²)", "lora", basis="z, z²"),
    Method("conditional lora 1, cp 4, network", "lora", basis="network"),
    Method("conditional lora 1, cp 4, without log", "lora", basis="without log"),
    Method("conditional hira 1, cp 4", "hira", basis="z"),
    Method("conditional lora 2", "lora", 2, spectral="lora", spectral_rank=2, basis="z"),
    Method("conditional lora 1, cp 4, every layer", "lora", every_layer=True, basis="z"),
    Method("conditional lora 1, cp 4, 8 values", "lora", basis="z", more=True),
    Method(
        "full + film, 8 values",
        modulation="network",
        is_full=True,
        rate=1e-4,
        ratio=100.0,
        more=True,
    ),
    Method(
        "full + film, replay",
        modulation="network",
        is_full=True,
        rate=1e-4,
        ratio=100.0,
        replay=True,
    ),
    Method("full + film, affine", modulation="affine", is_full=True, rate=1e-4, ratio=100.0),
)
METHODS = (*MAIN, *SECOND)
