"""The file that every packed folder holds."""

FILE = "model.mixtura"
