"""The demo: an MoE and its dense twin, trained side by side on the same text in the same order.

result = run_demo(Path("runs/demo"), view=choose_view())
"""

from mixtura.demo.outcome import Outcome, TwinOutcome
from mixtura.demo.run import free_folder, run_demo

__all__ = ["Outcome", "TwinOutcome", "free_folder", "run_demo"]
