"""The networks, and the one output contract that they share.

`MODELS` describes each network without importing torch, so that a node whose engine is already built
for another runtime knows all it needs; `build_network` imports the network's module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from samfeat_core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


class DenseFeatures(NamedTuple):
    """What every network answers for images (B, C, H, W) in [0, 1].

    Attributes:
        score: (B, 1, H, W) keypoint logits; their sigmoid is the score.
        descriptors: (B, C, H/s, W/s), not normalised; C = D unless there is a `project` or a `strength`.
        weight: (B, 1, H/s, W/s) positive descriptor weight, or None.
        edge: (B, 1, h, w) edge logits, or None where the network has no such head or does not need it.
        distill: (B, 256, H/8, W/8) feature that the teacher supervises, in training mode only.
        project: linear layer from C to D channels, applied to the sampled rows (..., C) of `descriptors` and not to
            the whole map: it commutes with bilinear sampling, and there are fewer rows than pixels. None = C is D.
        strength: (b, a) of an extra descriptor coordinate, exp(b + a * score logit), which is appended to the unit
            row before the row is normalised again. It pulls points that have no counterpart towards the strongest
            keypoints, so that they stop forming wrong mutual matches. None = no such coordinate.
    """

    score: Tensor
    descriptors: Tensor
    weight: Tensor | None = None
    edge: Tensor | None = None
    distill: Tensor | None = None
    project: Callable[[Tensor], Tensor] | None = None
    strength: tuple[float, float] | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> DenseFeatures:
        """The same with every tensor changed."""
        parts = {
            name: part
            for name, part in self._asdict().items()
            if part is not None and name not in ("project", "strength")
        }
        return self._replace(**{name: change(part) for name, part in parts.items()})  # type: ignore[arg-type]

    def describe_without_strength(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Descriptors without the strength coordinate: unit rows (B, K, .) float32.

        Args:
            points: (B, K, 2) pixels x, y of the image.
            size: (width, height) of the image.
        """
        from torch.nn.functional import normalize

        from samfeat_core.detection import sample

        rows = sample(self.descriptors.float(), points, size)
        return normalize(rows if self.project is None else self.project(rows), dim=-1)

    def describe(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Descriptors with the strength coordinate where the network has one: unit rows (B, K, D) float32.

        Args:
            points: (B, K, 2) pixels x, y of the image.
            size: (width, height) of the image.
        """
        import torch

        from samfeat_core.detection import sample

        rows = self.describe_without_strength(points, size)
        if self.strength is None:
            return rows
        offset, power = self.strength
        logits = sample(self.score.detach().float(), points, size)  # what a point is worth, the detector's losses say
        return torch.nn.functional.normalize(torch.cat((rows, (offset + power * logits).exp()), -1), dim=-1)


class Detection(NamedTuple):
    """How peaks of the score map become keypoints.

    Attributes:
        nms_radius: in pixels.
        threshold: the least sigmoid score.
        nms_passes: of `samfeat_core.detection.suppress`: 1 keeps local maxima, more come near to a greedy suppression.
        refine: keypoints lie between pixels.
    """

    nms_radius: int
    threshold: float
    nms_passes: int = 1
    refine: bool = True


@dataclass(frozen=True)
class ModelSpec:
    """A network's constants, known without building it.

    Attributes:
        channels: 1 (grey) or 3 (RGB) input channels.
        stride_multiple: height and width of the network's input are multiples of this.
        descriptor_dim: D.
        usual: detection that suits the weights that our training makes.
        weighted: descriptors carry an attention weight.
        authors: detection that suits the checkpoint of the network's authors, if there is one.
    """

    name: str
    class_path: str
    channels: int
    stride_multiple: int
    descriptor_dim: int
    usual: Detection
    weighted: bool = False
    authors: Detection | None = None

    def detection(self, weights: Path) -> Detection:
        """What suits a weights file: ours are safetensors, the authors' are not."""
        return self.usual if self.authors is None or weights.suffix == ".safetensors" else self.authors


MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec("samfeat-nano", "samfeat_core.models.nano:SamfeatNano", 1, 32, 64, Detection(1, 0.005)),
        ModelSpec(
            "samfeat",
            "samfeat_core.models.samfeat:Samfeat",
            3,
            8,
            128,
            Detection(2, 0.005),
            weighted=True,
            authors=Detection(4, 0.9, nms_passes=8, refine=False),
        ),
        ModelSpec(
            "scfeat",
            "samfeat_core.models.scfeat:Scfeat",
            3,
            16,
            128,
            Detection(4, 0.0),
            authors=Detection(1, 0.731),  # its scores are the sigmoids of numbers from 0 on; theirs is 1
        ),
    )
}


def model_spec(name: str) -> ModelSpec:
    """The spec of a model by name; UsageError, a ValueError, lists the names there are."""
    if name not in MODELS:
        raise UsageError(f"unknown model {name!r}: expected one of {model_names()}")
    return MODELS[name]


def model_names() -> str:
    """The names of all models, for texts."""
    return ", ".join(MODELS)


def find_class(name: str) -> type[nn.Module]:
    """The network class of that name (imports torch)."""
    module, cls = model_spec(name).class_path.split(":")
    return getattr(import_module(module), cls)


def build_network(name: str, **options: object) -> nn.Module:
    """The randomly initialised network of that name (imports torch)."""
    return find_class(name)(**options)
