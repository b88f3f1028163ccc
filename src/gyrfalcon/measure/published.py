"""Figures that others published for real weights, shipped as published.json. A model is recognised by
its shape and number of parameters, which instruct and fine-tuned versions share with their base.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from gyrfalcon.config import ModelConfig
from gyrfalcon.files.json_fields import Fields
from gyrfalcon.measure.result import num_parameters

GUIDE = "the guide, "  # what its sources begin with
GUIDE_MODEL = "falcon-40b"
Counts = Mapping[str, tuple[int, int]]  # name → right, total


@dataclass(frozen=True, slots=True)
class MMLUFigure:
    """One published MMLU result; `right` is None where only a rounded accuracy is known."""

    source: str
    protocol: str
    split: str
    accuracy: float
    right: int | None
    total: int
    subjects: Counts
    categories: Counts


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """Another engine's output for one prompt: the log-probabilities of its tokens from the second
    on, and the greedy continuation with those of its tokens.
    """

    source: str
    prompt_ids: tuple[int, ...]
    prompt_logprobs: tuple[float, ...]
    output_ids: tuple[int, ...]
    output_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PublishedFigures:
    """What others published of one model."""

    name: str
    mmlu: tuple[MMLUFigure, ...]
    tokens: TokenFigures | None


def known(config: ModelConfig) -> PublishedFigures | None:
    """The published figures of the model with this shape; None when there are none."""
    facts = config.facts()
    num_tied = num_parameters(replace(config, tied=True))
    for model in _models():
        shape = {name: facts[name] for name in model["shape"]}
        if shape == model["shape"] and num_tied == model["parameters"]:
            return _figures_of(model)
    return None


def kind_of(facts: Mapping[str, object], parameters: int) -> str:
    """The name of the published model that a result is of (falcon-40b), else its size. facts: the
    config in our words.
    """
    for model in _models():
        shape, tied = model["shape"], model["parameters"]
        head = shape["vocab_size"] * shape["hidden_size"]
        if parameters in (tied, tied + head) and shape.items() <= facts.items():
            return str(model["name"])
    return f"a model of {parameters:,} parameters"


def model_of(document: Mapping[str, object], path: Path) -> tuple[str, str]:
    """The name and kind_of() of the model in a result's document, read from the file `path`."""
    model = Fields(document, str(path)).inside("model")
    kind = kind_of(model.inside("config").raw, model.positive("parameters"))
    return model.need(str, "name"), kind


def models_with_mmlu() -> list[str]:
    """The names of the models with MMLU figures."""
    return [model["name"] for model in _models() if model["mmlu"]]


def guide_mmlu() -> list[MMLUFigure]:
    """The guide's own results, of GUIDE_MODEL on two platforms."""
    figures = [figure for model in _models() for figure in _figures_of(model).mmlu]
    return [figure for figure in figures if figure.source.startswith(GUIDE)]


def _models() -> list[dict[str, Any]]:
    text = resources.files(__package__).joinpath("published.json").read_text("utf-8")
    models: list[dict[str, Any]] = json.loads(text)["models"]
    return models


def _figures_of(model: Mapping[str, Any]) -> PublishedFigures:
    tokens = model.get("tokens")
    return PublishedFigures(
        model["name"],
        tuple(map(_mmlu_figure, model["mmlu"])),
        None if tokens is None else _token_figures(tokens),
    )


def _token_figures(raw: Mapping[str, Any]) -> TokenFigures:
    names = ("prompt_ids", "prompt_logprobs", "output_ids", "output_logprobs")
    return TokenFigures(raw["source"], *(tuple(raw[name]) for name in names))


def _mmlu_figure(raw: Mapping[str, object]) -> MMLUFigure:
    right, total = raw.get("right"), raw["total"]
    assert isinstance(total, int)
    accuracy = right / total if isinstance(right, int) else raw["accuracy"]
    assert isinstance(accuracy, float)
    return MMLUFigure(
        source=str(raw["source"]),
        protocol=str(raw["protocol"]),
        split=str(raw["split"]),
        accuracy=accuracy,
        right=right if isinstance(right, int) else None,
        total=total,
        subjects=_counts(raw.get("subjects", {})),
        categories=_counts(raw.get("categories", {})),
    )


def _counts(raw: object) -> Counts:
    assert isinstance(raw, dict)
    return {name: (right, total) for name, (right, total) in raw.items()}
