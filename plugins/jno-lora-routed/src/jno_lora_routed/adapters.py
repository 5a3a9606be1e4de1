"""HydraLoRA, a mixture of LoRA experts, Lily and Poly."""

import functools
from collections.abc import Mapping
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jno.lora import Shared
from jno_lora_zoo import adapter_dtype_for, cited

from ._routed import Routed, checked_count, normal, weighted
from .routers import Tasks, TopK


class HydraLoRA(Routed):
    """HydraLoRA: one `A` for all experts, and a `B` for each expert, weighted by a router.

    Law: `y = W x + (alpha / r) sum_i w_i(x) B_i A x`, `w(x) = softmax(G x)`. `A ~ N(0, 1/in)`,
    `B_i = 0`, and the gate `G` `(experts, in)` starts as a linear layer.

    **Arguments:** `experts`: the number of `B_i`. `adapter_dtype`: by default the weight's, float32
    at least.

    **Raises:** (like all adapters here) `ValueError` for an option with a wrong value.

    Paper: Tian et al., "HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning",
    arXiv:2404.19245. The gate reads the input of the layer, as in the authors' code.
    """

    factor_sides: ClassVar[Mapping[str, str]] = {"lora_A": "input"}  # an `A` belongs to several `B`
    variant = "hydra-lora"
    about = cited("2404.19245", family="routed", formula="r in + n (r out + in)")

    lora_A: Float[Array, "r in"]
    lora_B: Float[Array, "experts out r"]

    def __init__(
        self,
        base: eqx.nn.Linear,
        rank: int,
        alpha: float,
        *,
        key: PRNGKeyArray,
        experts: int = 4,
        adapter_dtype: DTypeLike | None = None,
    ):
        outputs, inputs = base.weight.shape
        n, dtype = checked_count("experts", experts), adapter_dtype_for(base.weight, adapter_dtype)
        for_A, for_router = jax.random.split(key)
        A, B = normal(for_A, (rank, inputs), dtype), jnp.zeros((n, outputs, rank), dtype)
        router = self.router_class(inputs, n, key=for_router, dtype=dtype)
        self._take(base, rank, alpha, A, B, router)

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, int]:
        return {"experts": state["lora_B"].shape[0]}

    def update(
        self, x: Float[Array, " in"], key: PRNGKeyArray | None = None
    ) -> Float[Array, " out"]:
        h = self.alpha / self.rank * (x @ self.lora_A.T.astype(x.dtype))
        return weighted(self.routing(x, key=key), h, self.lora_B)


class MoELoRA(Routed):
    """A mixture of LoRA experts: a router weights `experts` pairs of factors.

    Law: `y = W x + (alpha / r) sum_i w_i(x) B_i A_i x`, where `w(x)` is the softmax over the
    `top_k` largest entries of `G x`, and 0 elsewhere. `A_i ~ N(0, 1/in)`, `B_i = 0`, and the gate
    `G` `(experts, in)` starts as a linear layer. Experts with weight 0 are still computed.

    **Arguments:** `experts`: the number of pairs. `top_k`: by default all experts.
    `adapter_dtype`: by default the weight's, float32 at least.

    Papers: Dou et al., "LoRAMoE: Alleviate World Knowledge Forgetting in Large Language Models via
    MoE-Style Plugin", arXiv:2312.09979, weights all experts; Li et al., "MixLoRA: Enhancing Large
    Language Models Fine-Tuning with LoRA-based Mixture of Experts", arXiv:2404.15159, the `top_k`.
    The papers' losses that balance the experts are left to the user.
    """

    variant = "moe-lora"
    about = cited("2312.09979", "2404.15159", family="routed", formula="n (r (in + out) + in)")
    router_class = TopK

    lora_A: Float[Array, "experts r in"]
    lora_B: Float[Array, "experts out r"]

    def __init__(
        self,
        base: eqx.nn.Linear,
        rank: int,
        alpha: float,
        *,
        key: PRNGKeyArray,
        experts: int = 4,
        top_k: int | None = None,
        adapter_dtype: DTypeLike | None = None,
    ):
        n, dtype = checked_count("experts", experts), adapter_dtype_for(base.weight, adapter_dtype)
        outputs, inputs = base.weight.shape
        for_A, for_router = jax.random.split(key)
        A, B = normal(for_A, (n, rank, inputs), dtype), jnp.zeros((n, outputs, rank), dtype)
        is_top_k = issubclass(self.router_class, TopK)
        if top_k is not None and not is_top_k:
            raise ValueError(f"`top_k` is for a TopK, not for a {self.router_class.__name__}")
        options = {"top_k": n if top_k is None else top_k} if is_top_k else {}
        router = self.router_class(inputs, n, key=for_router, dtype=dtype, **options)
        self._take(base, rank, alpha, A, B, router)

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, int]:
        return {"experts": state["lora_B"].shape[0]}

    def update(
        self, x: Float[Array, " in"], key: PRNGKeyArray | None = None
    ) -> Float[Array, " out"]:
        A = self.lora_A.astype(x.dtype)
        h = self.alpha / self.rank * (x @ A.reshape(-1, x.size).T)
        return weighted(self.routing(x, key=key), h.reshape(A.shape[:2]), self.lora_B)


class Lily(Routed):
    """Lily: each layer has an `A`; layers of one shape share the `B_i`, weighted by a router.

    Law: `h = A x`, `y = W x + (alpha / r) sum_i w_i(h) B_i h`, `w(h) = softmax(G h)`.
    `A ~ N(0, 1/in)`, `B_i = 0`, and the gate `G` `(experts, r)` starts as a linear layer. The
    authors and PEFT average `w` over all tokens of a batch, so that a token depends on the other
    tokens; `average_over(model, "tokens")` does the same. Without it, each token has its own
    weights.

    Call `jno.lora.resolve(model)` in the loss.

    **Arguments:** `experts`: the number of shared `B_i`. `group`: layers of the same shape share
    their `B_i` only within a group, for example queries or values. `adapter_dtype`: by default the
    weight's, float32 at least.

    Paper: Zhong et al., "Low-Rank Interconnected Adaptation across Layers", arXiv:2407.09946.
    Sharing `A` among consecutive layers, as in the paper, is not supported.
    """

    factor_sides: ClassVar[Mapping[str, str]] = {"lora_A": "input"}
    variant = "lily"
    about = cited("2407.09946", family="routed", formula="r (in + n), and n r out once")

    lora_A: Float[Array, "r in"]
    lora_B: Shared
    # Zeros. `options_of` only gets shapes, so the shape encodes `group + 1` and the experts. (Not
    # `group`, because Orbax cannot save an empty array.)
    sizes: Int[Array, "groups experts"]

    def __init__(
        self,
        base: eqx.nn.Linear,
        rank: int,
        alpha: float,
        *,
        key: PRNGKeyArray,
        experts: int = 4,
        group: int = 0,
        adapter_dtype: DTypeLike | None = None,
    ):
        outputs, inputs = base.weight.shape
        n, dtype = checked_count("experts", experts), adapter_dtype_for(base.weight, adapter_dtype)
        name = f"lily-B-{n}x{outputs}x{rank}-of-{inputs}-{checked_count('group', group, 0)}"
        for_A, for_router = jax.random.split(key)
        B = Shared(name, (n, outputs, rank), functools.partial(_zeros, dtype=dtype))
        router = self.router_class(rank, n, key=for_router, dtype=dtype)
        self._take(base, rank, alpha, normal(for_A, (rank, inputs), dtype), B, router)
        self.sizes = jnp.zeros((group + 1, n), jnp.int8)

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, int]:
        groups, experts = state["sizes"].shape
        return {"experts": experts, "group": groups - 1}

    def update(
        self, x: Float[Array, " in"], key: PRNGKeyArray | None = None
    ) -> Float[Array, " out"]:
        h = x @ self.lora_A.T.astype(x.dtype)
        w = self.routing(h, key=key)
        return weighted(w, self.alpha / self.rank * h, self.lora_B.array)


class Poly(Routed):
    """Poly: the factors of several skills, mixed for each task by trained weights.

    Law: `y = W x + (alpha / r) B A x` with `A = sum_i w_i(t) A_i` and `B = sum_i w_i(t) B_i`, for
    the task `t`: `w(t) = sigmoid(z_t)` divided by its sum. With `splits`, the inputs and outputs
    are cut into as many blocks, and each block has its own skills and weights (multi-head routing).
    `A_i ~ N(0, splits/in)`, `B_i = 0`, and `z` is uniform in `+-0.001`.

    `with_task(model, task)` chooses the task, 0 at first.

    **Arguments:** `tasks`, `skills`, `splits`: their numbers. `sampled`: draw the weights while
    training, in calls with a key; not saved in files. `adapter_dtype`: by default the weight's,
    float32 at least.

    **Raises:** `ValueError` if `splits` does not divide the inputs and the outputs.

    Papers: Ponti et al., "Combining Modular Skills in Multitask Learning", arXiv:2202.13914; Caccia
    et al., "Multi-Head Adapter Routing for Cross-Task Generalization", arXiv:2211.03831, for
    `splits`. PEFT's scale is `alpha = 1`.
    """

    variant = "poly"
    about = cited(
        "2202.13914", "2211.03831", family="routed", formula="skills (r (in + out) + tasks splits)"
    )
    router_class = Tasks

    lora_A: Float[Array, "splits skills r in_block"]
    lora_B: Float[Array, "splits skills out_block r"]

    def __init__(
        self,
        base: eqx.nn.Linear,
        rank: int,
        alpha: float,
        *,
        key: PRNGKeyArray,
        tasks: int = 1,
        skills: int = 4,
        splits: int = 1,
        sampled: bool = False,
        adapter_dtype: DTypeLike | None = None,
    ):
        outputs, inputs = base.weight.shape
        counts = {"tasks": tasks, "skills": skills, "splits": splits}
        for name, count in counts.items():
            checked_count(name, count)
        if inputs % splits or outputs % splits:
            raise ValueError(f"`splits` must divide {inputs} inputs and {outputs} outputs")
        dtype = adapter_dtype_for(base.weight, adapter_dtype)
        for_A, for_router = jax.random.split(key)
        A = normal(for_A, (splits, skills, rank, inputs // splits), dtype)
        B = jnp.zeros((splits, skills, outputs // splits, rank), dtype)
        options = {"tasks": tasks, "splits": splits, "sampled": sampled}
        if not issubclass(self.router_class, Tasks):
            if tasks != 1 or sampled:
                name = self.router_class.__name__
                raise ValueError(f"`tasks` and `sampled` are for a Tasks, not for a {name}")
            options = {}
        slots = splits * skills
        router = self.router_class(inputs, slots, key=for_router, dtype=dtype, **options)
        self._take(base, rank, alpha, A, B, router)

    @classmethod
    def options_of(cls, state: Mapping[str, Array]) -> dict[str, int]:
        splits, skills = state["lora_A"].shape[:2]
        has_tasks = issubclass(cls.router_class, Tasks)
        tasks = state["router/logits"].shape[0] if has_tasks else 1
        return {"tasks": tasks, "skills": skills, "splits": splits}

    def update(
        self, x: Float[Array, " in"], key: PRNGKeyArray | None = None
    ) -> Float[Array, " out"]:
        A, B = self.lora_A.astype(x.dtype), self.lora_B.astype(x.dtype)
        w = self.routing(x, key=key).reshape(A.shape[:2])
        A = jnp.einsum("bs,bsri->rbi", w, A).reshape(self.rank, -1)
        B = jnp.einsum("bs,bsor->bor", w, B).reshape(-1, self.rank)
        return (self.alpha / self.rank * (x @ A.T)) @ B.T

    def partition_specs(self) -> dict[str, PartitionSpec]:
        return {}  # a block of features may be split between devices


def _zeros(key: PRNGKeyArray, shape: tuple[int, ...], *, dtype: DTypeLike) -> Array:
    return jnp.zeros(shape, dtype)
