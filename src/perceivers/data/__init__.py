"""Data sets, one file each."""

from perceivers.data.arrays import Arrays
from perceivers.data.audioset import AudioSet
from perceivers.data.dataset import DataSet
from perceivers.data.digits import Digits
from perceivers.data.flow_pairs import FlowPairs
from perceivers.data.flow_scenes import FlowScenes
from perceivers.data.glue import Glue
from perceivers.data.idx import Idx
from perceivers.data.image_folder import ImageFolder
from perceivers.data.kinetics import Kinetics
from perceivers.data.shards import Shards
from perceivers.data.spoken_digits import SpokenDigits
from perceivers.data.starcraft import StarCraft
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
    | Shards
    | SpokenDigits
    | StarCraft
    | Table
    | Texts
)
"""Every data set that a recipe file may name, by its field `kind`."""

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
    "Shards",
    "SpokenDigits",
    "StarCraft",
    "Table",
    "Texts",
]
