"""`Net`, the handle on a model and its named adapters."""

from ._net import Net
