"""How each project names and lays out LoRA: the table that all readers and converters use.

The name of an array tells its project, its layer and which factor it is.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

from jno_lora_peft.layouts import Shape

from ._laws import Index, Law, law_from_shapes


@dataclasses.dataclass(frozen=True)
class FactoredArray:
    """An array with a layout of its own.

    - `laws`: the possible laws; the shape of the weight tells which.
    - `modules`: its modules in Transformers, along the axis `c`.
    """

    laws: tuple[Law, ...]
    modules: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Source:
    """How a project names and lays out the two factors of a LoRA.

    - `name`: of the project.
    - `factors`: a regular expression for the names of factors, with slashes for dots. Its groups
        are the `module`, the `part`, the `array` if a module has several, and the `law`.
    - `weights`: the possible names of the adapted array.
    - `alpha`: `"none"` if the scale is 1; otherwise it is `alpha / rank`, with the alpha beside the
        arrays, or an alpha that the user gives, which is `"needed"` or by default the rank.
    - `arrays`: by the group `law`, or by the number of axes of the first factor, arrays with a
        layout of their own. The shapes of other factors tell the law.
    - `layers`: a regular expression for a module's name, and the name of its layer in Transformers.
    - `alpha_is_rank`: the ranks at which the project's own configurations have the rank as alpha.
    - `inputs_first`: the factors are `(inputs, rank)` and `(rank, outputs)`, as in JAX; otherwise
        `(rank, inputs)` and `(outputs, rank)`, as in Torch.
    """

    name: str
    factors: str
    weights: tuple[str, ...] = ("{module}/{array}",)
    alpha: Literal["none", "optional", "needed"] = "optional"
    arrays: Mapping[str, FactoredArray] = dataclasses.field(default_factory=dict)
    layers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    alpha_is_rank: tuple[int, ...] = ()
    inputs_first: bool = True

    def laws_of(self, law: str, A: Shape, B: Shape, stack_axis: int | None) -> list[Law]:
        """The possible laws of factors with these shapes."""
        array = self.arrays.get(law) or self.arrays.get(f"{len(A)} axes")
        if array is not None:
            is_stacked = len(A) == len(array.laws[0].a) + 1
            return [x.stacked() if is_stacked else x for x in array.laws]
        if stack_axis is None:
            return [law_from_shapes(A, B, inputs_first=self.inputs_first)]
        return [law_from_shapes(A[1:], B[1:], inputs_first=True).stacked(stack_axis)]

    def module_of(self, law: str, name: str, index: Index) -> str:
        """The name in Transformers, or the layer's name with its number in a stack."""
        for pattern, layer in self.layers.items():
            if match := re.fullmatch(pattern, name):
                number = f"/{index['l']}" if "l" in index else ""
                module = self.arrays[law].modules[index.get("c", 0)]
                return f"{match.expand(layer)}{number}/{module}"
        return f"{name}[{index['l']}]" if "l" in index else name


def _array(modules: str, *laws: str) -> FactoredArray:
    return FactoredArray(tuple(map(Law.parse, laws)), tuple(modules.split()))


# The arrays of Gemma's layers in openpi and in gemma. Axes: n or g heads of size h, d features, f
# hidden features. openpi's einsum sums `lora_b` of `attn_vec_einsum` over all heads, because its
# first product has no heads. Newer models of gemma have `gating_einsum` transposed.
_Q, _KV = "self_attn/q_proj", "self_attn/k_proj self_attn/v_proj"
_O, _GATING, _DOWN = "self_attn/o_proj", "mlp/gate_proj mlp/up_proj", "mlp/down_proj"
_OPENPI = {
    "q_einsum": _array(_Q, "ndr,nrh->ndh"),
    "kv_einsum": _array(_KV, "cndr,cnrh->cndh"),
    "qkv_einsum": _array(f"{_Q} {_KV}", "cndr,cnrh->cndh"),
    "attn_vec_einsum": _array(_O, "ghr,mrd->ghd"),
    "gating_einsum": _array(_GATING, "cdr,crf->cdf"),
    "linear": _array(_DOWN, "fr,rd->fd"),
}
_GEMMA = {
    "q_einsum": _array(_Q, "dr,rnh->ndh"),
    "kv_einsum": _array(_KV, "dr,rcnh->cndh"),
    "qkv_einsum": _array(f"{_Q} {_KV}", "dr,rcnh->cndh"),
    "attn_vec_einsum": _array(_O, "ghr,rd->ghd"),
    "gating_einsum": _array(_GATING, "dr,rcf->cdf", "dr,rcf->cfd"),
    "linear": _array(_DOWN, "fr,rd->fd"),
}
_EXPERTS = {
    r".*_1(?:/gating_einsum|/linear)?": "paligemma_with_expert/gemma_expert/model/layers",
    r".*": "paligemma_with_expert/paligemma/model/language_model/layers",
}
_LAYERS = {r"(?:.*/)?layer_(\d+)/.*": r"model/layers/\1"}
# Keras factors the last axis of any kernel: heads first or second, or summed, or a kernel of a
# convolution.
_KERAS = {"3 axes": _array("", "ndr,rh->ndh", "dnr,rh->dnh", "ghr,rd->ghd", "xir,ro->xio")}
# `nnx.LoRA`, and Torch's tables.
_NNX, _TABLE = {"": _array("", "ir,ro->io")}, {"": _array("", "ri,or->io")}

_AB, _ANY = "(?P<part>[ab])", "(?P<module>.*)"
_ATTENTION = r"(?P<law>(?:q|kv|qkv|attn_vec)_einsum)"
_MLP = r"(?P<array>(?P<law>gating_einsum|linear))"
_W, _KERNEL, _TORCH = "{module}/w", "{module}/kernel", "{module}/weight"
_MLPS = ("{module}/{array}", "{module}/{array}/w")


# The first source that matches counts.
# fmt: off
SOURCES = (
    Source("openpi", rf"(?P<module>.*/{_ATTENTION}(?:_1)?)/lora_{_AB}", (_W,), "needed",
           arrays=_OPENPI, layers=_EXPERTS, alpha_is_rank=(16, 32)),
    # openpi's `FeedForward` multiplies by no scale.
    Source("openpi", rf"(?P<module>.*/layers/mlp(?:_1)?)/{_MLP}_lora_{_AB}", _MLPS, "none",
           arrays=_OPENPI, layers=_EXPERTS),
    Source("gemma", rf"(?P<module>.*/{_ATTENTION})/_LoRAEinsum_0/lora/{_AB}", (_W,), "none",
           arrays=_GEMMA, layers=_LAYERS),
    Source("gemma", rf"(?P<module>.*/mlp)/_LoRAEinsum_{_MLP}/lora/{_AB}", _MLPS, "none",
           arrays=_GEMMA, layers=_LAYERS),
    Source("gemma", rf"(?P<module>.*?)(?:/_LoRAEinsum_\d+)?/lora/{_AB}", (_KERNEL, _W), "none"),
    # The first array of a layer in Keras's files is its kernel, or its table.
    Source("Keras", rf"(?P<module>.*?)(?:/vars)?/lora_(?P<array>kernel|embeddings)_{_AB}",
           ("{module}/vars/0", "{module}/{array}"), arrays=_KERAS),
    # Qwix, used by Tunix and MaxText: beside `kernel` are `kernel_lora_a` and `kernel_lora_b`.
    Source("Qwix", rf"(?:{_ANY}/)?(?P<array>[^/]+)_lora_{_AB}", alpha="needed"),
    # MaxText's models of Linen.
    Source("MaxText", rf"{_ANY}/lora_{_AB}/(?P<array>kernel)", alpha="needed"),
    # `nnx.LoRA`, which EasyDeL puts around its layers.
    Source("EasyDeL", rf"{_ANY}/lora_{_AB}", (_KERNEL,), "none", arrays=_NNX),
    # PEFT's names, which diffusers and Levanter write too, also with the name of an adapter.
    Source("PEFT", rf"{_ANY}/lora_(?P<part>[AB])(?:/\w+)?/weight", (_TORCH,), inputs_first=False),
    Source("PEFT", rf"{_ANY}/lora_embedding_(?P<part>[AB])(?:/\w+)?", (_TORCH,), arrays=_TABLE,
           inputs_first=False),
    # kohya replaces all dots in a layer's name by underscores; `lora_mid` is the kernel of a
    # convolution between two of size 1.
    Source("kohya", r"(?P<module>[^/]+)/lora_(?P<part>down|up|mid)/weight",
           ("{module}_weight", _TORCH), inputs_first=False),
    Source("diffusers", rf"{_ANY}/lora_(?P<part>down|up|mid)/weight", (_TORCH,),
           inputs_first=False),
    # Older versions of diffusers.
    Source("diffusers", r"(?P<module>.*?)(?:[/_]lora|/lora_linear_layer)/(?P<part>down|up)/weight",
           (_TORCH,), inputs_first=False),
)
# fmt: on
_PARTS = {"a": "A", "down": "A", "b": "B", "up": "B"}
# Parts of an adapter that no row knows.
ADAPTER = re.compile(r"(?i)(^|[/_])(lora|dora_|hada_|lokr_|oft_|magnitude)|(^|/)(diff|diff_b)$")


@dataclasses.dataclass(frozen=True)
class Factor:
    """What the name of a factor tells.

    - `part`: `"A"`, `"B"`, or `"mid"` for a kernel between the two.
    - `array`, `law`: groups of the name, or `""`.
    - `is_embedding`: whether the adapted weight is a table.
    """

    source: Source
    module: str
    part: str
    array: str
    law: str
    is_embedding: bool


def find_factor(name: str) -> Factor | None:
    """What the name of an array tells, if it is a factor of a LoRA."""
    for source in SOURCES:
        if match := re.fullmatch(source.factors, name):
            groups = {"array": "", "law": "", **match.groupdict("")}
            groups["part"] = _PARTS.get(groups["part"], groups["part"])
            is_embedding = "embedding" in name.removeprefix(groups["module"])
            return Factor(source, is_embedding=is_embedding, **groups)
    return None
