"""Arrays that a layer keeps in another form, such as codes: for plugins that quantise.

A `CodedArray` replaces an array in a layer. The core, the conformance kit and the zoo treat it as
the array that it stands for.
"""

from ._contract import CodedArray, class_of, is_coded, refuse_coded, row_products, with_arrays

__all__ = ["CodedArray", "class_of", "is_coded", "refuse_coded", "row_products", "with_arrays"]
