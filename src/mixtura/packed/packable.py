"""Which parts of a built model are packed and which stay plain, in the order of the file."""

from torch import nn

from mixtura.shapes.storage.packed import Planned, planned


def plan(model: nn.Module) -> list[Planned]:
    """Every saved parameter and buffer once; the model may be without weights.

    Raises ConfigError where the model's width is not a multiple of 32.
    """
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    # The embedding comes first in the file, wherever the model has it.
    return list(planned(sorted(shapes, key=lambda one: one[0].partition(".")[0] != "embedding")))
