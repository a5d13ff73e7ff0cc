"""samfeat: the student network of SAMFeat (arXiv 2309.16992, section 3).

The attributes carry the names of the authors' released network, oddities included (`egde_module`,
`dist_conv_fushion`, the unused `conv_det`): a checkpoint of theirs loads as it is and gives the same numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samfeat_core.models import MODELS, DenseFeatures

DISTILL_DIM = 256  # channels of the SAM image embedding
STACK = 64 + 64 + 128 + 128  # channels of the four encoder levels together


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, half-pixel centres, to the height and width of `like`."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class EdgeAttention(nn.Module):
    """Attention between the rows of every channel of an edge-weighted map, added to the map (section 3.3).

    Args:
        channels: C of the maps (B, C, H, W).
        scale_dim: the scores (H x H for each channel) are divided by the square root of this.
    """

    def __init__(self, channels: int, scale_dim: int) -> None:
        super().__init__()
        self.query_conv = nn.Conv2d(channels, channels, 1)
        self.key_conv = nn.Conv2d(channels, channels, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.scale = scale_dim**-0.5

    def forward(self, edges: Tensor, stack: Tensor) -> Tensor:
        # Scaling the query, not the product, keeps half precision in range.
        query, key, value = self.query_conv(edges) * self.scale, self.key_conv(edges), self.value_conv(edges)
        attention = torch.softmax(query @ key.transpose(-2, -1), dim=-1)
        return stack + attention @ value


class Samfeat(nn.Module):
    """RGB (B, 3, H, W) in [0, 1] -> `DenseFeatures`; H and W multiples of 8, descriptors at 1/4.

    `score` has the edge map added, as the score of a keypoint is sigmoid(score map + edge map): losses see what
    detection sees. In training mode `edge` (H/4, W/4 logits) and `distill` are given too, because each has its own
    loss; in evaluation mode the two are None.
    """

    spec = MODELS["samfeat"]

    def __init__(self) -> None:
        super().__init__()
        self.conv1a, self.conv1b = conv3(3, 64), conv3(64, 64)
        self.conv2a, self.conv2b = conv3(64, 64), conv3(64, 64)
        self.conv3a, self.conv3b = conv3(64, 128), conv3(128, 128)
        self.conv4a, self.conv4b = conv3(128, 128), conv3(128, 128)
        self.dist_conv_feat = conv3(128, DISTILL_DIM)
        self.dist_conv_fushion = conv3(DISTILL_DIM, 128)
        self.heatmap1, self.heatmap2 = conv3(64, 1), conv3(64, 1)
        self.heatmap3, self.heatmap4 = conv3(128, 1), conv3(128, 1)
        self.fuse_weight_1 = nn.Parameter(torch.tensor([0.1]))
        self.fuse_weight_2 = nn.Parameter(torch.tensor([0.2]))
        self.fuse_weight_3 = nn.Parameter(torch.tensor([0.3]))
        self.fuse_weight_4 = nn.Parameter(torch.tensor([0.4]))
        self.scalemap = conv3(1, 1)
        self.conv_des = conv3(STACK, self.spec.descriptor_dim)
        # Never used: it is in the authors' checkpoints. Frozen, or DDP would wait for its gradient.
        self.conv_det = nn.Conv2d(STACK, 1, 1).requires_grad_(False)
        self.conv_edg = nn.Conv2d(STACK, 1, 1)
        self.egde_module = EdgeAttention(STACK, 10000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> DenseFeatures:
        c1 = self._pair(image * 2 - 1, self.conv1a, self.conv1b)
        c2 = self._pair(F.max_pool2d(c1, 2), self.conv2a, self.conv2b)
        c3 = self._pair(F.max_pool2d(c2, 2), self.conv3a, self.conv3b)
        c4 = self._pair(F.max_pool2d(c3, 2), self.conv4a, self.conv4b)
        distill = self.dist_conv_feat(c4)
        c4 = c4 + self.dist_conv_fushion(distill)

        stack = torch.cat([resize(c1, c3), resize(c2, c3), c3, resize(c4, c3)], dim=1)
        edge = self.conv_edg(stack)
        edge_map = torch.sigmoid(edge)
        score = self._score(c1, c2, c3 * edge_map + c3, c4)
        score = score + resize(edge_map, score)
        attended = self.egde_module(edge_map * stack, stack)
        weight = F.softplus(self.scalemap(attended.mean(dim=1, keepdim=True)))
        descriptors = self.conv_des(attended)
        if self.training:
            return DenseFeatures(score, descriptors, weight, edge, distill)
        return DenseFeatures(score, descriptors, weight)

    @staticmethod
    def _pair(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
        return F.relu(second(F.relu(first(x))))

    def _score(self, c1: Tensor, c2: Tensor, c3: Tensor, c4: Tensor) -> Tensor:
        """(B, 1, H, W): the score maps of all levels, resized to the image and mixed by the learned scalars."""
        score = self.fuse_weight_1 * self.heatmap1(c1)
        score = score + self.fuse_weight_2 * resize(self.heatmap2(c2), score)
        score = score + self.fuse_weight_3 * resize(self.heatmap3(c3), score)
        return score + self.fuse_weight_4 * resize(self.heatmap4(c4), score)
