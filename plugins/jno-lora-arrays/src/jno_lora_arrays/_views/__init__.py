"""Views of adapted weights, whose axes may be moved, joined or cut without merging the weight."""

from ._adapted_layers import weight_of as weight_of
from ._runs import Run as Run, RunsView as RunsView
from ._view import (
    Conv as Conv,
    DeclinedError as DeclinedError,
    Dot as Dot,
    DotAxes as DotAxes,
    Lookup as Lookup,
    Ragged as Ragged,
    Result as Result,
    View as View,
)
from ._virtual import (
    Value as Value,
    Virtual as Virtual,
    dense as dense,
    of_view as of_view,
    virtual as virtual,
)
