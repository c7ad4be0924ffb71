"""Opens a model for a command."""

from typing import TYPE_CHECKING

from mixtura.cli.answers import note
from mixtura.cli.startup import without_collection

if TYPE_CHECKING:
    from mixtura.checkpoints.open_model import DTypeName
    from mixtura.engine.model import Model


def opened(model: str, dtype: "DTypeName | None", *, verify: bool) -> "Model":
    """Load a model with `mixtura.load`; raises what that function raises.

    If a GGUF file is packed, progress is shown. Remarks about the model are printed on stderr.
    """
    with without_collection():
        from mixtura.engine.model import load
        from mixtura.train.live_view import choose_view

        with choose_view() as view:
            found = load(model, dtype, progress=view.preparing, wait=verify)
    for remark in found.opened.remarks:
        note(remark)
    return found
