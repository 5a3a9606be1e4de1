"""The selection of a call: its arguments parsed, one walk over the model, and a plan."""

from ._masks import MaskLike, parse_mask, selector
from ._messages import advised, make_plan, warn_of_omissions
from ._plan import Plan, PlanRow
from ._specs import Spec, SpecLike, TargetLike, WrapperLike, parse_specs
