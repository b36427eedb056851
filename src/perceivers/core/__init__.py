"""The architecture: arrays in, arrays out. Start with perceiver.py."""

from importlib import import_module, util

from perceivers.core import layers

if util.find_spec("perceivers.core.fast"):
    layers.fast = import_module("perceivers.core.fast")
