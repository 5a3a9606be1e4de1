"""The methods of the study, the most important first. A new method is one line in `METHODS`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax

from jno.lora import Net
from jno_lora_zoo import collect_statistics

from .._families import Family
from ._problems import Problem


@dataclass(frozen=True)
class Method:
    """Which parameters of a net train, and around which learning rate.

    **Arguments:**

    - `dense`: the adapters of linear layers and convolutions; `None` for none.
    - `rank`: the rank of these adapters. Alpha is always twice the rank.
    - `attention`: whether only attention and the networks after it get these adapters, in models
        with attention.
    - `spectral`, `spectral_rank`: the adapters of spectral weights, in models that have them.
    - `bands`: the ranks of these adapters by frequency.
    - `trains`: parameters that train without adapters: `"all"`, `"head"`, or a regex of paths.
    - `rate`: the middle learning rate.
    - `from_data`: whether the adapters start from batches: of the `"training"` samples, or of
        stored simulations of the `"source"`.
    - `frozen`: regex of the arrays of adapters that do not train.
    - `retain`: the weight of `jno_lora_train.retain` on stored fields of the source; 0 for none.
    """

    name: str
    dense: str | None = None
    rank: int = 2
    attention: bool = False
    spectral: str | None = "lora"
    spectral_rank: int = 2
    bands: Mapping[int, int] | None = None
    trains: str | None = None
    rate: float = 3e-3
    from_data: Literal["training", "source"] | None = None
    frozen: str | None = None
    retain: float = 0.0

    def on(self, family: Family) -> "Method":
        """The first method that does the same on a family. Many methods coincide on some family."""
        settings = self._settings(family)
        methods = (*METHODS, *KEEPING, self)
        return next(method for method in methods if method._settings(family) == settings)

    def applied(self, model: Any, problem: Problem, seed: int, batches: Any, loss: Any) -> Net:
        """A net of the model in which this method's parameters train.

        `batches()` returns batches of the samples that the adapters start from.
        """
        net = Net(model, key=jax.random.key(seed))
        if self.trains == "all":
            return net
        if self.trains is not None:
            paths = problem.family.head if self.trains == "head" else self.trains
            return net.freeze().mask(paths).unfreeze()
        net.freeze()
        spectral = problem.family.spectral
        if spectral is not None and self.spectral is not None:
            alpha = 2.0 * self.spectral_rank
            options = {} if self.bands is None else {"bands": self.bands}
            net.lora(
                self.spectral_rank, alpha, target=spectral, wrapper=self.spectral, options=options
            )
        if self.dense is not None:
            target = None if spectral is None else f"^(?!.*{spectral})"
            if self.attention and problem.family.attention is not None:
                target = problem.family.attention
            chosen, statistics = {"target": target, "wrapper": self.dense}, None
            if self.from_data is not None:
                statistics = collect_statistics(net.module, batches(), loss, **chosen)
            net.lora(self.rank, 2.0 * self.rank, statistics=statistics, **chosen)
        if self.frozen is not None:
            net.mask(self.frozen).freeze()
        return net

    def _settings(self, family: Family) -> "Method":
        """This method without its name and without the settings that the family ignores."""
        ignored: dict[str, Any] = {"name": ""}
        if family.spectral is None:
            ignored |= {"spectral": None, "spectral_rank": 0, "bands": None}
        if family.attention is None:
            ignored |= {"attention": False}
        return replace(self, **ignored)


METHODS = (
    Method("full", trains="all", rate=1e-3),
    Method("lora", "lora"),
    Method("lora 1, cp 4", "lora", rank=1, spectral="cp", spectral_rank=4),
    Method("bottleneck 1, cp 4", "bottleneck", rank=1, spectral="cp", spectral_rank=4),
    Method("lora 1, cp 4, attention", "lora", 1, True, "cp", 4),
    Method("biases", trains="bias$", rate=1e-2),
    Method("ia3, cp 4", "ia3", spectral="cp", spectral_rank=4, rate=1e-2),
    Method("ia3, cp 4, attention", "ia3", 2, True, "cp", 4, rate=1e-2),
    Method("lora 1, gain", "lora", rank=1, spectral="gain"),
    Method("head", trains="head"),
    Method("dora 1, cp 4", "dora", rank=1, spectral="cp", spectral_rank=4),
    Method("lora, no spectral", "lora", spectral=None),
    Method("dora", "dora"),
    Method("pissa", "pissa"),
    Method("ia3", "ia3", rate=1e-2),
    Method("lokr", "lokr"),
    Method("oft", "oft"),
    Method("lora 8", "lora", rank=8, spectral_rank=8),
    Method("pissa 1, cp 4", "pissa", rank=1, spectral="cp", spectral_rank=4),
    Method("bottleneck 4, gain", "bottleneck", rank=4, spectral="gain"),
    *(
        Method(name, name)
        for name in (
            *("rslora", "lora-fa", "adalora", "delora", "olora", "deft", "milora", "lora-xs"),
            *("tinylora", "psoft", "vera", "vera-shared", "hira", "loha", "miss", "randlora"),
            *("gralora", "c3a", "boft", "hra", "oft-in", "road", "ia3-in", "ia3-out"),
            *("fourierft", "waveft", "shira", "supertuning", "tied-lora", "vb-lora"),
        )
    ),
    *(
        Method(name, name, from_data="training")
        for name in ("eva", "corda", "lora-ga", "lora-one", "lora-null")
    ),
)

# Ways to keep the source, which need stored simulations of the source. They are measured beside the
# methods, at one number of samples. The weight is the weight that the study of sequences chose.
KEEPING = (
    Method("full, retain", trains="all", rate=1e-3, retain=10.0),
    Method("lora, retain", "lora", retain=10.0),
    Method(
        "lora-null, A frozen",
        "lora-null",
        spectral=None,
        from_data="source",
        frozen="lora_A$",
    ),
)
