"""Upper bounds for the numbers of a config, well above the numbers of every published model.

Mixtura loops over a config's layers and experts before it reads how many the checkpoint contains.
Without bounds, a config of one line could therefore take hours.
"""

LAYERS = 4_096
EXPERTS = 1 << 20
"""experts of one layer"""
HEADS = 1 << 16
TAPS = 16
"""taps of a recurrent mixer's convolution; equal to kTapsMost in native/recurrent/delta_mixer.h"""
SIDE = 1 << 24
"""a side of any matrix, such as a width, a vocabulary size or a rank"""
CONTEXT = 1 << 32
WHOLE = 1 << 53
"""any other whole number of a config.json; above 2^53, fp64 skips whole numbers"""
NUMBER = 1e30
"""the absolute value of any other number, whose square and inverse are then finite"""
