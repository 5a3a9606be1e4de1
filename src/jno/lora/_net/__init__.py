"""`Net`, the handle on a model, and the named adapters that it keeps."""

from ._net import Net
