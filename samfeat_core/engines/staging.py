"""The way of an image onto a device and of its features back, with one wait for each image.

What crosses to a GPU lies in pinned memory on the host's side, from which copies run beside the program. The mask goes
up only when it is another one. The features come down as one tensor in one copy, and one event says that they are
there. On the CPU the same code copies within its memory.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from samfeat_core.detection import ExtractionGraph
from samfeat_core.engines import Job, RawFeatures


class PackedGraph(nn.Module):
    """An extraction graph whose outputs are the columns of one tensor: x, y, score, weight, descriptor."""

    def __init__(self, graph: ExtractionGraph) -> None:
        super().__init__()
        self.extraction = graph

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """(K, 4 + D) float32; see `ExtractionGraph` for the arguments."""
        keypoints, scores, descriptors, weights = self.extraction(image, mask)
        return torch.cat((keypoints, scores[:, None], weights[:, None], descriptors), 1)


def unpack(rows: np.ndarray) -> RawFeatures:
    """The features in the rows of a `PackedGraph`, as arrays of their own."""
    return rows[:, :2].copy(), rows[:, 2].copy(), rows[:, 4:].copy(), rows[:, 3].copy()


class StagedEngine:
    """An engine that runs a `PackedGraph` on tensors which stay where they are.

    Attributes:
        inputs: image (1, C, H, W) and mask (1, 1, H, W) uint8 on the device.
    """

    def __init__(self, job: Job) -> None:
        on_gpu = job.device != "cpu"
        sizes = ((1, channels, job.height, job.width) for channels in (job.spec.channels, 1))
        self.staged = [torch.ones(size, dtype=torch.uint8, pin_memory=on_gpu) for size in sizes]
        self.inputs = tuple(tensor.to(job.device, copy=True) for tensor in self.staged)
        self.rows = torch.empty(0)
        self.ready = torch.cuda.Event() if on_gpu else None

    def run(self) -> Tensor:
        """The rows of the graph for `inputs`, on the device."""
        raise NotImplementedError

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, mask: np.ndarray) -> RawFeatures:
        self._put(0, image[None])
        if not np.array_equal(self.staged[1].numpy()[0, 0], mask):
            self._put(1, mask[None, None])
        return unpack(self._fetch(self.run()))

    def _put(self, i: int, array: np.ndarray) -> None:
        """Nothing waits: the last image's features, which came after what was staged for it, have been waited for."""
        np.copyto(self.staged[i].numpy(), array)
        self.inputs[i].copy_(self.staged[i], non_blocking=True)

    def _fetch(self, rows: Tensor) -> np.ndarray:
        """Rows on the host, until the next call."""
        if self.rows.shape != rows.shape:
            self.rows = torch.empty(rows.shape, pin_memory=self.ready is not None)
        self.rows.copy_(rows, non_blocking=True)
        if self.ready is not None:
            self.ready.record(torch.cuda.current_stream(rows.device))
            self.ready.synchronize()
        return self.rows.numpy()
