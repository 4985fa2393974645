"""Figures and the mask viewer: arrays and tables in, a matplotlib Figure out. Notebooks import from here."""

from seglib.viz.charts import *  # noqa: F403
from seglib.viz.comparison import *  # noqa: F403
from seglib.viz.pictures import *  # noqa: F403
from seglib.viz.plots import *  # noqa: F403

__all__ = [name for name in dir() if name.startswith(("plot_", "save_", "show_")) or name == "LiveTraining"]
