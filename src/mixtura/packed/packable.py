"""What of a built model is packed and what stays as it is, in the order of the file."""

from torch import nn

from mixtura.shapes.storage.packed import Planned, planned


def plan(model: nn.Module) -> list[Planned]:
    """Every parameter and every buffer that is saved, once; a model without weights will do.

    Raises ConfigError where groups of 32 do not divide the model's width.
    """
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    # An embedding is read first, wherever it was made.
    return list(planned(sorted(shapes, key=lambda one: one[0].partition(".")[0] != "embedding")))
