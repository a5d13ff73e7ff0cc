"""`python benchmarks/fundamental_reward.py`: the vectorised fundamental-matrix error against a plain loop.

The loop takes, for every image pair and every random sample, eight matches, and solves the normalised 8-point
algorithm with numpy, as reference code on the CPU does. Both use the same matches and the same number of samples.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import typer

from samfeat_core.two_view import fundamental_matrix
from training.scfeat.fundamental import fundamental_error


def scene(batch: int, points: int, size: tuple[int, int], noise: float = 0.7) -> tuple[torch.Tensor, ...]:
    """points0, points1 (B, N, 2), weights (B, N, N) and F (B, 3, 3) of noisy matches of random two-view scenes."""
    generator = torch.Generator().manual_seed(0)
    K = torch.tensor([[500.0, 0, size[0] / 2], [0, 500, size[1] / 2], [0, 0, 1]], dtype=torch.float64)
    world = torch.rand(batch, points, 3, generator=generator, dtype=torch.float64) * torch.tensor([6, 4, 6.0])
    world = world + torch.tensor([-3, -2, 4.0])
    T = torch.eye(4, dtype=torch.float64).repeat(batch, 1, 1)
    T[:, :3, 3] = torch.tensor([0.5, -0.1, 0.2])
    views = [world, world + T[:, None, :3, 3]]
    pixels = [(v @ K.T)[..., :2] / v[..., 2:] for v in views]
    pixels = [(p + noise * torch.randn(p.shape, generator=generator)).float() for p in pixels]
    return (*pixels, torch.eye(points).repeat(batch, 1, 1), fundamental_matrix(K, K, T).float())


def plain_error(points0, points1, weights, truth, size, samples: int) -> list[float]:
    """The same quantity, one sample after the other."""
    rng = np.random.default_rng(0)
    x, y = (size[0] - 1) / 2, (size[1] - 1) / 2
    to_pixels = np.array([[x, 0, x], [0, y, y], [0, 0, 1]])
    errors = []
    for item in range(len(truth)):
        pairs = torch.nonzero(weights[item])
        true = to_pixels.T @ truth[item].double().numpy() @ to_pixels
        true = true / np.linalg.norm(true)
        least = np.inf
        for _ in range(samples):
            chosen = rng.choice(len(pairs), 8, replace=False)
            x0, x1 = np.ones((8, 3)), np.ones((8, 3))
            for row, pair in enumerate(chosen):
                x0[row, :2] = points0[item, pairs[pair][0]].numpy()
                x1[row, :2] = points1[item, pairs[pair][1]].numpy()
            T0, T1 = plain_normalization(x0), plain_normalization(x1)
            n0, n1 = x0 @ T0.T, x1 @ T1.T
            equations = np.zeros((8, 9))
            for row in range(8):
                for i in range(3):
                    for j in range(3):
                        equations[row, 3 * i + j] = n1[row, i] * n0[row, j]
            u, s, vh = np.linalg.svd(np.linalg.svd(equations)[2][-1].reshape(3, 3))
            estimate = to_pixels.T @ T1.T @ (u @ np.diag([s[0], s[1], 0]) @ vh) @ T0 @ to_pixels
            estimate = estimate / np.linalg.norm(estimate)
            if (estimate * true).sum() < 0:
                estimate = -estimate
            gap = np.abs(estimate - true)
            least = min(least, np.where(gap < 1, 0.5 * gap**2, gap - 0.5).sum())
        errors.append(float(np.tanh(least)))
    return errors


def plain_normalization(x: np.ndarray) -> np.ndarray:
    mean = x[:, :2].mean(0)
    scale = np.sqrt(2) / np.linalg.norm(x[:, :2] - mean, axis=1).mean()
    return np.array([[scale, 0, -scale * mean[0]], [0, scale, -scale * mean[1]], [0, 0, 1]])


def main(
    batch: int = typer.Option(8, min=1, help="Image pairs."),
    samples: int = typer.Option(100, min=1, help="8-point samples for each."),
    points: int = typer.Option(300, min=8, help="Matches for each."),
    device: str = typer.Option("cpu", help="Device of the vectorised formulation."),
    repeat: int = typer.Option(5, min=1, help="The best of this many runs counts."),
) -> None:
    """Print the time of both formulations and their ratio."""
    size = (640, 480)
    arrays = [array.to(device) for array in scene(batch, points, size)]

    def fast() -> torch.Tensor:
        return fundamental_error(*arrays, size, size, samples).cpu()

    fast()
    loop_s, plain = min((timed(lambda: plain_error(*scene(batch, points, size), size, samples)) for _ in range(2)),
                        key=lambda pair: pair[0])  # fmt: skip
    fast_s, vectorised = min((timed(fast) for _ in range(repeat)), key=lambda pair: pair[0])
    typer.echo(f"{batch} pairs x {samples} samples, {points} matches, {torch.get_num_threads()} threads, {device}")
    typer.echo(f"plain loop  {loop_s * 1e3:9.1f} ms  mean error {np.mean(plain):.4f}")
    typer.echo(f"vectorised  {fast_s * 1e3:9.1f} ms  mean error {np.mean(vectorised):.4f}")
    typer.echo(f"ratio       {loop_s / fast_s:9.1f}")


def timed(call) -> tuple[float, object]:
    begin = time.perf_counter()
    answer = call()
    return time.perf_counter() - begin, answer


if __name__ == "__main__":
    typer.run(main)
