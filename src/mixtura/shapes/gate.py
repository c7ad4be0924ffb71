"""The buffers of a router, from its section of a config as plain data. No torch."""

from collections.abc import Iterator, Mapping

from mixtura.shapes.ledger import Buffer

# Kinds that have a choosing bias by default.
_BIASED = ("sigmoid_topk", "deepseek_v3")


def gate_buffers(router: object, rows: int, prefix: str) -> Iterator[Buffer]:
    """Of a linear gate with `rows` outputs; `router` is a config's section, checked or not."""
    section = router if isinstance(router, Mapping) else {}
    kind = section.get("kind")
    if section.get("choosing_bias", kind in _BIASED):
        yield Buffer(f"{prefix}bias", (rows,), "float32")
    if kind == "expert_threshold":
        yield Buffer(f"{prefix}threshold_E", (rows,), "float32")
        yield Buffer(f"{prefix}steps_seen", (), "int64")
