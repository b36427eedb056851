"""Kinds of structure that can go in or come out, one file each."""

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
    *(PointSet, Records, Text, Vectors),
    *(Label, Labels, Numbers, ProbabilisticRegression),
)
"""Every kind that a file may name, by its field `kind`."""
