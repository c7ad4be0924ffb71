"""The live screen of a run: loss, speed, time left, and each layer's expert load as a bar chart."""

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mixtura.terminal_text import visible_line
from mixtura.train.view import Pace, PlainView, RunFacts, View, duration, opening

if TYPE_CHECKING:
    from mixtura.train.step_report import StepReport

BARS = "▁▂▃▄▅▆▇█"
_REFRESH_SECONDS = 0.2
_SMOOTHED_STEPS = 20


def choose_view() -> View:
    """A live screen if stderr is a terminal, else plain lines on stderr; stdout is for results."""
    console = Console(stderr=True)
    redraws = console.is_terminal and not console.is_dumb_terminal
    return LiveView(console) if redraws else PlainView()


def load_bar(load_E: list[int], width: int) -> Text:
    """A bar chart in one line of text, at most `width` columns wide.

    A column is one expert or, with more experts than `width`, the busiest of several neighbours. A
    column for an even share of the load has half the height; for twice that share or more it has
    the full height. It is green up to twice an even share, yellow above, and red above four times.
    It is also red if one of its experts has less than a tenth of an even share.
    """
    mean = sum(load_E) / len(load_E) or 1.0
    per_column = -(-len(load_E) // width)
    bar = Text()
    for first in range(0, len(load_E), per_column):
        shares = [load / mean for load in load_E[first : first + per_column]]
        share = max(shares)
        height = min(len(BARS) - 1, round(share * len(BARS) / 2) - 1)
        uneven = share > 4 or min(shares) < 0.1
        colour = "red" if uneven else "yellow" if share > 2 else "green"
        bar.append(BARS[max(0, height)], style=colour)
    return bar


class LiveView(View):
    """Redraws the screen in place, at most 5 times a second; alarms and log lines stay above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._preparing: Progress | None = None
        self._pace: Pace | None = None
        self._losses: deque[float] = deque(maxlen=_SMOOTHED_STEPS)
        self._speeds: deque[tuple[int, float]] = deque(maxlen=_SMOOTHED_STEPS)
        self._heldout = "no evaluation yet"
        self._refreshed = 0.0

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._end_preparing()
        self._live.stop()

    def preparing(self, stage: str, done: int, total: int) -> None:
        if self._preparing is None:
            # A stage may name a folder, and brackets in its name must not be read as markup.
            stages = TextColumn("{task.description}", markup=False)
            columns = (stages, BarColumn(), TimeRemainingColumn())
            self._preparing = Progress(*columns, console=self._console, transient=True)
            self._preparing.start()
        progress, stage = self._preparing, visible_line(stage)
        known = {task.description: task.id for task in progress.tasks}
        task = known[stage] if stage in known else progress.add_task(stage)
        progress.update(task, completed=done, total=total or None)

    def started(self, facts: RunFacts) -> None:
        self._end_preparing()
        self._pace = Pace(facts)
        self.log(opening(facts))
        self._live.start()

    def replanned(self, steps: int) -> None:
        assert self._pace is not None, "a run starts before it is corrected"
        self._pace.replan(steps)

    def stepped(self, report: "StepReport", *, logged: bool) -> None:
        assert self._pace is not None, "a run starts before it steps"
        self._losses.append(report.loss)
        self._speeds.append((report.tokens, report.seconds))
        for alarm in report.alarms:
            self._live.console.print(Text(f"ALARM  {alarm}", style="bold white on red"))
        last = report.step == self._pace.facts.steps
        if last or monotonic() - self._refreshed > _REFRESH_SECONDS:
            self._refreshed = monotonic()
            self._live.update(self._screen(report, self._pace), refresh=True)

    def evaluated(self, step: int, bits_per_byte: float) -> None:
        self._heldout = f"held-out {bits_per_byte:.4f} bits/byte (step {step})"

    def log(self, line: str) -> None:
        self._console.print(visible_line(line), markup=False, highlight=False)

    def _end_preparing(self) -> None:
        if self._preparing is not None:
            self._preparing.stop()
            self._preparing = None

    def _screen(self, report: "StepReport", pace: Pace) -> RenderableType:
        tokens, seconds = map(sum, zip(*self._speeds, strict=True))
        line = Table.grid(padding=(0, 2))
        line.add_row(
            f"step {report.step}/{pace.facts.steps}",
            ProgressBar(total=pace.facts.steps, completed=report.step, width=24),
            f"loss {sum(self._losses) / len(self._losses):.4f}",
            f"{tokens / seconds:,.0f} tokens/s",
            f"{duration(pace.left(report.step))} left",
        )
        return Group(line, self._loads(report, pace.facts.moe_layers), Text(self._heldout))

    def _loads(self, report: "StepReport", layers: list[int]) -> RenderableType:
        """The bar charts of the least even layers, as many as fit, in the order of the model."""
        table = Table.grid(padding=(0, 2))
        busiest = report.max_over_mean
        room = max(1, self._console.height - 6)
        shown = sorted(sorted(range(len(layers)), key=lambda row: -busiest[row])[:room])
        for row in shown:
            table.add_row(
                f"layer {layers[row]}",
                load_bar(report.load[row], max(8, self._console.width - 50)),
                f"max/mean {busiest[row]:.2f}",
                f"dropped {report.dropped[row]:.1%}" if report.dropped[row] else "",
            )
        if len(shown) < len(layers):
            table.add_row("", Text(f"and {len(layers) - len(shown)} layers that are more even"))
        return table
