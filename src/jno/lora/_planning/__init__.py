"""The selection of a call: its arguments parsed, the claims of adapters on layers, and a plan."""

from ._candidates import MaskLike, TargetLike, parse_mask, selector
from ._plan import Plan, PlanRow, warn_of_omissions
from ._planner import advised, make_plan
from ._specs import Spec, SpecLike, WrapperLike, parse_specs
