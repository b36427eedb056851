"""StarCraft II replays as snapshots: the living units of both players, and the players' statistics.

Both come from a replay's "tracker" events, which sc2reader parses. Whole games, not snapshots, are held out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perceivers.data.dataset import DataSet
from perceivers.data.splits import is_held_out
from perceivers.files.messages import one_line
from perceivers.files.opening import regular_file
from perceivers.schema import Record

STATISTICS = {
    "minerals": "minerals_current",
    "gas": "vespene_current",
    "income": "minerals_collection_rate",
    "workers": "workers_active_count",
    "army": "minerals_used_current_army",
}
"""Statistics of each player: our name, and sc2reader's."""

PLAYERS = (1, 2)
"""The players, as replays number the owners of units."""

LARGEST_REPLAY = 2**26
"""Largest replay in bytes; long games of eight players take five million."""

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class StarCraft(DataSet):
    """Records of a game at one time, every ten seconds: "units", "statistics" and "time" in seconds.

    Units have the columns type, owner, x and y in cells of the map, and age in seconds.
    """

    folder: str = "starcraft"
    """Folder of the .SC2Replay files."""
    held_out_every: int = 5
    """Every n-th game, ordered by file name, is held out."""
    max_units: int = 512
    """Largest number of units of a snapshot; if there are more, the oldest are kept (paper: 512)."""
    kind: Literal["starcraft"] = "starcraft"
    """Name in files."""

    def __post_init__(self) -> None:
        if self.held_out_every < 2:
            raise ValueError(f"held_out_every = {self.held_out_every} must be at least 2, for a game to learn from")

    def training(self) -> list[Record]:
        """Return the snapshots of the training games."""
        return [self._cut(snapshot) for game in self._games(False) for snapshot in game]

    def held_out(self) -> list[Record]:
        """Return the snapshots of the held-out games."""
        return [self._cut(snapshot) for game in self._games(True) for snapshot in game]

    def _games(self, held_out: bool) -> list[Sequence[Record]]:
        games = enumerate(replays(self.folder), start=1)
        return [game for number, game in games if is_held_out(number, self.held_out_every) == held_out]

    def _cut(self, snapshot: Record) -> Record:
        return {**snapshot, "units": {name: column[: self.max_units] for name, column in snapshot["units"].items()}}


@lru_cache(maxsize=2)
def replays(folder: str) -> tuple[tuple[Record, ...], ...]:
    """Return the snapshots of each game of a folder, ordered by file name; ValueError if there are no games."""
    paths = sorted(Path(folder).glob("*.SC2Replay"))
    if not paths:
        raise ValueError(f"{folder}: holds no .SC2Replay files")
    return tuple(tuple(snapshots_of(events_of(path))) for path in paths)


def events_of(path: Path) -> list[Any]:
    """Return the tracker events of a replay; ValueError if it has none."""
    try:
        import sc2reader
    except ImportError as error:
        raise ImportError(f"sc2reader cannot be imported ({error}): pip install perceivers[starcraft]") from None
    regular_file(path, LARGEST_REPLAY)
    try:
        replay = sc2reader.load_replay(str(path), load_level=3)
    except Exception as error:  # sc2reader raises nearly anything for a damaged archive
        raise ValueError(f"{path}: not a replay that sc2reader reads: {one_line(error)}") from None
    if not getattr(replay, "tracker_events", None):
        raise ValueError(f"{path}: has no tracker events: only replays of version 2.0.8 and later do")
    return list(replay.tracker_events)


@dataclass
class Unit:
    """State of a unit, as known from the events so far."""

    type: str
    owner: int
    x: int
    y: int
    born: int
    """Time of birth, in seconds."""


def snapshots_of(events: Sequence[Any]) -> Iterator[Record]:
    """Yield a snapshot each time that the events have new statistics of both players."""
    units: dict[int, Unit] = {}
    statistics: dict[int, dict[str, float]] = {}
    for event in events:
        if event.name == "PlayerStatsEvent":
            statistics[event.pid] = {name: float(getattr(event, key)) for name, key in STATISTICS.items()}
            if event.pid == PLAYERS[-1] and event.second and statistics.keys() >= set(PLAYERS):
                columns = {f"{name}_{pid}": statistics[pid][name] for pid in PLAYERS for name in STATISTICS}
                yield {"units": columns_of(units, event.second), "statistics": columns, "time": float(event.second)}
        else:
            follow(units, event)


def follow(units: dict[int, Unit], event: Any) -> None:
    """Apply an event to the units, which are keyed by their index in the replay."""
    if event.name in ("UnitBornEvent", "UnitInitEvent"):
        if not event.unit_type_name.startswith("Beacon"):  # part of the user interface, not of the game
            unit = Unit(event.unit_type_name, event.control_pid, event.x, event.y, event.second)
            units[event.unit_id_index] = unit
    elif event.name == "UnitDiedEvent":
        units.pop(event.unit_id_index, None)
    elif event.name == "UnitPositionsEvent":
        for index, (x, y) in event.positions:
            if index in units:
                units[index].x, units[index].y = x, y
    elif getattr(event, "unit_id_index", None) in units:
        unit = units[event.unit_id_index]
        unit.type = getattr(event, "unit_type_name", unit.type)
        unit.owner = getattr(event, "control_pid", unit.owner)


def columns_of(units: dict[int, Unit], time: int) -> Columns:
    """Return a column for each property of the players' units, ordered by birth."""
    living = sorted((unit for unit in units.values() if unit.owner in PLAYERS), key=lambda unit: unit.born)
    return {
        "type": np.array([unit.type for unit in living], object),
        "owner": np.array([unit.owner for unit in living], int),
        "x": np.array([unit.x for unit in living], np.float32),
        "y": np.array([unit.y for unit in living], np.float32),
        "age": np.array([time - unit.born for unit in living], np.float32),
    }
