"""Calling a function on layers of few forms: each form is compiled once."""

from ._compiling import call_compiled
from ._form import beside, form_of
from ._together import Calls

__all__ = [
    "Calls",
    "beside",
    "call_compiled",
    "form_of",
]
