"""Figures and the mask viewer: arrays and tables in, a matplotlib Figure out. Notebooks import from here."""

import importlib

_FILES = ("plots", "pictures", "comparison", "charts")  # loaded when one of their figures is asked for


def __getattr__(name: str) -> object:
    for file in _FILES if name.startswith(("plot_", "save_", "show_")) or name == "LiveTraining" else ():
        module = importlib.import_module(f"seglib.viz.{file}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module 'seglib.viz' has no attribute {name!r}")


def __dir__() -> list[str]:
    modules = [importlib.import_module(f"seglib.viz.{file}") for file in _FILES]
    return sorted({name for module in modules for name in dir(module) if not name.startswith("_")})
