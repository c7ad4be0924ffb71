"""Which tensors of a built model are packed and which stay plain, in the packed file's order."""

from torch import nn

from mixtura.shapes.storage.packed import Planned, planned


def plan(model: nn.Module) -> list[Planned]:
    """The packed file's planned tensors, which contain each parameter and buffer of the model once.

    The model may be without weights. Raises ConfigError if the model's width is not a multiple of
    32.
    """
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    # The embedding is first in the file, whatever its place in the model.
    return list(planned(sorted(shapes, key=lambda one: one[0].partition(".")[0] != "embedding")))
