"""The Markdown page of one kind."""

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

import yaml

from atlas.fields import field_table
from atlas.kinds import WIDTH, Kind, kinds
from atlas.measured import Measured
from atlas.prose import markdown, paragraphs, router_text
from mixtura.moe.capacity import Policy
from mixtura.moe.losses import LOSSES
from mixtura.moe.routers.router import RouterSpec
from mixtura.shapes.ledger import (
    active_parameters,
    matmul_flops,
    total_parameters,
    weights_of,
)

_PAGE = Path(__file__).with_name("page.template.md")
_COUNTS = """\
At width {width}, with {experts} experts of width {expert_width} and `top_k: {top_k}`, as in the \
recipe below:

| part | parameters | used by a token | multiply-adds a token |
|---|---|---|---|
"""
_LEAKS = """\
A language model refuses it unless `router.accept_leak` is `true`; any other model may take it.

"""
_LEAKS_IN_TRAINING = """\
A language model is trained with it only where `router.accept_leak` is `true`; it opens, and any \
other model trains, without.

"""
_GROUP = """\
Under `scope: group`, as in the recipe below, later tokens decide too whether a row finds room."""
_ROOT = Path(__file__).parents[2]


def page(kind: Kind, measured: Measured) -> str:
    """Raises ConfigError where a docstring that it is made of is missing."""
    text = router_text(kind.router)
    return _PAGE.read_text("utf-8").format(
        name=kind.name,
        title=kind.facts.title,
        source=markdown(_source(kind)),
        summary=_prose(kind, " ".join(paragraphs(kind.config))),
        chooses=kind.facts.chooses,
        experts=kind.facts.experts,
        leak=leak(kind),
        alternative=f"Experts of {len(measured.snippet)} bytes of code, and load of every expert",
        caption=_caption(kind, measured),
        formula=_prose(kind, text.formula),
        body="\n\n".join(_prose(kind, paragraph) for paragraph in text.body),
        fields="\n".join(field_table(kind.config)) or "None but `kind`.",
        losses=_losses(kind),
        capacity=_capacity(kind),
        cost=_prose(kind, text.cost),
        counts=_counts(kind),
        advice=_prose(kind, text.advice),
        recipe=_recipe(kind),
        origin=_origin(kind),
    )


def leak(kind: Kind) -> str:
    """Whether a token's experts depend on later tokens."""
    if not kind.config.causal:
        return "yes"
    return "no" if kind.config.causal_in_training else "in training alone"


def by_reason(refused: Mapping[Policy, str]) -> Iterable[tuple[str, str]]:
    """Policies that share a reason, together."""
    for reason in dict.fromkeys(refused.values()):
        yield ", ".join(f"`{policy}`" for policy in refused if refused[policy] == reason), reason


def sentence(reason: str) -> str:
    text = markdown(reason)
    return f"{text[:1].upper()}{text[1:]}."


def _prose(kind: Kind, text: str) -> str:
    return markdown(text, kinds().keys() - {kind.name})


def _source(kind: Kind) -> str:
    arxiv = kind.facts.arxiv
    return f"{kind.facts.source}, arXiv {arxiv}" if arxiv else kind.facts.source


def _caption(kind: Kind, measured: Measured) -> str:
    first, second = measured.layers
    says = (
        f"The busiest expert has {first.max_over_mean:.2f} times the mean load in the first layer "
        f"and {second.max_over_mean:.2f} times in the second; a token has {_mean_experts(measured)}"
    )
    if first.dropped_share or second.dropped_share:
        says += (
            f", as {first.dropped_share:.1%} and {second.dropped_share:.1%} of the rows found "
            "theirs full"
        )
    if kind.config.causal and not kind.config.causal_in_training:
        says += ". That is evaluation; in training it is the batch that decides"
    moe = yaml.safe_dump(measured.setting.moe, sort_keys=False, default_flow_style=True, width=999)
    return (
        f"{says}. [How the pictures are made](index.md#the-pictures); here the layers are "
        f"`{moe.strip()}`."
    )


def _mean_experts(measured: Measured) -> str:
    means = [f"{layer.experts_per_token:.3g}" for layer in measured.layers]
    if len(set(means)) > 1:
        return f"{' and '.join(means)} experts on average"
    return "one expert" if means[0] == "1" else f"{means[0]} experts"


def _losses(kind: Kind) -> str:
    served = kind.moe.router.served()
    if not served:
        return "None: there is nothing to learn."
    rule = "Weights where the recipe gives none; at 0 a loss is off."
    if kind.config.served is not RouterSpec.served:
        rule += f" Here of the recipe below. {markdown(paragraphs(kind.config.served)[0])}"
    lines = [
        rule,
        "",
        "| loss | key | weight | what it is |",
        "|---|---|---|---|",
    ]
    for name, weight in served.items():
        meaning = markdown(paragraphs(LOSSES[name].function)[0])
        lines.append(f"| {name} | `balance.{LOSSES[name].weight_key}` | {weight:g} | {meaning} |")
    if kind.config.loss_choices == "first":
        rule = (
            "The balance loss counts first choices alone; under `balance.choices: all`, every one."
        )
        lines += ["", rule]
    return "\n".join(lines)


def _capacity(kind: Kind) -> str:
    refused = kind.config.refused_policies
    served = ", ".join(f"`{policy}`" for policy in get_args(Policy) if policy not in refused)
    lines = [f"Served: {served}."]
    lines += [f"Refused: {names}. {sentence(reason)}" for names, reason in by_reason(refused)]
    if kind.moe.capacity.scope == "group":
        lines.append(_GROUP)
    return "\n\n".join(lines)


def _counts(kind: Kind) -> str:
    """Of the recipe's layer, from its ledger."""
    moe = kind.moe
    gate = list(weights_of(moe.gate_tensors(WIDTH, "")))
    experts = [weight for weight in moe.weights(WIDTH) if weight.role == "expert"]
    rows = [
        f"| {part} | {total_parameters(weights):,} | {active_parameters(weights, 'A'):,} | "
        f"{matmul_flops(weights) // 2:,} |"
        for part, weights in (("router", gate), ("experts", experts))
    ]
    head = _COUNTS.format(
        width=WIDTH,
        experts=moe.num_experts,
        expert_width=moe.expert_width,
        top_k=moe.top_k,
    )
    return head + "\n".join(rows)


def _recipe(kind: Kind) -> str:
    text = yaml.safe_dump({"model": {"moe": kind.recipe}}, sort_keys=False, default_flow_style=None)
    return f"{_leak_note(kind.moe.router)}```yaml\n{text}```"


def _leak_note(router: RouterSpec) -> str:
    if router.leaks:
        return _LEAKS
    return _LEAKS_IN_TRAINING if router.leaks_in_training else ""


def _origin(kind: Kind) -> str:
    source = Path(inspect.getsourcefile(kind.router) or "").relative_to(_ROOT).as_posix()
    return f"`{kind.config.__name__}` and `{kind.router.__name__}` in `{source}`"
