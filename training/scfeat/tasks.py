"""SCFeat's two stages as tasks of `training.loop.trainer`, and the validation that selects the best checkpoint."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfeat_core.detection import detect
from samfeat_core.two_view import epipolar_distance
from training.data.photometric import Photometric
from training.loop.dense import plain_layout, split
from training.scfeat.epipolar import DescriptorConfig, epipolar_loss, grid_points
from training.scfeat.pairs import PoseBatch, PosedImagePair, PoseSource
from training.scfeat.reinforce import DetectorConfig, detector_loss

LIMITS = (1.0, 3.0, 5.0)  # pixels from the epipolar line at which validation counts
SCORED = 3.0


class Stage(nn.Module):
    """What both stages share: photometric change and the channels of the network.

    Attributes:
        figures: of the last step, to log.
    """

    def __init__(self, network: nn.Module, photometric: float) -> None:
        super().__init__()
        self.network = network
        if hasattr(network, "raw"):  # also of the authors' weights the normalised map is what learns
            network.raw = False  # type: ignore[assignment]
        self.photometric = Photometric(photometric)
        self.figures: dict[str, Tensor] = {}

    def images(self, batch: PoseBatch) -> Tensor:
        """(2 B, C, H, W): the first views, then the second ones."""
        with torch.autocast(batch.image0.device.type, enabled=False):  # views are made in full precision
            changed = self.photometric(torch.cat((batch.image0, batch.image1)))
        return to_channels(changed, self.network).contiguous(memory_format=torch.channels_last)


class DescriptorStage(Stage):
    """Stage 1: descriptors by the epipolar loss, both directions."""

    def __init__(self, network: nn.Module, config: DescriptorConfig) -> None:
        super().__init__(network, config.photometric)
        self.config = config
        if hasattr(network, "with_detection"):  # half of the time goes into the head, which learns nothing here
            network.with_detection = False  # type: ignore[assignment]
            network.head.requires_grad_(False)

    def forward(self, batch: PoseBatch, step: int) -> dict[str, Tensor]:
        descriptors = self.network(self.images(batch)).descriptors
        with torch.autocast(descriptors.device.type, enabled=False):  # lines are nowhere near in half precision
            return self._losses(batch, *descriptors.float().contiguous().chunk(2))

    def _losses(self, batch: PoseBatch, maps0: Tensor, maps1: Tensor) -> dict[str, Tensor]:
        size, config = batch.size, self.config
        losses, kept = [], []
        for first, second, fundamental in (
            (maps0, maps1, batch.fundamental),
            (maps1, maps0, batch.fundamental.transpose(1, 2)),
        ):
            points = grid_points(len(batch), size, config.grid, first.device)
            loss, share = epipolar_loss(first, second, points, fundamental, size, config)
            losses.append(loss)
            kept.append(share)
        self.figures = {"counted": torch.stack(kept).mean().detach()}
        return {"epipolar": torch.stack(losses).sum()}


class DetectorStage(Stage):
    """Stage 2: the detector by policy gradient, everything else frozen.

    Works for any network with `DenseFeatures`: only the parameters whose names begin with `trainable` learn.

    Raises:
        ValueError: no parameter begins with `trainable`.
    """

    def __init__(self, network: nn.Module, config: DetectorConfig, trainable: tuple[str, ...] = ("head.",)) -> None:
        super().__init__(network, config.photometric)
        self.config = config
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith(trainable))
        self.learning = [m for name, m in network.named_modules() if f"{name}.".startswith(trainable)]
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise ValueError(f"trainable is {trainable}: no parameter of {type(network).__name__} begins with that")
        self.train()

    def train(self, mode: bool = True) -> DetectorStage:
        """The frozen part stays as it is at inference: its batch statistics do not move."""
        super().train(mode)
        self.network.eval()
        for module in self.learning:
            module.train(mode)
        return self

    def forward(self, batch: PoseBatch, step: int) -> dict[str, Tensor]:
        dense = self.network(self.images(batch))
        with torch.autocast(dense.score.device.type, enabled=False):
            first, second = split(plain_layout(dense), len(batch))
            loss, self.figures = detector_loss(first, second, batch.fundamental, batch.size, self.config)
        return {"reinforce": loss}


class EpipolarValidation:
    """Share of mutual-nearest-neighbour matches near their epipolar line, on fixed pairs that training never saw.

    Args:
        pairs: spread over the given ones.
        detector: keypoints from the network's scores; False takes corners (Shi and Tomasi) of the images, so that the
            descriptors alone are judged.
        keypoints: per image.

    Returns from a call: {"epi1", "epi3", "epi5", "median", "matches", "score"}: shares within so many pixels (the
    larger of both directions), the median distance in pixels, matches per pair; the score is epi3.
    """

    def __init__(
        self,
        pairs: list[PosedImagePair],
        size: tuple[int, int],
        device: torch.device | str,
        detector: bool,
        count: int = 32,
        keypoints: int = 500,
        nms_radius: int = 4,
    ) -> None:
        if not pairs:
            raise ValueError("no image pairs to validate on: raise data.validation, or give longer sequences")
        source = PoseSource(pairs, size, device)
        chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)]
        self.batches = [source.stack([source.load(pair, np.full((2, 2), 0.5))]) for pair in chosen]
        self.detector, self.keypoints, self.nms_radius = detector, keypoints, nms_radius

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        before = getattr(network, "with_detection", None)
        if before is not None:
            network.with_detection = self.detector  # type: ignore[assignment]
        distances = [self._distances(network, batch) for batch in self.batches]
        if before is not None:
            network.with_detection = before
        every = torch.cat(distances).cpu()
        shares = {f"epi{limit:.0f}": float((every < limit).float().mean()) if len(every) else 0.0 for limit in LIMITS}
        return {
            **shares,
            "median": float(every.median()) if len(every) else math.nan,
            "matches": len(every) / len(distances),
            "score": shares[f"epi{SCORED:.0f}"],
        }

    def _distances(self, network: nn.Module, batch: PoseBatch) -> Tensor:
        (points0, rows0), (points1, rows1) = (self._extract(network, image) for image in (batch.image0, batch.image1))
        similarity = rows0 @ rows1.T
        best, back = similarity.argmax(1), similarity.argmax(0)
        mutual = back[best] == torch.arange(len(best), device=best.device)
        first, second, F01 = points0[mutual], points1[best[mutual]], batch.fundamental[0]
        return torch.maximum(epipolar_distance(first, second, F01), epipolar_distance(second, first, F01.T))

    def _extract(self, network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
        dense = network(to_channels(image, network))
        size = (image.shape[-1], image.shape[-2])
        if self.detector:
            inside = F.pad(torch.ones_like(dense.score[..., 4:-4, 4:-4]), (4, 4, 4, 4))
            points, scores = detect(dense.score.float(), inside, self.keypoints, self.nms_radius)
            points = points[:, scores[0] > 0]
        else:
            points = corners(image, self.keypoints)
        return points[0], dense.describe(points, size)[0]


def corners(image: Tensor, count: int) -> Tensor:
    """(1, N, 2) Shi-Tomasi corners of an image (1, 3, H, W), N <= count; the image's centre where there are none."""
    grey = (image[0].mean(0) * 255).byte().cpu().numpy()
    found = cv2.goodFeaturesToTrack(grey, count, 0.001, 5)
    if found is None:
        found = np.array([[[grey.shape[1] / 2, grey.shape[0] / 2]]], np.float32)
    return torch.from_numpy(found.reshape(1, -1, 2)).to(image.device)


def to_channels(images: Tensor, network: nn.Module) -> Tensor:
    """RGB images as the network takes them: as they are, or grey."""
    if network.spec.channels == 3:  # type: ignore[union-attr]
        return images
    luminance = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * luminance).sum(1, keepdim=True)
