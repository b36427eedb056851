"""Data sets, one file each."""

from perceivers.data.arrays import Arrays
from perceivers.data.dataset import DataSet
from perceivers.data.digits import Digits
from perceivers.data.table import Table

DATASETS = (Digits, Arrays, Table)
"""Every data set that a recipe file may name, by its field `kind`."""

__all__ = ["DATASETS", "Arrays", "DataSet", "Digits", "Table"]
