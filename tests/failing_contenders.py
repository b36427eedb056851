"""Contenders that cannot be measured, in a file of their own so that their processes import little."""

import os
import signal
import time

import torch

from benchmarks.measuring import available_bytes
from benchmarks.processes import Program


def asks_for_too_much(setting):
    torch.empty(available_bytes(), dtype=torch.uint8)  # more than a contender may have, less than Linux would promise
    return Program()


def sleeps(setting):
    return Program([lambda: time.sleep(0 if setting.quick else 60)])


def is_killed(setting):
    os.kill(os.getpid(), signal.SIGKILL)
