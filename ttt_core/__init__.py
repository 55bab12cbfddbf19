"""Test-time training on any sequence of vectors. Needs torch alone."""

from ttt_core.commit import commit_sizes
from ttt_core.config import TTTConfig
from ttt_core.inner_model import InnerWeights
from ttt_core.layer import TTTLayer
from ttt_core.monitor import TTTMonitor
from ttt_core.mounting import mount
from ttt_core.precision import POLICIES, PrecisionPolicy
from ttt_core.state import TTTState
from ttt_core.ttt_lm import load_ttt_lm_state_dict

__all__ = [
    "POLICIES",
    "InnerWeights",
    "PrecisionPolicy",
    "TTTConfig",
    "TTTLayer",
    "TTTMonitor",
    "TTTState",
    "commit_sizes",
    "load_ttt_lm_state_dict",
    "mount",
]
