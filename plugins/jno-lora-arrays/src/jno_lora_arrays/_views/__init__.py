"""Views of adapted weights: their axes may be moved, joined or cut, and products need no merge."""

# ruff: noqa: F401
from ._adapted_layers import weight_of
from ._runs import Run, RunsView
from ._view import Conv, Declined, Dot, DotAxes, Lookup, Ragged, View
from ._virtual import Virtual, dense, of_view, virtual
