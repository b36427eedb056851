"""The log of a run: lines of JSON, a progress bar and TensorBoard."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from perceivers.files.budgets import from_json
from perceivers.files.durable import write_text
from perceivers.files.messages import one_line
from perceivers.files.opening import regular_file
from perceivers.progress import progress
from perceivers.schema.plain_values import checked
from perceivers.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

LOG, TENSORBOARD = "log.jsonl", "tensorboard"
"""Names within a run folder: the file of the log, and the folder of TensorBoard's files."""

MOST_LOG_BYTES, LONGEST_LOG_LINE = 256 * 2**20, 2**20
"""Largest log and longest line in bytes that are read: enough for a million lines with several outputs."""


@with_config(ConfigDict(extra="allow"))
class LogLine(TypedDict):
    """A line of a log; it also holds the learning rate, the gradient norm and the seconds, as extra keys."""

    step: Annotated[int, Field(ge=0, lt=2**63)]
    losses: dict[str, float]
    weights: NotRequired[dict[str, float]]


class Log:
    """The log of a run that has made `step` steps; lines of later steps, which a killed run wrote, are dropped."""

    def __init__(self, run: Path, step: int, config: TrainingConfig, enabled: bool) -> None:
        self.path, self.every, self.enabled = run / LOG, config.log_every, enabled
        self.progress = progress("training", config.num_steps, step, enabled)
        self.board = _board(run, step) if enabled and config.tensorboard else None
        if enabled:
            earlier = [line for line in read_log(run) if line["step"] <= step]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in earlier))

    def __enter__(self) -> "Log":
        self.report = self.progress.__enter__()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(error_type, error, trace)
        if self.board is not None:
            self.board.close()

    def write(self, step: int, losses: Mapping[str, float], weights: Mapping[str, float], **scalars: float) -> None:
        """Write a line every `log_every` steps: losses by output, their weights if learned, and other scalars."""
        self.report(step)
        if not self.enabled or step % self.every:
            return
        with self.path.open("a", encoding="utf-8") as file:
            learned = {"weights": weights} if weights else {}
            file.write(json.dumps({"step": step, **scalars, "losses": losses, **learned}) + "\n")
        self.report(step, "  ".join(f"{one_line(name)} {value:.4f}" for name, value in losses.items()))
        if self.board is not None:
            named = [(f"loss/{name}", loss) for name, loss in losses.items()]
            named += [(f"weight/{name}", weight) for name, weight in weights.items()]
            for name, value in [*named, *scalars.items()]:
                self.board.add_scalar(name, value, step)

    def picture(self, step: int, figure: "Figure") -> None:
        """Write a figure for TensorBoard."""
        if self.board is not None:
            self.board.add_figure("samples", figure, step)


def read_log(run: Path) -> list[LogLine]:
    """Return the lines of a run's log, without a truncated last line; a ValueError names any other broken line."""
    path, lines = run / LOG, list[LogLine]()
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return lines
    with regular_file(path, MOST_LOG_BYTES).open("rb") as file:
        while line := file.readline(LONGEST_LOG_LINE + 1):
            place = f"{path}:{len(lines) + 1}"
            if len(line) > LONGEST_LOG_LINE:
                raise ValueError(f"{place}: a line of more than {LONGEST_LOG_LINE:,} bytes")
            try:
                value = from_json(line.decode())
            except ValueError as error:
                if not line.endswith(b"\n"):
                    break  # the run was killed while it wrote this
                raise ValueError(f"{place}: not JSON: {one_line(error)}") from None
            lines.append(checked(LogLine, value, place, strict=True))
    return lines


def _board(run: Path, step: int) -> "SummaryWriter | None":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        warnings.warn("tensorboard = True has no effect: it is not installed (perceivers[train])", stacklevel=3)
        return None
    return SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)
