"""Data sets, one file each."""

from perceivers.data.arrays import Arrays
from perceivers.data.dataset import DataSet
from perceivers.data.digits import Digits
from perceivers.data.flow_pairs import FlowPairs
from perceivers.data.flow_scenes import FlowScenes
from perceivers.data.shards import Shards
from perceivers.data.starcraft import StarCraft
from perceivers.data.table import Table

DATASETS = (Digits, Arrays, Table, Shards, FlowScenes, FlowPairs, StarCraft)
"""Every data set that a recipe file may name, by its field `kind`."""

__all__ = ["DATASETS", "Arrays", "DataSet", "Digits", "FlowPairs", "FlowScenes", "Shards", "StarCraft", "Table"]
