"""Loading PEFT's files: adapters around the layers of a model."""

import os
import re
from typing import TypeVar

from jno.lora import PeftFormatError, Registry
from jno.lora.extending import bullets, default_registry, expect_model, put_around, warn

from .._names import Rename
from ..files.config import Config
from ..files.directory import Directory, not_finite, read
from ..files.hub import locate, tell_commit
from ..files.tensors import by_module
from ..model.ties import Ties
from ._adapters import check_free as check_free, collected as collected, with_adapters
from ._arrays import with_arrays
from ._placement import Paths as Paths, Place as Place, Placement

M = TypeVar("M")


def load_peft(
    model: M,
    directory: Directory,
    *,
    revision: str | None = None,
    rename: Rename = None,
    tied: bool | None = None,
    registry: Registry | None = None,
) -> M:
    """`model` with the adapter that PEFT saved into `directory`.

    A type that the zoo has a method for becomes adapters of the method, in float32 at least. Other
    types that update the weight become LoRA with the same update, of the rank that this takes. The
    page "Coming from PEFT" lists them. The outputs are PEFT's. An adapter without an exact
    equivalent here is an error.

    Arrays of fused experts (`target_parameters`) are declared arrays here (`jno_lora_arrays`), or
    stacks whose last axis are the experts.

    Trained biases, the modules of `modules_to_save` and trained rows of embeddings replace arrays
    of the model, in the dtype of the model. So does a bias that PEFT changes by its adapter
    (`lora_bias`, BEFT): `unwrap_lora` does not bring the former bias back.

    An adapter of PEFT on an embedding acts on lookups, and not on an output head that is tied to
    the embedding, unless the file says `ensure_weight_tying`. If a head may read the table, the
    embedding becomes an `Untied` that holds the adapter, and the head reads the plain table.

    **Arguments:**

    - `model`: any pytree, adapted or not. Its layers are found by PEFT's names for them, with
        slashes for dots.
    - `directory`: with `adapter_config.json` and `adapter_model.safetensors`; or a string
        `"organisation/name"`, a repository of the Hugging Face Hub with these two files, if there
        is no such directory. `huggingface_hub` (`jno-lora[hub]`) downloads the files once, and
        uses its cache, its token and its offline mode.
    - `revision`: a branch, a tag or a commit of the repository; by default its main branch. Both
        files are from one commit, which is printed on standard error unless `revision` is this
        commit.
    - `rename`: from PEFT's names of modules to the paths of layers here: a table of regular
        expressions and replacements, each used in turn on the slash-joined name, such as
        `{"^model/": ""}`, or a function of the dotted name. A path that ends in `[3]` is layer 3
        of a stack; all layers of a stack must be there.
    - `tied`: whether an output head reads the table of the model's embedding. By default,
        `load_peft` looks at `eqx.nn.Shared`, at a head with a weight of its own, and at a
        `tie_word_embeddings` of the model or of its `config`. If nothing tells, a head may.
    - `registry`: where adapter classes are looked up, instead of among the installed plugins.
        Plugins other than the zoo are loaded only for layers that the zoo has no adapters for.

    **Returns:** the model, with the adapters around its layers. Adapters of the model stay. Tensors
    that hold NaN or infinity are loaded, with a `JnoLoraWarning`.

    **Raises:** `PeftFormatError` for files that are damaged, have no exact equivalent here, or do
    not fit the model (everything at once), or a repository that cannot be read; `SelectionError`
    for a bad `rename`, a `Net`, two places of one path, an adapter that cannot be built, or a
    `revision` of a directory; `PluginError` if a plugin is missing; `MissingLibraryError` for a
    repository without `huggingface_hub`.
    """
    expect_model(model, "load_peft")
    source = locate(directory, revision, Config.parse)
    settings, tensors = read(source.folder)
    tell_commit(source, revision)
    config = Config.parse(settings)
    sorted_tensors = by_module(tensors, config.type.tensors, config.type.shared)
    try:
        placement = Placement(model, config, sorted_tensors, rename, Ties(model, tied))
        model, places = with_arrays(model, placement)
        model, adapters = with_adapters(model, places, placement, default_registry(registry))
    except re.error as err:
        raise PeftFormatError(
            f"adapter_config.json holds {err.pattern!r}, not a valid regular expression: {err}"
        ) from err
    title = f"The {config.type.name} adapter does not fit the model"
    placement.problems.refuse(title, "Nothing was loaded.")
    if lines := not_finite(tensors):
        warn(f"Tensors of {os.fspath(directory)!r} hold NaN or infinity:\n{bullets(lines)}")
    return put_around(model, adapters)
