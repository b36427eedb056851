"""Modalities: the types of inputs and outputs that a model can have, one file each."""

from perceivers.modalities.events import Events
from perceivers.modalities.flow import Flow, FramePair
from perceivers.modalities.image import Image, Video
from perceivers.modalities.label import Label, Labels
from perceivers.modalities.numbers import Numbers
from perceivers.modalities.pointset import PointSet
from perceivers.modalities.probabilistic_regression import ProbabilisticRegression
from perceivers.modalities.records import Records
from perceivers.modalities.series import Audio, Series
from perceivers.modalities.spectrogram import Spectrogram
from perceivers.modalities.text import Text
from perceivers.modalities.vectors import Vectors

MODALITIES = (
    *(Image, Video, Series, Audio, Spectrogram, FramePair, Flow),
    *(PointSet, Records, Events, Text, Vectors),
    *(Label, Labels, Numbers, ProbabilisticRegression),
)
"""All modalities; a file names one by its field `kind`."""
