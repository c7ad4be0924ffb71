"""The buffers of a router, computed from the router's section of a config. No torch."""

from collections.abc import Iterator, Mapping

from mixtura.shapes.ledger import Buffer

# Kinds of routers that by default have a choosing bias: a number for each expert that is added to
# the expert's score only when experts are chosen.
_BIASED = ("sigmoid_topk", "deepseek_v3")


def gate_buffers(router: object, rows: int, prefix: str) -> Iterator[Buffer]:
    """The buffers of a router whose gate has `rows` outputs.

    `router` is the router's section of a config as plain data; it may still have bad values.
    """
    section = router if isinstance(router, Mapping) else {}
    kind = section.get("kind")
    if section.get("choosing_bias", kind in _BIASED):
        yield Buffer(f"{prefix}bias", (rows,), "float32")
    if kind == "expert_threshold":
        yield Buffer(f"{prefix}threshold_E", (rows,), "float32")
        yield Buffer(f"{prefix}steps_seen", (), "int64")
