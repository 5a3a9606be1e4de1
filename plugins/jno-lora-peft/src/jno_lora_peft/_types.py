"""PEFT's types that are held here. A further type is one more entry."""

from ._ia3 import feedforward, ia3, to_ia3
from ._low_rank import adalora, loha, lokr, lora, pvera, unilora, vblora, vera
from ._module import Converted, Module
from ._starts import osf
from ._type import Setting, Type
from ._updates import MisfitError
from ._weights import frod, glora
from ._written_lora import to_lora


def beft(m: Module) -> Converted:
    """A vector that is added to the layer's bias."""
    m.check({"beft_bias": (1, m.layout.outputs)})
    return Converted(None, 1, 1.0, {}, {"shift": m.parts["beft_bias"].reshape(-1)})


def rows_only(m: Module) -> Converted:
    """Types that change arrays of the model and have no adapter."""
    raise MisfitError("its tensors are those of trained modules, and this is one of an adapter")


R = Setting("r", 8)
R_PATTERN = Setting("r", 8, "rank_pattern")
ALPHA = Setting("alpha", 8, "alpha_pattern")

TYPES: dict[str, Type] = {
    "LORA": Type(
        "LoRA, rsLoRA or DoRA; PiSSA if its start took a part out of the weight",
        r"lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector(?:\.weight)?"
        r"|lora_velora_embed",
        lora,
        R_PATTERN,
        Setting("lora_alpha", 8, "alpha_pattern"),
        writes=dict.fromkeys(("lora", "rslora", "dora"), to_lora),
        bias="lora_only",
    ),
    "ADALORA": Type(
        "LoRA, `A = diag(E) A`",
        "lora_[ABE]",
        adalora,
        Setting("init_r", 12),
        Setting("lora_alpha", 8),
    ),
    "LOHA": Type(
        "LoRA of rank r², or of the layer's rank if that is smaller",
        "hada_(?:w1_a|w1_b|w2_a|w2_b|t1|t2)",
        loha,
        R_PATTERN,
        ALPHA,
    ),
    "LOKR": Type(
        "LoRA whose two factors are Kronecker products of LoKr's factors",
        "lokr_(?:w1|w1_a|w1_b|w2|w2_a|w2_b|t2)",
        lokr,
        R_PATTERN,
        ALPHA,
    ),
    "VERA": Type(
        "LoRA, `A = diag(d) A`, `B = diag(b) B`",
        "vera_lambda_[bd]",
        vera,
        Setting("r", 256),
        shared=r"base_model\.vera_[AB]",
        bias="vera_only",
    ),
    "PVERA": Type(
        "LoRA, as VeRA",
        "pvera_lambda_[bd]",
        pvera,
        Setting("r", 256),
        shared=r"base_model\.pvera_[AB]",
        only={"sample_at_inference": (False, "its outputs are drawn at random")},
    ),
    "VBLORA": Type(
        "LoRA, its factors put together from the bank of vectors",
        "vblora_logits_[AB](?:_topk_(?:weights|indices))?",
        vblora,
        Setting("r", 4),
        shared=r"base_model\.vblora_vector_bank",
    ),
    "UNILORA": Type(
        "LoRA, its factors put together from the shared vector",
        "unilora_(?:indices|scales)_[AB]",
        unilora,
        Setting("r", 4),
        shared=r"base_model\.unilora_theta_d",
    ),
    "OSF": Type("MiLoRA", r"osf_svd_params\.[USV]_low", osf),
    "GLORA": Type(
        "LoRA of the layer's rank, and the bias changed",
        r"glora_[A-E]\.(?:Xd|Xu|X|zeros)",
        glora,
        R,
    ),
    "FROD": Type(
        "LoRA of the layer's rank",
        "frod_lambda_(?:l|s_values)",
        frod,
        shared=r"base_model\.frod_(?:V|s_indices|s_size)\..*",
    ),
    "IA3": Type(
        "IA³ on outputs (`IA3Out` if the layer has a bias) or on inputs (`IA3In`)",
        "ia3_l",
        ia3,
        writes=dict.fromkeys(("ia3", "ia3-out", "ia3-in"), to_ia3),
        common=feedforward,
    ),
    "BEFT": Type("the layer's bias changed", "beft_bias", beft),
    "TRAINABLE_TOKENS": Type("the rows of the embedding replaced", "(?!)", rows_only),
    "LN_TUNING": Type("the arrays replaced", "(?!)", rows_only),
}

# The types that hold adapters of these variants, the first one if several do.
TYPE_OF: dict[str, str] = {
    variant: name for name, one in reversed(TYPES.items()) for variant in one.writes
}
