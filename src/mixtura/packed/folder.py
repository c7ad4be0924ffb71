"""The name of the file that makes a folder a packed one."""

FILE = "model.mixtura"
