"""The papers that the first party's adapters cite, by their numbers on arXiv or OpenReview."""

# The entry's key, which names the year, its title and its authors.
ENTRIES = {
    "1902.00751": (
        "houlsby2019adapters",
        "Parameter-Efficient Transfer Learning for {NLP}",
        "Houlsby, Neil and Giurgiu, Andrei and Jastrzebski, Stanislaw and Morrone, Bruna and de "
        "Laroussilhe, Quentin and Gesmundo, Andrea and Attariyan, Mona and Gelly, Sylvain",
    ),
    "2010.08895": (
        "li2020fno",
        "{Fourier} Neural Operator for Parametric Partial Differential Equations",
        "Li, Zongyi and Kovachki, Nikola and Azizzadenesheli, Kamyar and Liu, Burigede and "
        "Bhattacharya, Kaushik and Stuart, Andrew and Anandkumar, Anima",
    ),
    "2101.00190": (
        "li2021prefix",
        "Prefix-Tuning: Optimizing Continuous Prompts for Generation",
        "Li, Xiang Lisa and Liang, Percy",
    ),
    "2106.09685": (
        "hu2021lora",
        "{LoRA}: Low-Rank Adaptation of Large Language Models",
        "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi "
        "and Wang, Shean and Wang, Lu and Chen, Weizhu",
    ),
    "2108.06098": (
        "hyeonwoo2021fedpara",
        "{FedPara}: Low-rank {Hadamard} Product for Communication-Efficient Federated Learning",
        "Hyeon-Woo, Nam and Ye-Bin, Moon and Oh, Tae-Hyun",
    ),
    "2110.04366": (
        "he2021unified",
        "Towards a Unified View of Parameter-Efficient Transfer Learning",
        "He, Junxian and Zhou, Chunting and Ma, Xuezhe and Berg-Kirkpatrick, Taylor and Neubig, "
        "Graham",
    ),
    "2205.05638": (
        "liu2022ia3",
        "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
        "Liu, Haokun and Tam, Derek and Muqeeth, Mohammed and Mohta, Jay and Huang, Tenghao and "
        "Bansal, Mohit and Raffel, Colin",
    ),
    "2212.10650": (
        "edalati2022krona",
        "{KronA}: Parameter Efficient Tuning with {Kronecker} Adapter",
        "Edalati, Ali and Tahaei, Marzieh and Kobyzev, Ivan and Partovi Nia, Vahid and Clark, "
        "James J. and Rezagholizadeh, Mehdi",
    ),
    "2303.10512": (
        "zhang2023adalora",
        "{AdaLoRA}: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
        "Zhang, Qingru and Chen, Minshuo and Bukharin, Alexander and Karampatziakis, Nikos and He, "
        "Pengcheng and Cheng, Yu and Chen, Weizhu and Zhao, Tuo",
    ),
    "2303.16199": (
        "zhang2023llamaadapter",
        "{LLaMA-Adapter}: Efficient Fine-tuning of Language Models with Zero-init Attention",
        "Zhang, Renrui and Han, Jiaming and Liu, Chris and Gao, Peng and Zhou, Aojun and Hu, "
        "Xiangfei and Yan, Shilin and Lu, Pan and Li, Hongsheng and Qiao, Yu",
    ),
    "2306.07280": (
        "qiu2023oft",
        "Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
        "Qiu, Zeju and Liu, Weiyang and Feng, Haiwen and Xue, Yuxuan and Feng, Yao and Liu, Zhen "
        r"and Zhang, Dan and Weller, Adrian and Sch{\"o}lkopf, Bernhard",
    ),
    "2308.03303": (
        "zhang2023lorafa",
        "{LoRA-FA}: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning",
        "Zhang, Longteng and Zhang, Lin and Shi, Shaohuai and Chu, Xiaowen and Li, Bo",
    ),
    "2309.14859": (
        "yeh2023lycoris",
        "Navigating Text-To-Image Customization: From {LyCORIS} Fine-Tuning to Model Evaluation",
        "Yeh, Shih-Ying and Hsieh, Yu-Guan and Gao, Zhidong and Yang, Bernard B. W. and Oh, "
        "Giyeong and Gong, Yanmin",
    ),
    "2310.11454": (
        "kopiczko2023vera",
        "{VeRA}: Vector-based Random Matrix Adaptation",
        "Kopiczko, Dawid J. and Blankevoort, Tijmen and Asano, Yuki M.",
    ),
    "2311.06243": (
        "liu2023boft",
        "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization",
        r"Liu, Weiyang and Qiu, Zeju and Feng, Yao and Xiu, Yuliang and Xue, Yuxuan and Yu, "
        r"Longhui and Feng, Haiwen and Liu, Zhen and Heo, Juyeon and Peng, Songyou and Wen, "
        r"Yandong and Black, Michael J. and Weller, Adrian and Sch{\"o}lkopf, Bernhard",
    ),
    "2311.09578": (
        "renduchintala2023tiedlora",
        "{Tied-LoRA}: Enhancing parameter efficiency of {LoRA} with Weight Tying",
        "Renduchintala, Adithya and Konuk, Tugrul and Kuchaiev, Oleksii",
    ),
    "2310.00120": (
        "kossaifi2023tfno",
        "Multi-Grid Tensorized {Fourier} Neural Operator for High-Resolution {PDEs}",
        "Kossaifi, Jean and Kovachki, Nikola and Azizzadenesheli, Kamyar and Anandkumar, Anima",
    ),
    "2312.03732": (
        "kalajdzievski2023rslora",
        "A Rank Stabilization Scaling Factor for Fine-Tuning with {LoRA}",
        "Kalajdzievski, Damjan",
    ),
    "2402.09353": (
        "liu2024dora",
        "{DoRA}: Weight-Decomposed Low-Rank Adaptation",
        "Liu, Shih-Yang and Wang, Chien-Yi and Yin, Hongxu and Molchanov, Pavlo and Wang, "
        "Yu-Chiang Frank and Cheng, Kwang-Ting and Chen, Min-Hung",
    ),
    "2404.02948": (
        "meng2024pissa",
        "{PiSSA}: Principal Singular Values and Singular Vectors Adaptation of Large Language "
        "Models",
        "Meng, Fanxu and Wang, Zhaohui and Zhang, Muhan",
    ),
    "2405.03003": (
        "gao2024fourierft",
        "Parameter-Efficient Fine-Tuning with Discrete {Fourier} Transform",
        "Gao, Ziqi and Wang, Qichao and Chen, Aochuan and Liu, Zijing and Wu, Bingzhe and Chen, "
        "Liang and Li, Jia",
    ),
    "2405.15179": (
        "li2024vblora",
        "{VB-LoRA}: Extreme Parameter Efficient Fine-Tuning with Vector Banks",
        "Li, Yang and Han, Shaobo and Ji, Shihao",
    ),
    "2405.17484": (
        "yuan2024hra",
        "Bridging The Gap between Low-rank and Orthogonal Adaptation via {Householder} Reflection "
        "Adaptation",
        "Yuan, Shen and Liu, Haotian and Xu, Hongteng",
    ),
    "2405.17604": (
        "balazy2024loraxs",
        "{LoRA-XS}: Low-Rank Adaptation with Extremely Small Number of Parameters",
        r"Ba{\l}azy, Klaudia and Banaei, Mohammadreza and Aberer, Karl and Tabor, Jacek",
    ),
    "2406.01775": (
        "buyukakyuz2024olora",
        "{OLoRA}: Orthonormal Low-Rank Adaptation of Large Language Models",
        r"B{\"u}y{\"u}kaky{\"u}z, Kerim",
    ),
    "2406.05223": (
        "yang2024corda",
        "{CorDA}: Context-Oriented Decomposition Adaptation of Large Language Models for "
        "Task-Aware Parameter-Efficient Fine-tuning",
        "Yang, Yibo and Li, Xiaojie and Zhou, Zhongzhu and Song, Shuaiwen Leon and Wu, Jianlong "
        "and Nie, Liqiang and Ghanem, Bernard",
    ),
    "2406.09044": (
        "wang2024milora",
        "{MiLoRA}: Harnessing Minor Singular Components for Parameter-Efficient {LLM} Finetuning",
        "Wang, Hanqing and Li, Yixia and Wang, Shuo and Chen, Guanhua and Chen, Yun",
    ),
    "2406.13175": (
        "bhardwaj2024shira",
        "Sparse High Rank Adapters",
        "Bhardwaj, Kartikeya and Pandey, Nilesh Prasad and Priyadarshi, Sweta and Ganapathy, "
        "Viswanath and Kadambi, Shreya and Esteves, Rafael and Borse, Shubhankar and Whatmough, "
        "Paul and Garrepalli, Risheek and Van Baalen, Mart and Teague, Harris and Nagel, Markus",
    ),
    "2407.05000": (
        "wang2024loraga",
        "{LoRA-GA}: Low-Rank Adaptation with Gradient Approximation",
        "Wang, Shaowen and Yu, Linxi and Li, Jian",
    ),
    "2407.19342": (
        "chen2024c3a",
        "Parameter-Efficient Fine-Tuning via Circular Convolution",
        "Chen, Aochuan and Cheng, Jiashun and Liu, Zijing and Gao, Ziqi and Tsung, Fugee and Li, "
        "Yu and Li, Jia",
    ),
    "2409.00119": (
        "liao2024road",
        "3-in-1: {2D} Rotary Adaptation for Efficient Finetuning, Efficient Batching and "
        "Composability",
        "Liao, Baohao and Monz, Christof",
    ),
    "2409.15371": (
        "kang2024miss",
        "{MiSS}: Revisiting the Trade-off in {LoRA} with an Efficient Shard-Sharing Structure",
        "Kang, Jiale and Yin, Qingyu",
    ),
    "2410.07170": (
        "paischer2024eva",
        "Parameter Efficient Fine-tuning via Explained Variance Adaptation",
        "Paischer, Fabian and Hauzenberger, Lukas and Schmied, Thomas and Alkin, Benedikt and "
        "Deisenroth, Marc Peter and Hochreiter, Sepp",
    ),
    "2502.00987": (
        "albert2025randlora",
        "{RandLoRA}: Full-rank parameter-efficient fine-tuning of large models",
        "Albert, Paul and Zhang, Frederic Z. and Saratchandran, Hemanth and Rodriguez-Opazo, "
        "Cristian and van den Hengel, Anton and Abbasnejad, Ehsan",
    ),
    "2502.01235": (
        "zhang2025loraone",
        "{LoRA-One}: One-Step Full Gradient Could Suffice for Fine-Tuning Large Language Models, "
        "Provably and Efficiently",
        "Zhang, Yuanhe and Liu, Fanghui and Chen, Yudong",
    ),
    "2503.18225": (
        "bini2025delora",
        "Decoupling Angles and Strength in Low-rank Adaptation",
        "Bini, Massimo and Girrbach, Leander and Akata, Zeynep",
    ),
    "2505.11235": (
        "wu2025psoft",
        "Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation",
        "Wu, Fei and Hu, Jia and Min, Geyong and Wang, Shiqiang",
    ),
    "2505.12532": (
        "bilican2025waveft",
        "Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets",
        r"Bilican, Ahmet and Y{\i}lmaz, M. Ak{\i}n and Tekalp, A. Murat and Cinbi{\c s}, R. "
        r"G{\"o}kberk",
    ),
    "2505.20355": (
        "jung2025gralora",
        "{GraLoRA}: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning",
        "Jung, Yeonjoon and Ahn, Daehyun and Kim, Hyungjun and Kim, Taesu and Park, Eunhyeok",
    ),
    "2506.19847": (
        "qiu2025oftv2",
        "Orthogonal Finetuning Made Scalable",
        r"Qiu, Zeju and Liu, Weiyang and Weller, Adrian and Sch{\"o}lkopf, Bernhard",
    ),
    "2509.22793": (
        "kumar2025deft",
        "{DEFT}: Decompositional Efficient Fine-Tuning for Text-to-Image Models",
        "Kumar, Komal and Anwer, Rao Muhammad and Khan, Fahad Shahbaz and Khan, Salman and Laptev, "
        "Ivan and Cholakkal, Hisham",
    ),
    "2509.23173": (
        "zhang2025fadapter",
        "{F-Adapter}: Frequency-Adaptive Parameter-Efficient Fine-Tuning in Scientific Machine "
        "Learning",
        "Zhang, Hangwei and Kang, Chun and Wang, Yan and Zou, Difan",
    ),
    "2602.04118": (
        "morris2026tinylora",
        "Learning to Reason in 13 Parameters",
        "Morris, John X. and Mireshghallah, Niloofar and Ibrahim, Mark and Mahloujifar, Saeed",
    ),
    # The names are not known here; a corporate author in their place.
    "2607.09287": (
        "unknown2026supertuning",
        "Super-Tuning: From Activation-Aware Pruning to Sparse Fine-Tuning",
        "{Authors of arXiv:2607.09287}",
    ),
    "TwJrTz9cRS": (
        "huang2025hira",
        "{HiRA}: Parameter-Efficient {Hadamard} High-Rank Adaptation for Large Language Models",
        "Huang, Qiushi and Ko, Tom and Zhuang, Zhan and Tang, Lilian and Zhang, Yu",
    ),
}


def bibtex_of(*papers: str) -> str:
    """The BibTeX entries of papers, by their numbers. **Raises:** `KeyError` for an unknown one."""
    return "\n".join(_entry(paper, *ENTRIES[paper]) for paper in papers)


def _entry(paper: str, key: str, title: str, authors: str) -> str:
    year = "".join(letter for letter in key if letter.isdigit())[:4]
    archive = "arXiv" if paper[:4].isdigit() else "OpenReview"
    return (
        f"@misc{{{key},\n  title = {{{title}}},\n  author = {{{authors}}},\n"
        f"  year = {{{year}}},\n  eprint = {{{paper}}},\n  archivePrefix = {{{archive}}},\n}}"
    )
