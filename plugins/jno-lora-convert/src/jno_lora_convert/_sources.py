"""How each project names and lays out LoRA: the table that all readers and converters use.

The name of an array tells its source, its layer and which factor it is. The update of a weight is
an einsum of its two factors, which a `Law` holds.
"""

import math
import re
import string
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jno_lora_peft.errors import MisfitError
from jno_lora_peft.layouts import Shape

Index = dict[str, int]


class Law(NamedTuple):
    """The update of a weight: an einsum of its factors.

    - `a`, `b`, `weight`: the axes of both factors and of the weight. `r` is the rank; `l` and `c`
        run over modules: the layers of a stack, and arrays that Torch has in several modules. `n`
        in `a` runs over heads, each with a product of its own; `x`, `y` and `z` are the axes of a
        kernel. An axis of `b` alone is summed.
    """

    a: str
    b: str
    weight: str

    def sizes(self, A: Any, B: Any) -> dict[str, int]:
        """The size of each axis. **Raises:** `MisfitError` if the factors do not fit together."""
        sizes: dict[str, int] = {}
        for axes, shape in ((self.a, A.shape), (self.b, B.shape)):
            fits = len(axes) == len(shape)
            for axis, size in zip(axes, shape, strict=False):
                fits &= sizes.setdefault(axis, size) == size > 0
            if not fits:
                raise MisfitError(
                    f"its factors {tuple(A.shape)} and {tuple(B.shape)} must have the axes "
                    f"{self.a} and {self.b}, with the same rank r > 0 and the same common axes"
                )
        return sizes

    def of_module(self) -> "Law":
        """The law of the factors of one module. The weight keeps its axes."""
        return self._replace(a=re.sub("[lc]", "", self.a), b=re.sub("[lc]", "", self.b))

    # Of one module.

    def torch_axes(self) -> tuple[str, str, str]:
        """The axes of the heads, of the outputs and of the inputs, as in Torch."""
        outputs = "".join(x for x in self.b if x in self.weight and x not in self.a)
        inputs = "".join(axis for axis in self.a if axis not in f"n{self.b}")
        # Torch has the channels before the axes of a kernel.
        return "n" if "n" in self.a else "", outputs, "".join(sorted(inputs, key="xyz".find))

    def torch_shape(self, sizes: Mapping[str, int]) -> Shape:
        """The shape of the weight in Torch."""
        heads, outputs, inputs = self.torch_axes()
        rows = math.prod(sizes[axis] for axis in heads + outputs)
        columns = math.prod(sizes[axis] for axis in inputs if axis not in "xyz")
        return rows, columns, *(sizes[axis] for axis in inputs if axis in "xyz")

    def matrices(self, A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Torch's `(rank, inputs)` and `(outputs, rank)`, with the axes of a kernel if it has some.

        The products of several heads become one product of a higher rank, with zeros in `B`.
        """
        sizes, (heads, outputs, inputs) = self.sizes(A, B), self.torch_axes()
        rows, columns, *kernel = self.torch_shape(sizes)
        A = A.transpose([self.a.index(axis) for axis in f"{heads}r{inputs}"])
        A = A.reshape(-1, columns, *kernel)
        head, apart = heads or "N", np.eye(sizes.get(heads, 1), dtype=np.float32)
        result = f"{head}{outputs}Mr"
        wide = B.astype(np.promote_types(B.dtype, np.float32))
        blocks = np.einsum(f"{self.b},{head}M->{result}", wide, apart)
        if all(sizes[axis] == 1 for axis in self.b if axis not in result):  # not a sum
            blocks = blocks.astype(B.dtype)
        return A, blocks.reshape(rows, len(A), *(1 for _ in kernel))


def at(axes: str, index: Index) -> tuple[Any, ...]:
    """The place of one module in an array with these axes."""
    return tuple(index.get(axis, slice(None)) for axis in axes)


def law_from_shapes(A: Shape, B: Shape, *, inputs_first: bool, stack: int | None = None) -> Law:
    """The law of factors that are `(inputs, rank)` and `(rank, outputs)`, or Torch's.

    - `stack`: the axis of both factors that runs over layers.
    """
    if not inputs_first:
        kernel, ones = "xyz"[: len(A) - 2], "uvw"[: len(B) - 2]
        return Law(f"ri{kernel}", f"or{ones}", f"oi{kernel}")
    removed = 1 if stack is None else 2
    inputs, outputs = string.ascii_uppercase[: len(A) - removed], "opqstuvw"[: len(B) - removed]
    if len(inputs) > 2:
        inputs = f"{'xyz'[: len(inputs) - 1]}i"
    axes = (f"{inputs}r", f"r{outputs}", inputs + outputs)
    return Law(*(x if stack is None else f"{x[:stack]}l{x[stack:]}" for x in axes))


class Source(NamedTuple):
    """How a project names and lays out the two factors of a LoRA.

    - `name`: of the project.
    - `factors`: a regular expression for the names of factors, with slashes for dots. Its groups
        are the `module`, the `part`, the `array` if a module has several, and the `law`.
    - `weights`: the possible names of the adapted array.
    - `alpha`: `"none"` if the scale is 1; otherwise it is `alpha / rank`, with the alpha beside the
        arrays, or an alpha that the user gives, which is `"needed"` or by default the rank.
    - `laws`: by the group `law`, or by the number of axes of the first factor, the modules in
        Transformers and the possible laws. By default, the shapes determine the law.
    - `layers`: a regular expression for a module's name, and the name of its layer in Transformers.
    - `alpha_is_rank`: the ranks at which the project's own configurations have the rank as alpha.
    - `inputs_first`: the factors are `(inputs, rank)` and `(rank, outputs)`, as in JAX; otherwise
        `(rank, inputs)` and `(outputs, rank)`, as in Torch.
    """

    name: str
    factors: str
    weights: tuple[str, ...] = ("{module}/{array}",)
    alpha: Literal["none", "optional", "needed"] = "optional"
    laws: Mapping[str, tuple[str, ...]] = {}
    layers: tuple[tuple[str, str], ...] = ()
    alpha_is_rank: tuple[int, ...] = ()
    inputs_first: bool = True

    def laws_of(self, key: str, A: Shape, B: Shape, stack: int | None = None) -> list[Law]:
        """The possible laws of factors with these shapes."""
        if key not in self.laws and (key := f"{len(A)} axes") not in self.laws:
            return [law_from_shapes(A, B, inputs_first=self.inputs_first, stack=stack)]
        _, *laws = self.laws[key]
        parts = [re.split(",|->", law) for law in laws]
        stacked = "l" if len(A) == len(parts[0][0]) + 1 else ""
        return [Law(*(stacked + axes for axes in law)) for law in parts]

    def module_of(self, key: str, module: str, index: Index) -> str:
        """The name in Transformers, or the module's name with its number in a stack."""
        for pattern, layer in self.layers:
            if match := re.fullmatch(pattern, module):
                number = f"/{index['l']}" if "l" in index else ""
                names = self.laws[key][0].split()
                return f"{match.expand(layer)}{number}/{names[index.get('c', 0)]}"
        return f"{module}[{index['l']}]" if "l" in index else module


# The arrays of Gemma's layers in openpi and in gemma. Axes: n or g heads of size h, d features, f
# hidden features. openpi's einsum sums `lora_b` of `attn_vec_einsum` over all heads, because its
# first product has no heads. Newer models of gemma have `gating_einsum` transposed.
_Q, _KV = "self_attn/q_proj", "self_attn/k_proj self_attn/v_proj"
_O, _GATING, _DOWN = "self_attn/o_proj", "mlp/gate_proj mlp/up_proj", "mlp/down_proj"
_OPENPI = {
    "q_einsum": (_Q, "ndr,nrh->ndh"),
    "kv_einsum": (_KV, "cndr,cnrh->cndh"),
    "qkv_einsum": (f"{_Q} {_KV}", "cndr,cnrh->cndh"),
    "attn_vec_einsum": (_O, "ghr,mrd->ghd"),
    "gating_einsum": (_GATING, "cdr,crf->cdf"),
    "linear": (_DOWN, "fr,rd->fd"),
}
_GEMMA = {
    "q_einsum": (_Q, "dr,rnh->ndh"),
    "kv_einsum": (_KV, "dr,rcnh->cndh"),
    "qkv_einsum": (f"{_Q} {_KV}", "dr,rcnh->cndh"),
    "attn_vec_einsum": (_O, "ghr,rd->ghd"),
    "gating_einsum": (_GATING, "dr,rcf->cdf", "dr,rcf->cfd"),
    "linear": (_DOWN, "fr,rd->fd"),
}
_EXPERTS = (
    (r".*_1", "paligemma_with_expert/gemma_expert/model/layers"),
    (r".*(?<!_1)", "paligemma_with_expert/paligemma/model/language_model/layers"),
)
_LAYERS = ((r"(?:.*/)?layer_(\d+)/.*", r"model/layers/\1"),)
# Keras factors the last axis of any kernel: heads first or second, or summed, or a kernel of a
# convolution.
_KERNELS = {"3 axes": ("", "ndr,rh->ndh", "dnr,rh->dnh", "ghr,rd->ghd", "xir,ro->xio")}
# `nnx.LoRA`, and Torch's tables.
_NNX, _TABLE = {"": ("", "ir,ro->io")}, {"": ("", "ri,or->io")}

_AB, _ANY = "(?P<part>[ab])", "(?P<module>.*)"
_ATTENTION = r"(?P<law>(?:q|kv|qkv|attn_vec)_einsum)"
_MLP = r"(?P<array>(?P<law>gating_einsum|linear))"
_W, _KERNEL, _TORCH = "{module}/w", "{module}/kernel", ("{module}/weight",)
_MLPS = ("{module}/{array}", "{module}/{array}/w")


def _torch(name: str, factors: str, weights: tuple[str, ...] = _TORCH, **options: Any) -> Source:
    return Source(name, factors, weights, inputs_first=False, **options)


# The first source that matches counts.
# fmt: off
SOURCES = (
    Source("openpi", rf"(?P<module>.*/{_ATTENTION}(?:_1)?)/lora_{_AB}", (_W,), "needed",
           _OPENPI, _EXPERTS, (16, 32)),
    # openpi's `FeedForward` multiplies by no scale.
    Source("openpi", rf"(?P<module>.*/layers/mlp(?:_1)?)/{_MLP}_lora_{_AB}", _MLPS, "none",
           _OPENPI, _EXPERTS),
    Source("gemma", rf"(?P<module>.*/{_ATTENTION})/_LoRAEinsum_0/lora/{_AB}", (_W,), "none",
           _GEMMA, _LAYERS),
    Source("gemma", rf"(?P<module>.*/mlp)/_LoRAEinsum_{_MLP}/lora/{_AB}", _MLPS, "none",
           _GEMMA, _LAYERS),
    Source("gemma", rf"(?P<module>.*?)(?:/_LoRAEinsum_\d+)?/lora/{_AB}", (_KERNEL, _W), "none"),
    # The first array of a layer in Keras's files is its kernel, or its table.
    Source("Keras", rf"(?P<module>.*?)(?:/vars)?/lora_(?P<array>kernel|embeddings)_{_AB}",
           ("{module}/vars/0", "{module}/{array}"), laws=_KERNELS),
    # Qwix, used by Tunix and MaxText: beside `kernel` are `kernel_lora_a` and `kernel_lora_b`.
    Source("Qwix", rf"(?:{_ANY}/)?(?P<array>[^/]+)_lora_{_AB}", alpha="needed"),
    # MaxText's models of Linen.
    Source("MaxText", rf"{_ANY}/lora_{_AB}/(?P<array>kernel)", alpha="needed"),
    # `nnx.LoRA`, which EasyDeL puts around its layers.
    Source("EasyDeL", rf"{_ANY}/lora_{_AB}", (_KERNEL,), "none", _NNX),
    # PEFT's names, which diffusers and Levanter write too, also with the name of an adapter.
    _torch("PEFT", rf"{_ANY}/lora_(?P<part>[AB])(?:/\w+)?/weight"),
    _torch("PEFT", rf"{_ANY}/lora_embedding_(?P<part>[AB])(?:/\w+)?", laws=_TABLE),
    # kohya replaces all dots in a layer's name by underscores; `lora_mid` is the kernel of a
    # convolution between two of size 1.
    _torch("kohya", r"(?P<module>[^/]+)/lora_(?P<part>down|up|mid)/weight",
           ("{module}_weight", *_TORCH)),
    _torch("diffusers", rf"{_ANY}/lora_(?P<part>down|up|mid)/weight"),
    # Older versions of diffusers.
    _torch("diffusers", r"(?P<module>.*?)(?:[/_]lora|/lora_linear_layer)/(?P<part>down|up)/weight"),
)
# fmt: on
_PARTS = {"a": "A", "down": "A", "b": "B", "up": "B"}
# Parts of an adapter that no row knows.
ADAPTER = re.compile(r"(?i)(^|[/_])(lora|dora_|hada_|lokr_|oft_|magnitude)|(^|/)(diff|diff_b)$")


def find_source(name: str) -> tuple[Source, dict[str, str]] | None:
    """The source of an array with that name, and the groups of the name, if it is a factor."""
    for source in SOURCES:
        if match := re.fullmatch(source.factors, name):
            return source, {**match.groupdict(""), "part": _PARTS.get(match["part"], match["part"])}
    return None
