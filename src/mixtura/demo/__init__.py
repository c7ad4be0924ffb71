"""The demo trains an MoE and its dense twin side by side, on the same text in the same order.

The dense twin is a dense model with the active compute of the MoE.

    result = run_demo(Path("runs/demo"), view=choose_view())
"""

from mixtura.demo.outcome import Outcome, TwinOutcome
from mixtura.demo.run import free_folder, run_demo

__all__ = ["Outcome", "TwinOutcome", "free_folder", "run_demo"]
