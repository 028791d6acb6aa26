"""Callbacks that record trainings by Lightning and by the Hugging Face Trainer.

`LightningRecorder` needs lightning, `TrainerRecorder` needs transformers and accelerate. Each
framework is imported when its callback is first used.
"""

from importlib import import_module
from typing import Any

_HOME = {"LightningRecorder": "lightning", "TrainerRecorder": "huggingface"}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'memlens.tracking.integrations' has no attribute {name!r}")
    return getattr(import_module(f"memlens.tracking.integrations.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
