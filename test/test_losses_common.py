import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from training.losses import detection_loss, joint_means, sample_labels, sample_map


def test_sample_map_reads_pixels_at_any_stride():
    image = torch.rand(1, 2, 8, 12, dtype=torch.float64)
    points = torch.tensor([[[0.0, 0], [11, 7], [3, 2], [3.5, 2.25]]], dtype=torch.float64)
    samples = sample_map(image, points, (8, 12))
    assert samples.shape == (1, 4, 2)
    torch.testing.assert_close(samples[0, :3], torch.stack([image[0, :, 0, 0], image[0, :, 7, 11], image[0, :, 2, 3]]))
    between = 0.75 * image[0, :, 2, 3:5].mean(1) + 0.25 * image[0, :, 3, 3:5].mean(1)
    torch.testing.assert_close(samples[0, 3], between)
    # At stride 4 the centre of a cell is pixel 4 k + 1.5.
    coarse = torch.rand(1, 2, 2, 3, dtype=torch.float64)
    centre = torch.tensor([[[5.5, 1.5]]], dtype=torch.float64)
    torch.testing.assert_close(sample_map(coarse, centre, (8, 12))[0, 0], coarse[0, :, 0, 1])


def test_sampling_at_nan_keeps_gradients_finite():
    dense = torch.rand(1, 2, 4, 4, requires_grad=True)
    sample_map(dense, torch.full((1, 3, 2), torch.nan), (16, 16)).sum().backward()
    assert dense.grad.isfinite().all()


def test_sample_labels():
    labels = torch.arange(1, 13).reshape(1, 3, 4)
    points = torch.tensor([[[0.0, 0], [2.6, 1.4], [3, 2], [-0.6, 0], [0, 2.6], [torch.nan, 0]]])
    assert sample_labels(labels, points).tolist() == [[1, 8, 12, 0, 0, 0]]


LOGITS = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
LABELS = (torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(1)) > 0.8).float()
FLAGS = torch.tensor([True, True, False, True])


def _rank(rank, address, queue):
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    half = slice(2 * rank, 2 * rank + 2)
    logits = LOGITS[half].clone().requires_grad_()
    with joint_means():
        detection_loss(logits, LABELS[half], has_labels=FLAGS[half]).backward()
    queue.put((rank, (logits.grad / 2).numpy()))  # as DDP averages over two ranks
    dist.barrier()
    dist.destroy_process_group()


def test_joint_means_give_the_gradient_of_the_joint_batch(tmp_path):
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=_rank, args=(rank, tmp_path / "rendezvous", queue)) for rank in range(2)]
    for process in processes:
        process.start()
    gradients = dict(queue.get() for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    logits = LOGITS.clone().requires_grad_()
    detection_loss(logits, LABELS, has_labels=FLAGS).backward()
    joint = torch.cat([torch.from_numpy(gradients[0]), torch.from_numpy(gradients[1])])
    torch.testing.assert_close(joint, logits.grad)


def test_joint_means_without_processes_change_nothing():
    alone = detection_loss(LOGITS, LABELS, has_labels=FLAGS)
    with joint_means():
        assert float(detection_loss(LOGITS, LABELS, has_labels=FLAGS)) == pytest.approx(float(alone))
