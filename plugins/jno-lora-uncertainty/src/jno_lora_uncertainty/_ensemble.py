"""`Ensemble`: several small adapters over one base, as one pytree that trains in one program."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import conv_general_dilated_p
from jaxtyping import Array, PRNGKeyArray, PyTree

from jno.lora import LoRAWrapper, Net, SelectionError, Shared, resolve
from jno.lora.extending import (
    adapted_layers,
    equations_in,
    is_traced,
    layers_at,
    overrides,
    show_array,
    warn,
)
from jno_lora_conditional import Conditional, at


class Ensemble(eqx.Module):
    """Several adapted models of one base, which differ in their adapters. A pytree.

    Deep ensembles (Lakshminarayanan et al., arXiv:1612.01474), of adapters.

    ```python
    ensemble = Ensemble(lambda key: Net(model, key=key).freeze().lora(rank=1), 5, key=key)
    trainable, frozen = ensemble.partition()
    trainer = Trainer(Ensemble.loss(loss), optax.adam(1e-2))  # `loss` of one model and its batch
    run = trainer.fit(trainable, frozen, [parts.training(data)] * 300)
    ensemble = ensemble.update(run.trainable)
    ```

    The arrays that train have an axis of members in front, and so have frozen arrays that differ
    from member to member, such as the random matrices of VeRA. All other arrays exist once.

    **Arguments:**

    - `make`: `make(key)` returns the `Net`, or the `Conditional`, of one member, around the same
        pretrained model. Members need different keys, because members that start alike differ too
        little.
    - `members`: their number.
    - `key`: is split into the keys of the members.
    - `call`: `call(member, x)` gives the output for one example. By default `member(x)`, and
        `at(member, x[0])(x[1])` for a conditional.

    **Raises:** `SelectionError` if `make` does not return a `Net` or a `Conditional` with trainable
    arrays, if members differ in more than the values of their arrays, or if there are none. Warns
    if the adapters of all members start alike.
    """

    trained: PyTree[Array]  # with an axis of members in front
    constants: PyTree[Array]  # frozen, also with this axis
    shared: PyTree
    # By path, the layers of a `Net` as they were before its adapters changed them (PiSSA), so that
    # a file can tell another base. They are arrays of the pretrained model, not copies.
    originals: dict[str, eqx.Module]
    members: int = eqx.field(static=True)
    call: Callable[[PyTree, PyTree], PyTree] = eqx.field(static=True)

    def __init__(
        self,
        make: Callable[[PRNGKeyArray], Net | Conditional],
        members: int = 5,
        *,
        key: PRNGKeyArray,
        call: Callable[[PyTree, PyTree], PyTree] | None = None,
    ):
        if members < 1:
            raise SelectionError(
                f"An ensemble needs at least one member, but `members` is {members}."
            )
        made = [_made(make, key) for key in jax.random.split(key, members)]
        halves = [member.partition() for member in made]
        if any(jax.tree.structure(half) != jax.tree.structure(halves[0]) for half in halves):
            raise SelectionError(
                "The members differ in more than the values of their arrays. `make` must adapt the "
                "same model with the same arguments for each key."
            )
        trained, frozen = zip(*halves, strict=True)
        differs = jax.tree.map(lambda *leaves: not _are_equal(leaves), *frozen)
        starts = jax.tree.leaves(jax.tree.map(lambda *leaves: _are_equal(leaves), *trained))
        is_adapted = any(True for _ in adapted_layers(_model_of(made[0])))
        if members > 1 and is_adapted and all(starts) and not any(jax.tree.leaves(differs)):
            warn(
                f"All {members} members start alike, so that only their data can make them differ: "
                "`make` ignores its key, or this adapter has no random start (PiSSA, IA3). Use the "
                "key, Net(model, key=key), and an adapter with a random start, such as LoRA."
            )
        stacks: dict[tuple[int, ...], Array] = {}  # an array that adapters share stays one array

        def stack(differs: bool, *leaves: PyTree) -> Array | None:
            ids = tuple(map(id, leaves))
            if differs and not eqx.is_array(leaves[0]):
                raise SelectionError(
                    f"`make` gives each member another {leaves[0]!r}. Define it once, outside of "
                    "`make`, so that all members share it."
                )
            if differs and ids not in stacks:
                stacks[ids] = jnp.stack(leaves)
            return stacks.get(ids)

        self.trained = hide_shared(jax.tree.map(lambda *leaves: jnp.stack(leaves), *trained))
        self.constants = hide_shared(jax.tree.map(stack, differs, *frozen))
        self.shared = hide_shared(eqx.filter(frozen[0], differs, inverse=True))
        self.originals = _originals(made[0])
        self.members = members
        is_conditional = isinstance(frozen[0], Conditional)
        self.call = call or (_call_conditional if is_conditional else _call_model)

    def partition(self) -> tuple["Ensemble", "Ensemble"]:
        """Split into `(trainable, frozen)`, which `eqx.combine` joins again."""
        mask = jax.tree.map(lambda _: False, self)
        trains = jax.tree.map(lambda _: True, self.trained)
        return eqx.partition(self, eqx.tree_at(lambda e: e.trained, mask, trains))

    def update(self, trainable: "Ensemble") -> "Ensemble":
        """This ensemble with trained arrays.

        **Arguments:** `trainable`: the first tree that `partition` returned, with new values.

        **Raises:** `SelectionError` for any other tree.
        """
        expected, frozen = self.partition()
        if _forms(expected) != _forms(trainable):
            raise SelectionError(
                "The update does not fit this ensemble. Give the first of the two trees that "
                "`ensemble.partition()` returned, with new values."
            )
        return eqx.combine(trainable, frozen)

    def member(self, index: Array | int | np.integer) -> PyTree:
        """One member: an adapted model, which can be merged, or a `Conditional`.

        **Arguments:** `index`: from 0, which may be traced.

        **Raises:** `SelectionError` if there is no such member.
        """
        # JAX clamps an index that is too large.
        if not is_traced(index) and not 0 <= index < self.members:
            raise SelectionError(f"There is no member {index}: the ensemble has {self.members}.")
        stacks = jax.tree.map(lambda array: array[index], (self.trained, self.constants))
        return _show(eqx.combine(*stacks, self.shared))

    def each(self, function: Callable[..., Any], *per_member: PyTree) -> PyTree:
        """`function(member, *arguments)` for all members in one program.

        **Arguments:**

        - `function`: takes one member, as a model that is resolved, or a `Conditional`.
        - `per_member`: arrays with an axis of members in front.

        **Returns:** the outputs, with an axis of members in front. On a CPU, members whose kernels
        of convolutions differ run one after the other in this program, others side by side.

        **Raises:** `SelectionError` if an array does not have this axis.
        """
        per_member = jax.tree.map(jnp.asarray, per_member)
        if any(leaf.shape[:1] != (self.members,) for leaf in jax.tree.leaves(per_member)):
            raise SelectionError(
                f"Data for {self.members} members must have an axis of this size in front, but are "
                f"{[leaf.shape for leaf in jax.tree.leaves(per_member)]}. folds(...).training(data)"
                " gives each member its part."
            )

        def of_member(stacks: PyTree, arguments: PyTree) -> PyTree:
            member = _show(eqx.combine(*stacks, self.shared))
            # The arrays that adapters of a conditional share are frozen, and in each adapter.
            model = member if isinstance(member, Conditional) else resolve(member)
            return function(model, *arguments)

        mapped = (self.trained, self.constants), per_member
        together = jax.vmap(of_member)
        if not _convolves_in_groups(together, mapped, self.members):
            return together(*mapped)
        members = [jax.tree.map(lambda x, i=i: x[i], mapped) for i in range(self.members)]
        outputs = [of_member(*member) for member in members]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)

    @staticmethod
    def loss(loss: Callable[[PyTree, PyTree], Array]) -> Callable[["Ensemble", PyTree], Array]:
        """The loss of an ensemble, for `Trainer` or a loop of your own: the sum over its members.

        Because it is a sum, each member gets the gradient of its own loss. An optimiser that acts
        on each number by itself, such as Adam, trains each member as it would train it alone. Muon,
        LAMB, and a clipped norm of all gradients see the arrays of all members together.

        **Arguments:** `loss`: `loss(member, batch)` of one member.

        **Returns:** a function of an ensemble and of batches with an axis of members in front.
        """

        def total(ensemble: "Ensemble", batches: PyTree) -> Array:
            return jnp.sum(ensemble.each(loss, batches))

        return total


def _convolves_in_groups(
    together: Callable[..., PyTree], mapped: tuple[PyTree, PyTree], members: int
) -> bool:
    """Whether `together`, a map over members, convolves with kernels that differ in the members.

    `vmap` makes these one convolution with a group for each member, whose gradient takes XLA on a
    CPU 20 times as long as a convolution for each member. Kernels of one point cost the same. On
    accelerators, nobody measured it, and members may lie on several devices.
    """
    if members < 2 or jax.default_backend() != "cpu":
        return False

    def is_grouped(equation: Any) -> bool:
        if equation.primitive is not conv_general_dilated_p:
            return False
        facts, kernel = equation.params, equation.invars[1].aval
        is_wide = any(kernel.shape[axis] > 1 for axis in facts["dimension_numbers"].rhs_spec[2:])
        return is_wide and facts["feature_group_count"] * facts["batch_group_count"] % members == 0

    return any(map(is_grouped, equations_in(jax.make_jaxpr(together)(*mapped).jaxpr)))


def check_calibrated(value: object, kind: type, maker: str) -> None:
    """**Raises:** `SelectionError` unless the value is of the kind that `maker` returns."""
    if not isinstance(value, kind):
        raise SelectionError(
            f"Expected a {kind.__name__}, as `{maker}` returns it, but got a "
            f"{type(value).__name__}. Calibrate the trained ensemble first: {maker}(ensemble, ...)"
        )


def _call_model(model: PyTree, x: PyTree) -> PyTree:
    return model(x)


def _call_conditional(conditional: Conditional, x: tuple[PyTree, PyTree]) -> PyTree:
    z, inputs = x
    return at(conditional, z)(inputs)


class _Hidden(eqx.Module):
    """A `Shared` that `resolve` does not see, because it would box the arrays of all members."""

    value: PyTree
    shared: Shared = eqx.field(static=True)


def hide_shared(tree: PyTree) -> PyTree:
    """A member in the structure of the trees of an ensemble."""
    return _mapped(lambda shared: _Hidden(shared.value, _with_value(shared, None)), Shared, tree)


def _show(tree: PyTree) -> PyTree:
    return _mapped(lambda hidden: _with_value(hidden.shared, hidden.value), _Hidden, tree)


def _mapped(function: Callable[[PyTree], PyTree], cls: type, tree: PyTree) -> PyTree:
    def is_leaf(node: object) -> bool:
        return isinstance(node, cls)

    return jax.tree.map(lambda n: function(n) if is_leaf(n) else n, tree, is_leaf=is_leaf)


def _with_value(shared: Shared, value: PyTree) -> Shared:
    return eqx.tree_at(lambda s: s.value, shared, value, is_leaf=lambda leaf: leaf is None)


def _made(make: Callable[..., Net | Conditional], key: PRNGKeyArray) -> Net | Conditional:
    """A member with trainable arrays. **Raises:** `SelectionError`."""
    member = make if isinstance(make, Net | Conditional) else make(key)
    is_member = isinstance(member, Net | Conditional) and member is not make
    if not is_member or not jax.tree.leaves(member.partition()[0]):
        raise SelectionError(
            "`Ensemble` takes a function of a key that returns a Net or a Conditional with "
            f"trainable arrays, but got {make!r:.80}, which gives a {type(member).__name__}: "
            "Ensemble(lambda key: Net(model, key=key).freeze().lora(rank=1), 5, key=key)"
        )
    return member


def _model_of(member: Net | Conditional) -> PyTree:
    return member.model if isinstance(member, Conditional) else member.module


def _originals(member: Net | Conditional) -> dict[str, eqx.Module]:
    if isinstance(member, Conditional):
        return {}
    changed = [
        path
        for path, adapter in adapted_layers(member.module)
        if overrides(type(adapter), LoRAWrapper, "unwrap")
    ]
    return layers_at(copy.copy(member).unwrap().module, changed) if changed else {}


def _are_equal(leaves: Sequence[PyTree]) -> bool:
    """Whether all leaves are the same object, or arrays of the same bits. Tracers have none."""
    if not all(eqx.is_array(leaf) for leaf in leaves):
        return all(leaf == leaves[0] for leaf in leaves)
    if all(leaf is leaves[0] for leaf in leaves):
        return True
    if is_traced(leaves):
        return False
    if jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
        leaves = [jax.random.key_data(leaf) for leaf in leaves]
    return len({np.asarray(leaf).tobytes() for leaf in leaves}) == 1


def _forms(tree: PyTree) -> tuple[object, list[str]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [show_array(leaf) for leaf in leaves if eqx.is_array(leaf)]
