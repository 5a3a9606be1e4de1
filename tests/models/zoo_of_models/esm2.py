"""A protein language model: esm2quinox."""

import esm2quinox

from .._model import Model, tokens

MODELS = (
    Model(
        "esm2quinox-esm2",
        lambda key: esm2quinox.ESM2(
            num_layers=2, embed_size=16, num_heads=2, token_dropout=True, key=key
        ),
        # The ids of residues: no padding, no mask.
        lambda key: (4 + tokens(7, 20)(key)[0],),
        note="two layers, stacked; the output projection is the embedding too",
        layers=8,
    ),
)
