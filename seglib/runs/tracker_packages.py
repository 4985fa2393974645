"""Whether the trackers that a run asks for are installed, known without importing them. They are optional."""

import importlib.util
import os
from collections.abc import Iterable

_PACKAGES = {  # what pip installs, in the version that was tested, and the modules that must be there
    "tensorboard": ("tensorboard==2.21.0", ("tensorboard",)),
    "wandb": ("wandb==0.31.0", ("wandb",)),
    "mlflow": ("mlflow==3.17.2", ("mlflow",)),
}
_DATABASE = ("sqlalchemy", "alembic")  # what mlflow-skinny lacks; a server has them itself


def refuse_missing(names: Iterable[str]) -> str:
    """Say which trackers are not installed and how to install them, "" where all are; nothing is imported."""
    missing = [name for name in names if not all(map(_is_installed, _list_modules(name)))]
    packages = " ".join(_PACKAGES[name][0] for name in missing)
    return f"track: {' and '.join(missing)} must be installed first: pip install {packages}" if missing else ""


def _list_modules(name: str) -> tuple[str, ...]:
    local = name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI")
    return _PACKAGES[name][1] + (_DATABASE if local else ())


def _is_installed(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # without one it is a folder of that name, such as ./wandb
