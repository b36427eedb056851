"""What runs any recipe, in a folder of its own: a run. Nothing here knows a published system."""
