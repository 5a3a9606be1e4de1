"""Sets of adapters without their model: extract, swap, combine, stack and convert them."""

from .._tree import layers_at, nested_with, refuse_second, replace_layers as put_in
from ._adapter_set import AdapterSet, LayerForm, LooseAdapter, check_set, extract_adapters
from ._combine import combine
from ._convert import to_lora
from ._low_rank import known_factors
from ._products import scale_adapters
from ._stack_adapters import stack_adapters
from ._swapping import built_around, misfits, misfits_by_path, put_around, swap_adapters
from ._update_report import UpdateReport, UpdateRow
