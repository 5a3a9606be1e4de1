"""The selection of a call: its arguments parsed, the claims of adapters on layers, and a plan."""

from ._advice import advised
from ._candidates import MaskLike, TargetLike, parse_mask, selector
from ._messages import warn_of_omissions
from ._plan import Plan, PlanRow
from ._planner import make_plan
from ._specs import Spec, SpecLike, WrapperLike, parse_specs
