import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from training.samfeat.losses import detection_loss, joint_means

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
