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
    - `film`: whether the adapted layers also get scales and shifts (`Conditional(film=True)`).
    - `by_number`: whether models know the parameter itself, also on tasks that give its logarithm.
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
    film: bool = False
    by_number: bool = False

    @property
    def is_conditional(self) -> bool:
        """Whether the adapters are functions of the parameter, with the source unchanged."""
        return self.basis is not None

    def on(self, task: Task) -> bool:
        """Whether the method differs from all earlier methods on this task."""
        if self.every_layer and task.family.attention is None:
            return False
        if self.by_number and not self.film:  # elsewhere it is the method by the logarithm
            return task.log
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
        conditional = Conditional(net, self._basis(task, key), film=self.film)
        return conditional, conditional.trainable

    def _place(self, task: Task) -> dict[str, Any]:
        """The source, the unit and the coordinate of a basis."""
        if self.by_number or self.basis == "without log":
            return {"source": task.source, "unit": task.training[-1] - task.source}
        return {"source": task.source, "unit": task.unit, "log": task.log}

    def _basis(self, task: Task, key: Any) -> Any:
        if self.basis == "network":
            return Network(**self._place(task), key=key)
        return Powers(**self._place(task), degree=2 if self.basis == "z, z²" else 1)

    def _modulated(self, task: Task, model: Any, key: Any) -> Any:
        u = Powers(**self._place(task))
        if self.modulation == "channel":
            return Channel(task.family, model, u)
        if self.modulation == "affine":
            return Film(task.family, model, Affine(u), 2)
        if self.modulation == "network":
            return Film(task.family, model, Hidden(u, 9, key=key), 9)
        if self.modulation == "anchored":
            return Film(task.family, model, u, 1)
        if self.modulation == "anchored network":
            return Film(task.family, model, Network(**self._place(task), key=key), 2)
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

# The study again, in the right coordinate of a viscosity: with scales and shifts of the library.
AGAIN_HEADLINE = "conditional lora 1, cp 4, film, by number"
FILM_BY_NUMBER = Method(
    "full + film, by number",
    modulation="network",
    is_full=True,
    rate=1e-4,
    ratio=100.0,
    by_number=True,
)
AGAIN = (
    Method(AGAIN_HEADLINE, "lora", basis="z", film=True, by_number=True, rate=3e-3),
    FILM_BY_NUMBER,
    Method("conditional lora 1, cp 4, by number", "lora", basis="z", by_number=True),
    Method(
        "conditional lora 1, cp 4, network, film, by number",
        "lora",
        basis="network",
        film=True,
        by_number=True,
        rate=3e-3,
    ),
    Method(
        "conditional hira 1, cp 4, film, by number",
        "hira",
        basis="z",
        film=True,
        by_number=True,
        rate=3e-3,
    ),
    Method("film, by number", modulation="network", by_number=True),
    Method(
        "full + film, replay, by number",
        modulation="network",
        is_full=True,
        rate=1e-4,
        ratio=100.0,
        replay=True,
        by_number=True,
    ),
)
METHODS = (*MAIN, *SECOND, *AGAIN)
