"""The selection of a call: its arguments parsed, one walk over the model, and a plan."""

from ._advice import advised
from ._masks import MaskLike, compiled, parse_mask, selector
from ._messages import make_plan, warn_of_omissions
from ._plan import Plan, PlanRow
from ._specs import Spec, SpecLike, TargetLike, WrapperLike, parse_specs
