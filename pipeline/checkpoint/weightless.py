"""A model of mlx-lm with lazy weights, of which only chosen files are really there.

mlx-lm's own `load_model` does the work (classes, sanitize, every kind of quantization, strict check
of names and shapes), on a folder in which absent weight files are stubs.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx
from mlx_lm.utils import _get_classes, load_model

from pipeline.checkpoint.containment import inside
from pipeline.checkpoint.header import Header, Stub
from pipeline.errors import CheckpointError, UnsupportedModel

Config: TypeAlias = dict[str, Any]
Model: TypeAlias = Any  # an mlx.nn.Module of mlx-lm
Classes: TypeAlias = tuple[Any, Any]  # of a model and of its arguments

# What code of an architecture raises over a config that it can't digest.
CONFIG_FAULTS = (KeyError, TypeError, AttributeError, IndexError, AssertionError, ArithmeticError)

# What a file of Python may raise when it is run; SystemExit is how mlx-lm's olmo reports a missing package.
CODE_FAULTS = (
    *CONFIG_FAULTS,
    ImportError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    SystemExit,
    ValueError,
)

_DETAIL = 300  # characters of a library's message that are passed on


@dataclass(frozen=True)
class LazyModel:
    """`tensors`: as in the checkpoint, before `sanitize`; `model`: its parameters are made of them."""

    model: Model
    tensors: Mapping[str, mx.array]


class WeightsNeeded(CheckpointError):
    """The architecture looks at values of weights while the model is built, so that stubs do not do."""


def model_classes(path: Path, config: Config, trust_remote_code: bool) -> Classes:
    """(model class, arguments class) for `config`, as mlx-lm finds them.

    Raises UnsupportedModel when there are none, or when they are code that may not run.
    """
    file = config.get("model_file")
    if file is not None:
        return _custom_classes(path, str(file), trust_remote_code)
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{path / 'config.json'} has no model_type.")
    about = f"{path / 'config.json'} has model_type {config['model_type']!r}, which"
    try:
        return _get_classes(config)  # type: ignore[no-any-return]
    except ValueError as error:
        missing = _missing_package(error)
        if missing:
            reason = f"needs the Python package {missing}, which is not installed"
        else:
            reason = "this version of mlx-lm does not support"
        raise UnsupportedModel(f"{about} {reason}.") from error
    except SystemExit as error:
        raise UnsupportedModel(
            f"{about} needs a Python package that is not installed; mlx-lm names it above."
        ) from error


def _missing_package(error: ValueError) -> str:
    """What mlx-lm could not import for a model that it has; else nothing."""
    cause = error.__context__  # older versions of mlx-lm do not name it as the cause
    name = cause.name if isinstance(cause, ImportError) else None
    return "" if name is None or name.startswith("mlx_lm.models.") else name


def _custom_classes(path: Path, file: str, trusted: bool) -> Classes:
    if not trusted:
        raise UnsupportedModel(
            f"{path / 'config.json'} wants to run its own code ({file}); "
            "set trust_remote_code for this model if you trust it."
        )
    code = inside(path, file)
    spec = importlib.util.spec_from_file_location("custom_model", code)
    if spec is None or spec.loader is None or not code.is_file():
        raise CheckpointError(f"{path / 'config.json'} names {file}, which is missing.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.Model, module.ModelArgs
    except CODE_FAULTS as error:
        detail = f"{type(error).__name__}: {error}"[:_DETAIL]
        raise UnsupportedModel(f"{code} can't be used as a model ({detail}).") from error


def build(
    path: Path,
    headers: Mapping[str, Header],
    present: Mapping[str, Path],
    classes: Classes,
) -> LazyModel:
    """The whole model, nothing of it evaluated.  Weights of files not in `present` raise when they are.

    `classes`: what `model_classes` answered.  Raises CheckpointError when the weights do not match
    the architecture, WeightsNeeded.
    """
    model_class, arguments = classes
    tensors: dict[str, mx.array] = {}
    with _view(path, headers, present) as (folder, seal):

        def opened(config: Config) -> tuple[Callable[[Any], Model], Any]:
            seal()  # mlx-lm asks for the classes between opening the weights and `sanitize`
            return lambda values: _recording(model_class(values), tensors), arguments

        try:
            # With a model_file it would not ask.
            model, _ = load_model(
                folder, lazy=True, model_config={"model_file": None}, get_model_classes=opened
            )
        except CONFIG_FAULTS as error:
            detail = f"{type(error).__name__}: {error}"[:_DETAIL]
            raise CheckpointError(
                f"{path / 'config.json'} does not describe a model that mlx-lm can build ({detail})."
            ) from error
        except ValueError as error:
            detail = " ".join(str(error).split())[:_DETAIL].rstrip(".")
            raise CheckpointError(
                f"The weights in {path} do not match its config.json: {detail}."
            ) from error
        except RuntimeError as error:
            raise WeightsNeeded(f"The weights in {path} can't be read: {error}.") from error
    return LazyModel(model, tensors)


def _recording(model: Model, tensors: dict[str, mx.array]) -> Model:
    """`model`, noting in `tensors` what its `sanitize` is given, once."""
    sanitize = getattr(model, "sanitize", None)

    def record(weights: dict[str, mx.array]) -> dict[str, mx.array]:
        tensors.update(weights)
        del model.sanitize  # the instance's; the class's is visible again
        return sanitize(weights) if sanitize else weights

    model.sanitize = record
    return model


@contextmanager
def _view(
    path: Path, headers: Mapping[str, Header], present: Mapping[str, Path]
) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder that looks like the whole model, and a function that takes the data away from its stubs."""
    with tempfile.TemporaryDirectory(prefix="mlx-cluster-") as name:
        folder = Path(name)
        for file in path.glob("*.json"):
            (folder / file.name).symlink_to(file.resolve())
        stubs = []
        for file_name, header in headers.items():
            if file_name in present:
                (folder / file_name).symlink_to(present[file_name].resolve())
            else:
                stubs.append(Stub(folder / file_name, header))

        def seal() -> None:
            for stub in stubs:
                stub.seal()

        yield folder, seal
