"""A model, opened for a command."""

from typing import TYPE_CHECKING

from mixtura.cli.answers import note
from mixtura.cli.startup import without_collection

if TYPE_CHECKING:
    from mixtura.checkpoints.opening import DTypeName, OpenModel


def opened(model: str, dtype: "DTypeName | None", *, verify: bool) -> "OpenModel":
    """The model; a GGUF file that is packed first shows progress, and remarks go to stderr.

    Raises as `open_model` does.
    """
    with without_collection():
        from mixtura.checkpoints.opening import open_model
        from mixtura.train.live import choose_view

        with choose_view() as view:
            found = open_model(model, dtype, progress=view.preparing, wait=verify)
    for remark in found.remarks:
        note(remark)
    return found
