"""scfeat: the network of SCFeat (arXiv 2212.07047), descriptors and a detector learned from camera poses alone.

- `F2RBackbone`, section III-B: feature-fusion ResUNet, a ResNet encoder to 1/16 and a decoder to 1/4 whose three levels
  are fused into one descriptor map.
- `CouplingBridgeNorm`, section III-C: position-wise and channel-wise normalisation, coupled by two learned weights.
- `DetectionHead`, section III-D: a score map from the normalised map, the stem's features and the image, gated by
  their peakiness.

`Scfeat.renames` maps the names of the authors' two checkpoints, `backbone.pth` and `localheader.pth`, to ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfeat_core.errors import EngineError, WeightsError
from samfeat_core.models import MODELS, DenseFeatures
from samfeat_core.weights import load_state, rename

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Channels of the encoder at 1/4, 1/8 and 1/16, and of the decoder at 1/4 and 1/8. The paper's are those of resnet50;
# the others are for small machines, where the paper's decoder would be most of the work.
ENCODERS = {
    "resnet18": (64, 128, 256, 128, 256),
    "resnet34": (64, 128, 256, 128, 256),
    "resnet50": (256, 512, 1024, 256, 512),
}
STEM = 64
DIM = MODELS["scfeat"].descriptor_dim
GROUPS = 32


class Maps(NamedTuple):
    """What the backbone gives.

    Attributes:
        descriptors: (B, 128, H/4, W/4) after the coupling-bridge normalisation.
        fused: the same before it.
        stem: (B, 64, H/4, W/4) first features of the encoder, after its max-pooling.
    """

    descriptors: Tensor
    fused: Tensor
    stem: Tensor


class ConvBlock(nn.Module):
    """Convolution, group normalisation, ELU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.gn = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.gn(self.conv(x)))


class CouplingBridgeNorm(nn.Module):
    """Shared coupling-bridge normalisation of a descriptor map (section III-C).

    The convex mix, by two learned weights that start at 0.7 and 0.3, of
    - position-wise normalisation: mean and variance over the channels of each pixel, then a gain and a bias for each
      pixel from 7x7 convolutions of the channel mean;
    - channel-wise normalisation: mean and variance over the pixels of each channel (instance normalisation).
    """

    def __init__(self, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.gain = nn.Conv2d(1, 1, 7, padding=3)
        self.bias = nn.Conv2d(1, 1, 7, padding=3)
        self.position_weight = nn.Parameter(torch.tensor([0.7]))
        self.channel_weight = nn.Parameter(torch.tensor([0.3]))

    def forward(self, x: Tensor) -> Tensor:
        share = self.position_weight / (self.position_weight + self.channel_weight)
        return share * self.position_wise(x) + (1 - share) * self.channel_wise(x)

    def position_wise(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        deviation = (x.var(1, keepdim=True) + self.epsilon).sqrt()
        return (x - mean) / deviation * self.gain(mean) + self.bias(mean)

    def channel_wise(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        variance = (x - mean).square().mean((2, 3), keepdim=True)
        return (x - mean) / (variance + self.epsilon).sqrt()


class F2RBackbone(nn.Module):
    """Feature-fusion ResUNet (section III-B): normalised image (B, 3, H, W), H and W multiples of 16, to `Maps`.

    Args:
        encoder: "resnet18", "resnet34" or "resnet50".
        fusion: fuse the three decoder levels; False is the plain ResUNet of the ablation, its last level only.
        normalize: end with the coupling-bridge normalisation.
        imagenet: file with torchvision's ImageNet weights of the encoder, or None for a random start.

    Raises:
        ValueError: unknown encoder. EngineError: torchvision is not installed. WeightsError: `imagenet` is of another
            network.
    """

    def __init__(
        self,
        encoder: str = "resnet50",
        fusion: bool = True,
        normalize: bool = True,
        imagenet: str | Path | None = None,
    ) -> None:
        super().__init__()
        resnet = build_resnet(encoder, imagenet)
        c4, c8, c16, d4, d8 = ENCODERS[encoder]
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, nn.ReLU(inplace=True), resnet.maxpool)
        self.level4, self.level8, self.level16 = resnet.layer1, resnet.layer2, resnet.layer3
        self.up8, self.merge8 = ConvBlock(c16, d8, 3), ConvBlock(c8 + d8, d8, 3)
        self.up4, self.merge4 = ConvBlock(d8, d4, 3), ConvBlock(c4 + d4, d4, 3)
        self.side4 = ConvBlock(d4, DIM, 1)
        self.fusion = fusion
        if fusion:
            self.side8, self.side16 = ConvBlock(d8, DIM, 3), ConvBlock(c16, DIM, 3)
            self.fuse = nn.Conv2d(3 * DIM, DIM, 1)
        self.norm: nn.Module = CouplingBridgeNorm() if normalize else nn.Identity()

    def forward(self, image: Tensor) -> Maps:
        stem = self.stem(image)
        f4 = self.level4(stem)
        f8 = self.level8(f4)
        f16 = self.level16(f8)
        d8 = self.merge8(torch.cat([self.up8(double(f16)), f8], 1))
        d4 = self.merge4(torch.cat([self.up4(double(d8)), f4], 1))
        x = self.side4(d4)
        if self.fusion:
            x = self.fuse(torch.cat([x, self.side8(resize(d8, x)), self.side16(resize(f16, x))], 1))
        return Maps(self.norm(x), x, stem)


class DetectionHead(nn.Module):
    """Score map from the backbone's maps and the image (section III-D).

    Args:
        peakiness: gate inputs and output with `peakiness`; False is the ablation.
    """

    def __init__(self, peakiness: bool = True) -> None:
        super().__init__()
        self.peakiness = peakiness
        self.mix = nn.Conv2d(DIM + STEM, DIM + STEM, 3, padding=1)
        self.image = nn.Conv2d(3, 64, 3, padding=1)
        self.join = nn.Conv2d(DIM + STEM + 64, 128, 3, padding=1)
        self.score = nn.Conv2d(128, 1, 1)
        self.prelu = nn.PReLU()

    def forward(self, maps: Maps, image: Tensor) -> Tensor:
        """(B, 1, H, W) non-negative scores. No gradient flows into `maps`: detection does not shape descriptors."""
        features = torch.cat([maps.descriptors, maps.stem], 1).detach()
        gates = (peakiness(features), peakiness(image)) if self.peakiness else None
        x, y = features, image
        if gates is not None:
            x, y = x * gates[0], y * gates[1]
        x = resize(self.prelu(F.instance_norm(self.mix(x))), image)
        y = self.prelu(F.instance_norm(self.image(y)))
        z = self.prelu(F.instance_norm(self.join(torch.cat([x, y], 1))))
        score = F.softplus(F.instance_norm(self.score(z)))
        return score if gates is None else score * resize(gates[0], image) * gates[1]


class Scfeat(nn.Module):
    """RGB (B, 3, H, W) in [0, 1] -> `DenseFeatures`; H and W multiples of 16, descriptors at 1/4.

    The score, a product of softplus terms, serves as the logit: its sigmoid is the probability that training's
    sampling accepts the keypoint. So scores begin at 0.5, and the authors' threshold of 1 on the product is 0.731.

    Args:
        encoder, fusion, normalize, imagenet: see `F2RBackbone`. peakiness: see `DetectionHead`.
        raw: descriptors from the map before the coupling-bridge normalisation. The authors train with the normalised
            map and extract from this one; so do their weights here. Ours are used as they are trained.

    Attributes:
        with_detection: False leaves the detection head out and gives a score of zeros, for training the descriptors.
    """

    spec = MODELS["scfeat"]
    optional_tensors = ("head.with_peakiness",)
    renames = {
        "backbone.firstconv": "backbone.stem.0",
        "backbone.firstbn": "backbone.stem.1",
        "backbone.layer1": "backbone.level4",
        "backbone.layer2": "backbone.level8",
        "backbone.layer3": "backbone.level16",
        "backbone.upconv3.conv": "backbone.up8",
        "backbone.iconv3": "backbone.merge8",
        "backbone.upconv2.conv": "backbone.up4",
        "backbone.iconv2": "backbone.merge4",
        "backbone.side1": "backbone.side4",
        "backbone.side2.conv": "backbone.side8",
        "backbone.side3.conv": "backbone.side16",
        "backbone.fusion_conv": "backbone.fuse",
        "backbone.fusion_pn.conv1": "backbone.norm.gain",
        "backbone.fusion_pn.conv2": "backbone.norm.bias",
        "backbone.fuse_weight_fusion_1": "backbone.norm.position_weight",
        "backbone.fuse_weight_fusion_2": "backbone.norm.channel_weight",
        "localheader.conv1": "head.mix",
        "localheader.convimg": "head.image",
        "localheader.conv2": "head.join",
        "localheader.conv3": "head.score",
        "localheader.relu": "head.prelu",
    }

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: str = "resnet50",
        fusion: bool = True,
        normalize: bool = True,
        peakiness: bool = True,
        imagenet: str | Path | None = None,
        raw: bool = False,
    ) -> None:
        super().__init__()
        self.raw = raw
        self.backbone = F2RBackbone(encoder, fusion, normalize, imagenet)
        self.head = DetectionHead(peakiness)
        # Peakiness has no parameters: this lets `options_of` see from a weights file alone how it was trained.
        self.head.register_buffer("with_peakiness", torch.tensor(peakiness))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.with_detection = True

    def forward(self, image: Tensor) -> DenseFeatures:
        image = (image - self.mean) / self.std
        maps = self.backbone(image)
        score = self.head(maps, image) if self.with_detection else torch.zeros_like(image[:, :1])
        return DenseFeatures(score, maps.fused if self.raw else maps.descriptors)

    @classmethod
    def options_of(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The constructor's options that a state_dict, ours or the authors', was trained with."""
        names = {rename(name, cls.renames) for name in state}
        level16 = {name.split(".")[2] for name in names if name.startswith("backbone.level16.")}
        if any(name.startswith("backbone.level16.0.conv3.") for name in names):
            encoder = "resnet50"
        else:
            encoder = "resnet34" if len(level16) > 2 else "resnet18"
        return {
            "encoder": encoder,
            "fusion": any(name.startswith("backbone.fuse.") for name in names),
            "normalize": any(name.startswith("backbone.norm.") for name in names),
            "peakiness": bool(state.get("head.with_peakiness", True)),
            "raw": any(name.startswith("backbone.firstconv.") for name in state),
        }


def peakiness(x: Tensor) -> Tensor:
    """(B, 1, H, W) how much each position of (B, C, H, W) stands out, in its surroundings and among its channels.

    The maximum over channels of softplus(x - mean of 3x3) * softplus(x - mean of channels), after division by the
    sample's maximum. Where that is below 1, as in a dim image, the sample is left as it is: a division by nearly
    nothing would blow up what is below the mean, and one by a negative number would turn peaks into pits.
    """
    x = x / x.amax((1, 2, 3), keepdim=True).clamp(min=1)
    local = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    return (F.softplus(x - local) * F.softplus(x - x.mean(1, keepdim=True))).amax(1, keepdim=True)


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, half-pixel centres, to the height and width of `like`."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def double(x: Tensor) -> Tensor:
    """Twice the size, corner pixels kept in the corners, as the authors' decoder does."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


def build_resnet(encoder: str, imagenet: str | Path | None) -> Any:
    """torchvision's ResNet, imported here so that only who runs scfeat needs torchvision."""
    if encoder not in ENCODERS:
        raise ValueError(f"scfeat: unknown encoder {encoder!r}, expected one of {', '.join(ENCODERS)}")
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise EngineError(f"the model scfeat needs torchvision, which cannot be imported ({error})") from error
    resnet = getattr(models, encoder)(weights=None)
    if imagenet is not None:
        state = {name: tensor for name, tensor in load_state(imagenet).items() if not name.startswith("fc.")}
        try:
            missing = [n for n in resnet.load_state_dict(state, strict=False).missing_keys if not n.startswith("fc.")]
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise WeightsError(f"{imagenet}: not ImageNet weights of {encoder} ({reason})") from error
        if missing:
            raise WeightsError(f"{imagenet}: not ImageNet weights of {encoder}, {len(missing)} tensors are missing")
    return resnet
