"""From a sweep to a table and to claims that its rows decide.

A claim "A is better than B" holds only where the means over seeds differ by more than the larger of
the two spreads (largest less smallest); with fewer than three seeds on either side none is made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from sweep import Options, Row, Variant, options_for, record, settings, sweep

from mixtura.config import Tree

MIN_SEEDS = 3
BITS = "heldout_bits_per_byte"


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over a variant's seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def width(self) -> float:
        return max(self.values) - min(self.values)

    def tree(self) -> Tree:
        return {"mean": self.mean, "spread": self.width, "seeds": len(self.values)}


def names(rows: Sequence[Row]) -> list[str]:
    """Variants in the order of their first run."""
    return list(dict.fromkeys(row.name for row in rows))


def over_seeds(rows: Sequence[Row], name: str, measure: str) -> Spread:
    return Spread(tuple(row.measures[measure] for row in rows if row.name == name))


def median_of(rows: Sequence[Row], name: str, measure: str) -> float:
    return median(over_seeds(rows, name, measure).values)


def worst_layer(rows: Sequence[Row], name: str, where: str, measure: str) -> list[float]:
    """For each seed the largest figure of any layer; `where` is last_steps or heldout."""
    return [max(row.measures[where][measure]) for row in rows if row.name == name]


def lower(rows: Sequence[Row], better: str, worse: str, measure: str = BITS) -> Tree | None:
    """The claim that `better` has the lower figure; None where seeds are too few to say."""
    low, high = (over_seeds(rows, name, measure) for name in (better, worse))
    if min(len(low.values), len(high.values)) < MIN_SEEDS:
        return None
    gap, spread = high.mean - low.mean, max(low.width, high.width)
    return {
        "claim": f"{measure}: {better} below {worse} by more than the spread over seeds",
        "holds": gap > spread,
        "difference": gap,
        "spread": spread,
    }


def claim(text: str, *, holds: bool, **figures: float) -> Tree:
    return {"claim": text, "holds": holds, **figures}


def print_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """To stdout, as Markdown that reads as plain text too."""
    widths = [max(map(len, cells)) for cells in zip(columns, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    for cells in (columns, rule, *lines):
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print(f"| {' | '.join(padded)} |")


def row_trees(rows: Sequence[Row]) -> list[Tree]:
    return [{"name": row.name, "seed": row.seed, **row.measures} for row in rows]


def found(rows: Sequence[Row], claims: Sequence[Tree]) -> Tree:
    """What a result says: claims, the time that it took, every run."""
    return {
        "claims": list(claims),
        "cpu_seconds": sum(row.measures["cpu_seconds"] for row in rows),
        "seconds": sum(row.measures["seconds"] for row in rows),
        "rows": row_trees(rows),
    }


def compare(
    script: str,
    description: str | None,
    variants: Callable[[Options], Sequence[Variant]],
    columns: Sequence[str],
    line: Callable[[Sequence[Row], str], Sequence[str]],
    claims: Callable[[Sequence[Row]], Sequence[Tree]],
) -> None:
    """The whole of an experiment: its runs, a table with a `line` for each name, its claims."""
    options = options_for(script, description)
    chosen = variants(options)
    rows = sweep(chosen, options.runs)
    print_table(columns, [line(rows, name) for name in names(rows)])
    record(options.out, {**settings(chosen), **found(rows, claims(rows))})
