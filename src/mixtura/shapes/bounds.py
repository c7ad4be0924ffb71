"""Upper bounds for a config's numbers, well above every published model's.

Layers and experts are looped over before the file shows that it holds as many, so that without a
bound a one-line config could take hours.
"""

LAYERS = 4_096
EXPERTS = 1 << 20
"""of one layer"""
HEADS = 1 << 16
SIDE = 1 << 24
"""of any matrix: a width, a vocabulary, a rank"""
CONTEXT = 1 << 32
WHOLE = 1 << 53
"""any other whole number of a config.json; fp64 has gaps beyond it"""
NUMBER = 1e30
"""any other number; its square and its inverse are finite"""
