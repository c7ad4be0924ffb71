"""Tests are no packages; this is how the fuzzers' processes find the modules here."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
