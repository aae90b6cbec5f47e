"""The models and accelerators that are known by name."""

from __future__ import annotations

import json
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from daemon.advice.fit import Accelerator
from daemon.advice.footprint import Model, ModelError, read


@cache
def _shelf(file: str) -> dict[str, dict[str, Any]]:
    text = resources.files("daemon.advice").joinpath(file).read_text("utf-8")
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return found


def model_names() -> tuple[str, ...]:
    return tuple(_shelf("models.yaml"))


def accelerator_names() -> tuple[str, ...]:
    return tuple(_shelf("accelerators.yaml"))


def model(name: str) -> Model:
    """A model by its name, a vendor prefix or "-instruct" forgiven. Raises ModelError with the nearest names."""
    known = _shelf("models.yaml")
    plain = name.lower().rsplit("/", 1)[-1].removeprefix("meta-").replace("_", "-")
    for ending in ("-hf", "-instruct", "-chat", "-it", "-v0.3"):
        plain = plain.removesuffix(ending)
    if plain not in known:
        raise ModelError(
            f"model {name!r} is not known{_near(plain, known)}; give --hf-config with its config.json, or one of: "
            + ", ".join(known)
        )
    return read(plain, known[plain])


def counted(name: str) -> float:
    """Parameters of a known model as its vendor counts them."""
    return float(_shelf("models.yaml")[name]["billions"]) * 1e9


def model_of_file(path: Path) -> Model:
    """A model from a config.json. Raises ModelError."""
    try:
        tree = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(
            f"{path} is not JSON: {error}; give the config.json that lies beside the weights"
        ) from error
    if not isinstance(tree, dict):
        raise ModelError(f"{path} holds a {type(tree).__name__}; the config.json of a model is an object")
    return read(str(tree.get("_name_or_path") or path.parent.name or path.name), tree)


def accelerator(name: str) -> Accelerator:
    """By its name here, or by what an exporter calls it ("NVIDIA H100 80GB HBM3"). Raises ModelError."""
    known = _shelf("accelerators.yaml")
    key = name.lower()
    if key not in known:
        matches = [k for k, tree in known.items() for alias in tree["names"] if alias.lower() in key]
        if not matches:
            raise ModelError(f"GPU {name!r} is not known{_near(key, known)}; known are: {', '.join(known)}")
        # "NVIDIA A100 ..." must not be taken for an A10: the longest name that is contained is meant.
        key = max(matches, key=lambda k: max(len(a) for a in known[k]["names"] if a.lower() in name.lower()))
    tree = dict(known[key])
    return Accelerator(name=key, names=tuple(tree.pop("names")), **{k: float(v) for k, v in tree.items()})


def _near(name: str, known: dict[str, dict[str, Any]]) -> str:
    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""
