"""Config fields whose value is the config of a router, which may be of any registered kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainValidator, SerializeAsAny, ValidationError
from pydantic_core import InitErrorDetails

from mixtura.moe.routers.router import ROUTERS, RouterSpec


@dataclass(frozen=True, slots=True)
class RouterField:
    """The validator of a config field whose value is the config of a router."""

    one_gate_alone: bool = False
    """whether the field accepts only routers with one linear gate, as the parts of a hierarchical
    router need"""
    or_hierarchical: bool = False
    """whether the field accepts hierarchical routers in addition"""

    def kinds(self) -> list[str]:
        """The kinds that the field accepts."""
        return [name for name, kind in ROUTERS.values.items() if self._takes(kind.config)]

    def __call__(self, value: object) -> RouterSpec:
        """The config of the router.

        Raises ValueError for an unknown kind, and for a kind that the field does not accept.
        """
        spec = value if isinstance(value, RouterSpec) else _read(value)
        if not self._takes(type(spec)):
            raise ValueError(
                f"kind={spec.name} cannot be a part of a hierarchical router; choose one of "
                f"{', '.join(self.kinds())}"
            )
        return spec

    def _takes(self, config: type[RouterSpec]) -> bool:
        hierarchical = config.model_fields["kind"].default == "hierarchical"
        fits = config.has_one_gate or (self.or_hierarchical and hierarchical)
        return fits or not self.one_gate_alone


def _read(value: object) -> RouterSpec:
    if not isinstance(value, Mapping) or "kind" not in value:
        raise ValueError(f"kind is missing; choose one of {', '.join(ROUTERS.names())}")
    config = ROUTERS.get(value["kind"]).config
    try:
        return config.model_validate(value)
    except ValidationError as error:
        # Each error's location gets the kind as a prefix, so that the message names the config with
        # the wrong key.
        raise ValidationError.from_exception_data(
            error.title, [_under(value["kind"], one) for one in error.errors()]
        ) from error


def _under(kind: str, error: Mapping[str, Any]) -> InitErrorDetails:
    return InitErrorDetails(
        type=error["type"],
        loc=(kind, *error["loc"]),
        input=error["input"],
        ctx=error.get("ctx", {}),
    )


AnyRouter = Annotated[SerializeAsAny[RouterSpec], PlainValidator(RouterField())]
OuterRouter = Annotated[
    SerializeAsAny[RouterSpec], PlainValidator(RouterField(one_gate_alone=True))
]
"""the config of the outer router in a hierarchical router, which chooses groups of experts"""
InnerRouter = Annotated[
    SerializeAsAny[RouterSpec],
    PlainValidator(RouterField(one_gate_alone=True, or_hierarchical=True)),
]
"""the config of the inner router in a hierarchical router; the inner router may be hierarchical
too"""
