import torch
from torch import nn

from peft_cbpt.common.processes import share_buffers


def of_one_of_two_processes(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting-point", rank=rank, world_size=2)
    norm = nn.BatchNorm2d(2)
    norm(torch.full((1, 2, 2, 2), float(rank + 1)))
    share_buffers(norm)
    torch.save(norm.running_mean, f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # or one process may wait for ever for the other, which is gone
    torch.distributed.destroy_process_group()


def test_all_processes_have_the_statistics_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(of_one_of_two_processes, (tmp_path,), nprocs=2)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), torch.full((2,), 0.1))
