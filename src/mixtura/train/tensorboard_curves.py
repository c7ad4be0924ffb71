"""Writes a run's curves as TensorBoard event files, in the caller's thread.

torch's SummaryWriter writes in another thread. An error there, such as a full disk, would print a
traceback instead of reaching the caller.
"""

# Protobuf makes its classes at import, so type checkers cannot find them.
# pyright: reportAttributeAccessIssue=false

import socket
import time
from contextlib import suppress
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from mixtura.errors import StorageError
from mixtura.train.step_report import StepReport


class TensorBoardCurves:
    """Writes a new event file in `folder`. Raises StorageError if the file cannot be written."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        moment = time.time_ns()
        self._path = folder / f"events.out.tfevents.{moment}.{socket.gethostname()}"
        try:
            folder.mkdir(exist_ok=True)
            self._file = self._path.open("xb")
        except OSError as error:
            raise self._refused(error) from error
        self._records = RecordWriter(self._file)
        # This event makes TensorBoard hide the steps after `resumed_step` that are in older files.
        restart = SessionLog(status=SessionLog.START)
        self._write(
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(wall_time=time.time(), step=resumed_step + 1, session_log=restart),
        )

    def logged(self, report: StepReport, layers: list[int]) -> None:
        scalars = {
            "train/loss": report.loss,
            "train/grad_norm": report.grad_norm,
            "train/learning_rate": report.learning_rate,
            "train/tokens_per_second": report.tokens_per_second,
            **{f"balance/{name}": loss for name, loss in report.losses.items()},
        }
        rows = zip(layers, report.max_over_mean, report.dropped, strict=True)
        for layer, busiest, dropped in rows:
            scalars[f"load_max_over_mean/layer_{layer}"] = busiest
            scalars[f"dropped_share/layer_{layer}"] = dropped
        self._write_scalars(scalars, report.step)

    def evaluated(self, bits_per_byte: float, step: int) -> None:
        self._write_scalars({"heldout/bits_per_byte": bits_per_byte}, step)

    def close(self) -> None:
        # After a failed write, `close` writes the buffer once more and fails again.
        with suppress(OSError):
            self._file.close()

    def _write_scalars(self, scalars: dict[str, float], step: int) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, *events: Event) -> None:
        try:
            for event in events:
                self._records.write(event.SerializeToString())
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self._path}: cannot be written ({error.strerror}); free some space, "
            "then go on from the last checkpoint with --resume"
        )
