from perceivers.runs.system import System
from perceivers.systems.leads.recipes import RECIPES

SYSTEM = System(RECIPES)
