"""The name of the weight file in the folder of a packed model."""

FILE = "model.mixtura"
