"""The most of anything that a config may ask for, well above every published model's.

A count is gone through, layer by layer or expert by expert, before its file has shown that it holds
as many: without a bound a config of one line could keep us busy for hours.
"""

LAYERS = 4_096
EXPERTS = 1 << 20
"""of one layer"""
HEADS = 1 << 16
SIDE = 1 << 24
"""of any matrix: a width, a vocabulary, a rank"""
CONTEXT = 1 << 32
WHOLE = 1 << 53
"""any other whole number of a config.json: beyond it fp64 has gaps"""
NUMBER = 1e30
"""any other number: it can be squared, and so can its inverse"""
