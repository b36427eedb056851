"""Data sets, one file each."""

from perceivers.data.arrays import Arrays
from perceivers.data.dataset import DataSet
from perceivers.data.flow_scenes import FlowScenes
from perceivers.data.image_folder import ImageFolder
from perceivers.data.published.audioset_clips import AudioSet
from perceivers.data.published.flow_pairs import FlowPairs
from perceivers.data.published.glue_tables import Glue
from perceivers.data.published.handwritten_digits import Digits
from perceivers.data.published.idx import Idx
from perceivers.data.published.kinetics_clips import Kinetics
from perceivers.data.published.nyc_weather import WeatherLeads
from perceivers.data.published.spoken_digits import SpokenDigits
from perceivers.data.published.starcraft_replays import StarCraft
from perceivers.data.sensor_streams import SensorStreams
from perceivers.data.shapes import Shapes
from perceivers.data.shards import Shards
from perceivers.data.spike_trains import SpikeTrains
from perceivers.data.table import Table
from perceivers.data.texts import Texts

AnyDataSet = (
    Arrays
    | AudioSet
    | Digits
    | FlowPairs
    | FlowScenes
    | Glue
    | Idx
    | ImageFolder
    | Kinetics
    | SensorStreams
    | Shapes
    | Shards
    | SpikeTrains
    | SpokenDigits
    | StarCraft
    | Table
    | Texts
    | WeatherLeads
)
"""All data sets that a recipe may name, by their field `kind`."""

__all__ = [
    "AnyDataSet",
    "Arrays",
    "AudioSet",
    "DataSet",
    "Digits",
    "FlowPairs",
    "FlowScenes",
    "Glue",
    "Idx",
    "ImageFolder",
    "Kinetics",
    "SensorStreams",
    "Shapes",
    "Shards",
    "SpikeTrains",
    "SpokenDigits",
    "StarCraft",
    "Table",
    "Texts",
    "WeatherLeads",
]
