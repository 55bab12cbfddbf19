"""Test-time training on any sequence of vectors. Needs torch alone."""

from ttt_core.config import TTTConfig
from ttt_core.inner_model import InnerWeights
from ttt_core.layer import TTTLayer
from ttt_core.monitor import TTTMonitor
from ttt_core.mounting import mount
from ttt_core.state import TTTState
from ttt_core.ttt_lm import load_ttt_lm_state_dict

__all__ = ["InnerWeights", "TTTConfig", "TTTLayer", "TTTMonitor", "TTTState", "load_ttt_lm_state_dict", "mount"]
