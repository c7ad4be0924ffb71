"""Writes the benchmark's result as Markdown tables into a page."""

from pathlib import Path
from typing import Any

BEGIN, END = "<!-- engine: begin -->", "<!-- engine: end -->"
# Heading of a column -> labels of results, of which the column shows the fastest.
_COLUMNS = {
    "llama.cpp Q4_0": ("llama.cpp",),
    "ik_llama.cpp Q4_0": ("ik_llama.cpp",),
    "transformers bf16": ("transformers eager", "transformers grouped_mm"),
    "Mixtura 4 bits": ("mixtura",),
}
_OURS = "mixtura"
_SPARE = 300 << 20


def insert(result: dict[str, Any], page: Path) -> None:
    """Replace the text between the marks BEGIN and END. Raises ValueError if they are missing."""
    head, begin, rest = page.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: has no {BEGIN} and {END} to write tables between")
    page.write_text(f"{head}{BEGIN}\n\n{tables(result)}\n{END}{tail}")


def tables(result: dict[str, Any]) -> str:
    machine = result["machine"]
    sets = ", ".join(machine["instruction_sets"])
    lines = [f"{machine['cpu']}, {result['threads']} threads, {sets}.", ""]
    for one in result["shapes"]:
        lines += [*_speeds(one), "", *_loading(one), ""]
    return "\n".join(lines)


def _speeds(one: dict[str, Any]) -> list[str]:
    shape = one["shape"]
    title = (
        f"**{shape['name']}**: {shape['layers']} layers of width {shape['width']}, "
        f"{shape['experts']} experts of {shape['expert_width']}, top-{shape['top_k']}; "
        f"medians of {one['rounds']} rounds"
    )
    lines = [
        title,
        "",
        f"| tokens/s | {' | '.join(_COLUMNS)} | to the best peer | of the limit |",
        f"|---{'|---' * (len(_COLUMNS) + 2)}|",
    ]
    for number, summed in enumerate(one["summary"]):
        sides: dict[str, Any] = {}
        for phase in one["phases"]:
            # A side that was measured in several phases is shown from the first phase.
            sides = {**phase["work"][number]["sides"], **sides}
        cells = [_fastest(sides, labels) for labels in _COLUMNS.values()]
        ratio = "" if summed["ratio"] is None else f"{summed['ratio']:.2f}"
        limits = sides.get(_OURS, {"of_limit": {}})["of_limit"]
        of_limit = ", ".join(f"{value:.2f} of {key}" for key, value in limits.items())
        lines.append(f"| {' | '.join([summed['what'], *cells, ratio, of_limit])} |")
    return lines


def _fastest(sides: dict[str, Any], labels: tuple[str, ...]) -> str:
    rates = [sides[label]["tokens_per_second"] for label in labels if label in sides]
    return f"{max(rates):.1f}" if rates else ""


def _loading(one: dict[str, Any]) -> list[str]:
    allowed = one["file_bytes"] + one["cache_bytes"] + _SPARE
    whole = (
        f"{one['file_bytes'] / 1e9:.2f} GB in Q4_0, a cache of {one['cache_bytes'] / 1e9:.2f} GB"
    )
    lines = [
        f"{whole}; with 300 MB more, {allowed / 1e9:.2f} GB.",
        "",
        "| | load to first token, s | resident, GB |",
        "|---|---|---|",
    ]
    for name, loaded in one["loading"].items():
        resident = one["resident_bytes"].get(name)
        size = "" if resident is None else f"{resident['resident'] / 1e9:.2f}"
        lines.append(f"| {name} | {loaded['seconds']:.2f} | {size} |")
    return lines
