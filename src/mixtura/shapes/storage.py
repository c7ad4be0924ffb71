"""How weights are stored in fewer bits than a float."""

from typing import Literal

Bits = Literal[4, 8]
"""of a packed weight"""
GROUP = 32
"""consecutive inputs of one output channel that share a scale"""
