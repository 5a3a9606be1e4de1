"""PEFT's types that are held here. A further type is one more entry."""

from ._drawn import randlora, shared_bases, tinylora, to_randlora
from ._ia3 import feedforward, ia3, to_ia3
from ._low_rank import lora, pvera, unilora
from ._module import Converted, Module
from ._sharing import shared_tensors, to_vblora, to_vera, vblora, vera
from ._sparse import (
    fourierft,
    shira,
    sparsity,
    supertuning,
    to_fourierft,
    to_shira,
    to_supertuning,
    to_waveft,
    waveft,
)
from ._starts import osf
from ._structured import (
    adalora,
    c3a,
    delora,
    gralora,
    hira,
    loha,
    lokr,
    miss,
    to_adalora,
    to_gralora,
    to_hira,
    to_loha,
    to_lokr,
    to_miss,
)
from ._turned import (
    boft,
    boft_blocks,
    deft,
    hra,
    oft,
    oft_blocks,
    road,
    to_boft,
    to_deft,
    to_hra,
    to_oft,
    to_road,
)
from ._type import Setting, Type
from ._updates import MisfitError
from ._weights import frod, glora
from ._written_lora import lora_bias, no_biases, to_lora


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
        "LoRA, rsLoRA or DoRA; PiSSA or OLoRA if that is its start",
        r"lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector(?:\.weight)?"
        r"|lora_velora_embed",
        lora,
        R_PATTERN,
        Setting("lora_alpha", 8, "alpha_pattern"),
        writes=dict.fromkeys(("lora", "rslora", "dora"), to_lora),
        common=lora_bias,
        shares=no_biases,
        bias="lora_only",
    ),
    "ADALORA": Type(
        "AdaLoRA, with the components that are left",
        "lora_[ABE]",
        adalora,
        Setting("init_r", 12),
        Setting("lora_alpha", 8),
        writes={"adalora": to_adalora},
        bias="lora_only",
    ),
    "LOHA": Type(
        "LoHa; LoRA if kernels have cores, or the rank is above the layer's",
        "hada_(?:w1_a|w1_b|w2_a|w2_b|t1|t2)",
        loha,
        R_PATTERN,
        ALPHA,
        writes={"loha": to_loha},
    ),
    "LOKR": Type(
        "LoKr if the settings make square first factors, and both whole; else LoRA",
        "lokr_(?:w1|w1_a|w1_b|w2|w2_a|w2_b|t2)",
        lokr,
        R_PATTERN,
        ALPHA,
        writes={"lokr": to_lokr},
    ),
    "HIRA": Type(
        "HiRA",
        "hira_(?:embedding_)?[AB]",
        hira,
        Setting("r", 32),
        writes={"hira": to_hira},
    ),
    "DELORA": Type(
        "DeLoRA",
        "delora_(?:A|B|lambda|w_norm)",
        delora.read,
        R_PATTERN,
        writes={"delora": delora.write},
        bias="delora_only",
    ),
    "GRALORA": Type(
        "GraLoRA; LoRA if it is a hybrid",
        r"gralora_[AB](?:_general\.weight)?",
        gralora,
        Setting("r", 32),
        Setting("alpha", 64),
        writes={"gralora": to_gralora},
        bias="gralora_only",
    ),
    "MISS": Type(
        "MiSS", "miss_block", miss, Setting("r", 64), writes={"miss": to_miss}, bias="miss_only"
    ),
    "OFT": Type(
        "OFT of the inputs (`oft-in`)",
        r"oft_R\.weight",
        oft,
        common=oft_blocks,
        writes={"oft-in": to_oft},
        bias="oft_only",
    ),
    "BOFT": Type(
        "BOFT",
        "boft_[Rs]",
        boft,
        common=boft_blocks,
        writes={"boft": to_boft},
        bias="boft_only",
    ),
    "HRA": Type("HRA", "hra_u", hra, R, writes={"hra": to_hra}, bias="hra_only"),
    "ROAD": Type("RoAd, the bias with it", "road_(?:theta|alpha)", road, writes={"road": to_road}),
    "DEFT": Type("DEFT", "deft_[PR]", deft, R, writes={"deft": to_deft}, bias="deft_only"),
    "SHIRA": Type(
        "SHiRA", "shira_(?:weight|indices)", shira, Setting("r", 32), writes={"shira": to_shira}
    ),
    "SUPERTUNING": Type(
        "Super-Tuning; LoRA if it has a LoRA beside it",
        r"supertuning_(?:values|indices|lora_[AB]\.weight)",
        supertuning,
        writes={"supertuning": to_supertuning},
        common=sparsity,
    ),
    "FOURIERFT": Type(
        "FourierFT, at the positions that its seed gives",
        "fourierft_spectrum",
        fourierft,
        Setting("n_frequency", 1000, "n_frequency_pattern", by_name=True),
        Setting("scaling", 150.0),
        writes={"fourierft": to_fourierft},
        bias="fourier_only",
    ),
    "WAVEFT": Type(
        "WaveFT, at the positions that its seed gives",
        "waveft_spectrum",
        waveft,
        Setting("n_frequency", 2592, "n_frequency_pattern"),
        Setting("scaling", 25.0),
        writes={"waveft": to_waveft},
        bias="waveft_only",
    ),
    "C3A": Type(
        "C3A",
        "c3a_kernel",
        c3a.read,
        Setting("block_size", 256, "block_size_pattern", by_name=True),
        writes={"c3a": c3a.write},
        bias="c3a_only",
    ),
    "RANDLORA": Type(
        "RandLoRA, with the bases of the file",
        "randlora_(?:lambda|gamma|A|B)",
        randlora,
        Setting("r", 32),
        Setting("randlora_alpha", 640),
        shared=r"base_model\.randlora_[AB]",
        writes={"randlora": to_randlora},
        shares=shared_bases,
        bias="randlora_only",
    ),
    "TINYLORA": Type(
        "TinyLoRA, each layer with a vector of its own",
        "tinylora_[ABP]",
        tinylora,
        Setting("r", 2),
        shared=r"base_model\.tinylora_v\..*",
    ),
    "VERA": Type(
        "VeRA with shared matrices (`vera-shared`), those of the file",
        "vera_lambda_[bd]",
        vera,
        Setting("r", 256),
        shared=r"base_model\.vera_[AB]",
        writes={"vera-shared": to_vera},
        shares=shared_tensors,
        bias="vera_only",
    ),
    "PVERA": Type(
        "LoRA, `A = diag(d) A`, `B = diag(b) B`",
        "pvera_lambda_[bd]",
        pvera,
        Setting("r", 256),
        shared=r"base_model\.pvera_[AB]",
        only={"sample_at_inference": (False, "its outputs are drawn at random")},
    ),
    "VBLORA": Type(
        "VB-LoRA; LoRA if only the chosen weights were saved",
        "vblora_logits_[AB](?:_topk_(?:weights|indices))?",
        vblora,
        Setting("r", 4),
        shared=r"base_model\.vblora_vector_bank",
        writes={"vb-lora": to_vblora},
        shares=shared_tensors,
        bias="vblora_only",
    ),
    "UNILORA": Type(
        "LoRA, its factors put together from the shared vector",
        "unilora_(?:indices|scales)_[AB]",
        unilora,
        Setting("r", 4),
        shared=r"base_model\.unilora_theta_d",
        only={
            "save_indices": (
                True,
                "which entry of the shared vector stands where is not in the file, and only Torch "
                "draws the same again: save it in PEFT with save_indices=True",
            )
        },
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
