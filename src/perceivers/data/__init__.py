"""Data sets, one file each."""

from perceivers.data.arrays import Arrays
from perceivers.data.audioset import AudioSet
from perceivers.data.dataset import DataSet
from perceivers.data.digits import Digits
from perceivers.data.flow_pairs import FlowPairs
from perceivers.data.flow_scenes import FlowScenes
from perceivers.data.kinetics import Kinetics
from perceivers.data.spoken_digits import SpokenDigits
from perceivers.data.starcraft import StarCraft
from perceivers.data.table import Table

DATASETS = (Digits, Arrays, Table, FlowScenes, FlowPairs, StarCraft, SpokenDigits, Kinetics, AudioSet)
"""Every data set that a recipe file may name, by its field `kind`."""

__all__ = [
    "DATASETS",
    "Arrays",
    "AudioSet",
    "DataSet",
    "Digits",
    "FlowPairs",
    "FlowScenes",
    "Kinetics",
    "SpokenDigits",
    "StarCraft",
    "Table",
]
