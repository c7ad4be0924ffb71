"""Finds the module or the parameter in which a value that is not finite first appeared."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mixtura.models import Decoder, DecoderOutput, LanguageModel
from mixtura.moe import MoEOutput, Routing


def in_forward(decoder: LanguageModel, forward: Callable[[], object]) -> str | None:
    """Run `forward`; return the first module with an output that is not finite, or None.

    A module is checked when its forward pass ends. An inner module ends before the modules around
    it, so the first module found is the innermost.
    """
    found: list[str] = []
    with torch.no_grad(), _watching(decoder, found):
        forward()
    return found[0] if found else None


def in_gradients(decoder: LanguageModel) -> str:
    """Find the parameter for which the backward pass first computed a gradient that is not finite.

    The backward pass computes gradients in the reverse order of the forward pass, so parameters are
    searched in this reverse order.
    """
    for name, parameter in reversed(_in_forward_order(decoder)):
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the norm of gradients that are finite one by one"


def in_parameters(decoder: LanguageModel) -> str | None:
    """The name of the first parameter or buffer that is not finite, or None."""
    return next(
        (name for name, value in decoder.state_dict().items() if not _finite([value])), None
    )


def _in_forward_order(decoder: LanguageModel) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters as `config.weights()` lists them, in the order of the forward pass."""
    named = dict(decoder.named_parameters())
    return [(weight.name, named[weight.name]) for weight in decoder.config.weights()]


@contextmanager
def _watching(decoder: LanguageModel, found: list[str]) -> Iterator[None]:
    """During the block, append to `found` each module that returns a value that is not finite."""

    def hook_for(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001
            if not _finite(_tensors(output)):
                found.append(name)

        return hook

    def check_embedded(block: nn.Module, inputs: tuple[object, ...]) -> None:  # noqa: ARG001
        # The embedding is no module; its output is the first block's input.
        if not _finite(_tensors(inputs[0])):
            found.append("embedding")

    handles = [
        module.register_forward_hook(hook_for(name or "the model"))
        for name, module in decoder.named_modules()
    ]
    if isinstance(decoder, Decoder):
        handles.append(decoder.blocks[0].register_forward_pre_hook(check_embedded))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _finite(tensors: Iterable[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors of a module's output in which a number may not be finite."""
    match value:
        case Tensor():
            yield value
        case tuple():
            for part in value:
                yield from _tensors(part)
        case Routing():
            for part in (value.logits_TE, value.probs_TE, value.weight_N):
                yield from _tensors(part)
        case MoEOutput():
            yield value.hidden
            yield from value.losses.values()
        case DecoderOutput():
            yield value.logits_BSV
        case _:
            return
