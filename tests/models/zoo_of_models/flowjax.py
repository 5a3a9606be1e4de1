"""Normalising flows: flowjax, whose layers are stacked and scanned."""

from typing import Any

import flowjax.bijections
import jax
import jax.numpy as jnp
from flowjax.distributions import Normal
from flowjax.flows import (
    block_neural_autoregressive_flow,
    coupling_flow,
    masked_autoregressive_flow,
)

from jno_lora_arrays import declare_raw

from .._model import Model, normal


def _log_prob(flow: Any, x: Any, condition: Any = None) -> Any:
    return flow.log_prob(x, condition)


MODELS = (
    Model(
        "flowjax-coupling",
        lambda key: coupling_flow(
            key, base_dist=Normal(jnp.zeros(4)), flow_layers=3, nn_width=8, nn_depth=1
        ),
        normal((5, 4)),
        _log_prob,
        note="three layers, stacked",
        layers=2,
    ),
    Model(
        "flowjax-coupling-conditional",
        lambda key: coupling_flow(
            key,
            base_dist=Normal(jnp.zeros(4)),
            transformer=flowjax.bijections.RationalQuadraticSpline(knots=3, interval=2),
            cond_dim=2,
            flow_layers=2,
            nn_width=8,
            nn_depth=1,
            nn_activation=jax.nn.gelu,
        ),
        normal((5, 4), (5, 2)),
        _log_prob,
        layers=2,
    ),
    Model(
        "flowjax-masked-autoregressive",
        lambda key: declare_raw(
            masked_autoregressive_flow(
                key, base_dist=Normal(jnp.zeros(3)), flow_layers=2, nn_width=8, nn_depth=1
            )
        ),
        normal((5, 3)),
        _log_prob,
        note="each weight is a `paramax.Parameterize` that masks it; called with `declare_raw`",
        layers=2,
    ),
    Model(
        "flowjax-block-autoregressive",
        lambda key: declare_raw(
            block_neural_autoregressive_flow(
                key, base_dist=Normal(jnp.zeros(3)), flow_layers=1, nn_depth=1, nn_block_dim=4
            )
        ),
        normal((5, 3)),
        _log_prob,
        note="masks, softplus and a weight norm of paramax around each weight; called with "
        "`declare_raw`",
        layers=2,
    ),
)
