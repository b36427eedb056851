"""The architecture: arrays in, arrays out. Start with perceiver.py."""

import importlib
import importlib.util

from perceivers.core import layers

if importlib.util.find_spec("perceivers.core.fast"):
    layers.fast = importlib.import_module("perceivers.core.fast")
