"""Saving a model's adapters as PEFT's files."""

from collections.abc import Collection, Mapping
from typing import Any

from jaxtyping import PyTree

from jno.lora import LoRAWrapper, Net, PeftFormatError, resolve
from jno.lora.extending import adapted_layers, bullets, expect_model, show_path

from ._files import PREFIX, Directory, write
from ._layouts import layout_of
from ._names import HEAD, Rename, is_embedding, may_be_tied, peft_name
from ._others import Others
from ._ties import Ties
from ._types import TYPE_OF, TYPES
from ._updates import MisfitError
from ._written import Written, trained_in_base, written, written_base
from ._written_config import common_variant, config_of, described, from_all, targets


def save_peft(
    model: PyTree | Net,
    directory: Directory,
    *,
    rename: Rename = None,
    modules_to_save: str | None = None,
    tied: bool | None = None,
    base_model_name_or_path: str | None = None,
    task_type: str | None = None,
) -> None:
    """Write the adapters of `model` as one adapter of PEFT, for `PeftModel.from_pretrained`.

    A method that PEFT has as well is written as PEFT's type. Others are written as LoRA with the
    same update if that is a product of two factors of low rank (of twice the rank for PiSSA and
    others that change the weight at first), as is what mixes LoRA and rsLoRA. The page "Coming from
    PEFT" lists them.
    The adapted layers themselves are not written: PEFT puts the adapters around its own.

    Trained arrays outside the adapters are written as PEFT's `modules_to_save`: those that a `Net`
    trains, those that `modules_to_save` names, and those that `load_peft` read from a file and that
    are still the same arrays. A plain model does not tell what else was trained. A model without
    adapters is written with these arrays alone, in the type that was read or as `LN_TUNING`.

    **Arguments:**

    - `model`: a `Net`, or an adapted model.
    - `directory`: made if it does not exist. An adapter in it is replaced.
    - `rename`: from the paths of layers here to PEFT's names of modules: a table of regular
        expressions and replacements, each used in turn on the path (`{"^": "model/"}`) before its
        slashes become dots, or a function of the path that returns the dotted name. Each layer of a
        stack has a path such as `layers/q_proj[3]`.
    - `modules_to_save`: a regular expression for the paths of arrays outside the adapters, such as
        `"^classifier/|norm/"`: their modules are written whole. It replaces what a `Net` trains.
    - `tied`: whether an output head reads the table of an adapted embedding, as for `load_peft`. An
        adapter that a head sees too is written with PEFT's `ensure_weight_tying`; one that acts on
        lookups alone is in an `Untied`.
    - `base_model_name_or_path`: the model that the adapter is for: its name on a hub, or a path.
    - `task_type`: PEFT's name of the task, such as `"CAUSAL_LM"`, by which `AutoPeftModel` and
        others choose the model's class.

    **Raises:** `PeftFormatError` that lists every adapter, or every trained array, without an exact
    equivalent in PEFT; also if a setting is malformed, the adapters are of kinds that PEFT cannot
    keep together, an array cannot be read (tracers, donated arrays), or the files cannot be
    written: the old ones are whole then, or without a configuration, so that nothing loads.
    `SelectionError` for a bad `rename`, `modules_to_save` or model.
    """
    described_as = described(base_model_name_or_path, task_type)
    trainable = None
    if isinstance(model, Net):
        model, trainable = model.module, model.trainable
    expect_model(model, "save_peft")
    ties = Ties(model, tied)
    saving = _Saving(model, trainable, rename, ties)
    if saving.problems:
        raise PeftFormatError(
            f"These adapters have no exact equivalent in PEFT:\n{bullets(saving.problems)}\n"
            "Nothing was written."
        )
    others = Others(model, rename, ties, saving.modules)
    # Without adapters a model may hold arrays that `load_peft` read, and nothing else is meant.
    others.choose(trainable if saving.modules else None, modules_to_save)
    if others.problems:
        raise PeftFormatError(
            f"PEFT cannot save these arrays beside the adapters:\n{bullets(others.problems)}\n"
            "Nothing was written. To write the adapters alone, save `net.module`."
        )
    if not saving.modules:
        if not others.names:
            raise PeftFormatError("The model carries no adapters to save. Save before merging.")
        config, tensors = others.alone()
        write(directory, {**described_as, "inference_mode": True, **config}, tensors)
        return
    variant = common_variant(saving.modules)
    kind = TYPES[TYPE_OF[variant]]
    if (others.ties and TYPE_OF[variant] != "LORA") or (
        saving.ties_adapter and any(map(may_be_tied, others.names))
    ):
        raise PeftFormatError(
            "PEFT ties a head to its embedding for LoRA alone, and either in adapters or in "
            f"modules_to_save, but these adapters are beside {', '.join(others.names)}. Nothing "
            "was written."
        )
    config = {
        **described_as,
        **config_of(saving.modules, variant, HEAD if saving.ties_adapter else None),
        "target_modules": targets(saving.modules, model, rename),
        "modules_to_save": others.names or None,
    }
    if kind.bias:
        config["bias"] = kind.bias if saving.has_bias else "none"
    if TYPE_OF[variant] == "LORA":
        config["ensure_weight_tying"] = saving.ties_adapter or others.ties
    shared = from_all(kind.shares, saving.modules)
    write(directory, config, {**saving.tensors, **others.tensors, **shared})


class _Saving:
    """The tensors of a model's adapters, and all problems."""

    def __init__(self, model: PyTree, trainable: PyTree | None, rename: Rename, ties: Ties):
        self.problems: list[str] = []
        self.modules: dict[str, Written] = {}
        self.tensors: dict[str, Any] = {}
        # Whether PEFT must adapt the head that is tied to an embedding; whether biases changed.
        self.ties_adapter = self.has_bias = False
        self._rename = rename
        self._ties = ties
        flags = () if trainable is None else (trainable,)
        # With the arrays that adapters share; not for the flags, which have the model's structure.
        resolved = (whole for _, whole in adapted_layers(resolve(model)))
        for (path, node, *trains), whole in zip(
            adapted_layers(model, *flags), resolved, strict=True
        ):
            try:
                trained = trained_in_base(node, trains[0]) if trains else frozenset()
                for one in written(whole, self._ties.outer(path)):
                    module = self._add(one)
                    self._add_base(module, node, one, trained)
                    self._tie(module, one, node, self._ties.of(path))
            except MisfitError as err:
                where = f"{show_path(path)} ({type(node).__name__})"
                self.problems += [f"{where}: {line}" for line in err.args]

    def _add(self, one: Written) -> str:
        module = peft_name(one.path, self._rename)
        if module in self.modules:
            raise MisfitError(
                f"it has PEFT's name {module!r}, as {self.modules[module].path!r} has"
            )
        self.modules[module] = one
        self._put(module, one.tensors)
        return module

    def _add_base(
        self, module: str, node: LoRAWrapper, one: Written, trained: Collection[str]
    ) -> None:
        """Arrays of the layer itself that train, or that `load_peft` read."""
        arrays = written_base(node, one.place, trained)
        if "bias" in arrays and not TYPES[one.type].bias:
            raise MisfitError(
                f"its bias is not that of the base model, and PEFT's {one.type} keeps that"
            )
        self.has_bias |= "bias" in arrays
        self._put(f"{module}.base_layer", arrays)

    def _tie(self, module: str, one: Written, node: LoRAWrapper, is_tied: bool | None) -> None:
        """Let the head that reads an adapted table have the update as well, as it has here."""
        if is_tied is False:
            return
        if not _is_table(node):
            raise MisfitError(
                "other layers read its weight through eqx.nn.Shared, and PEFT adapts this layer "
                "alone. Let the embedding hold the weight"
            )
        if one.variant in ("lora", "rslora") and is_embedding(module):
            self.ties_adapter = True
            A, B = one.tensors["lora_embedding_A"], one.tensors["lora_embedding_B"]
            self._put(HEAD, {"lora_A.weight": B.T, "lora_B.weight": A.T})
            return
        raise MisfitError(_NOT_TIED if is_tied else _MAY_BE_TIED)

    def _put(self, module: str, tensors: Mapping[str, Any]) -> None:
        self.tensors |= {f"{PREFIX}{module}.{name}": tensor for name, tensor in tensors.items()}


def _is_table(node: LoRAWrapper) -> bool:
    """Whether an adapter is around an embedding."""
    layout = layout_of(node.base)
    return layout is not None and layout.kind == "embedding"


_LIMIT = (
    "PEFT lets a head see the adapter of its embedding only for LoRA and rsLoRA on an embedding of "
    "the name 'embed_tokens' (`ensure_weight_tying`)"
)
_NOT_TIED = (
    f"a head reads the adapted table. {_LIMIT}. Train it on lookups alone: `untie` the embedding "
    "before it is adapted"
)
_MAY_BE_TIED = (
    f"a head may read the adapted table, which a model does not tell. {_LIMIT}. If no head reads "
    "it, say tied=False; if one does, `untie` the embedding before it is adapted"
)
