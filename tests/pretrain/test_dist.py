"""Two ranks with half a batch each equal one rank with the whole batch."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from stages.pretrain import dist
from stages.pretrain.config import TrainConfig
from stages.pretrain.objectives import make_objective
from stages.pretrain.trainer import train

NAMES = ("alip", "clip", "siglip")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def loss_and_gradients(name: str, rank: int, world_size: int) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    objective = make_objective(name)
    model, batch = objective.tiny()
    rows = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    losses = objective.losses(model, {key: value[rows] for key, value in batch.items()})
    sum(losses.values()).backward()
    dist.average_gradients(model.parameters())
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    return float(dist.mean_over_ranks(sum(losses.values()))), gradients


def one_rank(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = {name: loss_and_gradients(name, rank, 2) for name in NAMES}
    features = torch.full((2, 3), float(rank + 1), requires_grad=True)
    gathered = dist.gather_with_grad(features)
    (gathered * torch.arange(4.0)[:, None]).sum().backward()
    found["gather"] = (gathered.detach(), features.grad)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(one_rank, (free_port(), str(folder)), nprocs=2, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_two_halves_equal_the_whole(two_ranks: list[dict], name: str) -> None:
    loss, gradients = loss_and_gradients(name, 0, 1)
    for rank in two_ranks:
        assert rank[name][0] == pytest.approx(loss, abs=1e-5)
        assert rank[name][1].keys() == gradients.keys()
        for parameter, gradient in rank[name][1].items():
            torch.testing.assert_close(gradient, gradients[parameter], atol=1e-5, rtol=0, msg=parameter)


def test_gathered_rows_come_in_rank_order_and_give_gradients_back(two_ranks: list[dict]) -> None:
    for rank, found in enumerate(two_ranks):
        gathered, gradient = found["gather"]
        assert gathered[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]
        # each of the two ranks' losses weighs this rank's rows by their place
        assert gradient[:, 0].tolist() == [2 * (2 * rank), 2 * (2 * rank + 1)]


def test_alone_there_is_one_rank() -> None:
    value = torch.arange(3.0)
    assert (dist.rank(), dist.world_size()) == (0, 1)
    assert dist.gather_with_grad(value) is value
    assert torch.equal(dist.mean_over_ranks(value), value)


def one_training(rank: int, port: int, config: str, folder: str) -> None:
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    train(TrainConfig.model_validate_json(config), Path(folder))


def test_training_on_two_ranks_equals_one(tiny_config, tmp_path: Path) -> None:
    # plain steps (a large eps) keep AdamW from blowing rounding up to the size of a step
    config = tiny_config(steps=5, eps=1.0, lr=0.5, checkpoint_every=3)
    train(config, tmp_path / "one")
    mp.start_processes(one_training, (free_port(), config.model_dump_json(), str(tmp_path / "two")), nprocs=2,
                       start_method="fork")
    one, two = (load_file(tmp_path / name / "export" / "open_clip_model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0, msg=name)
    losses = [[json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
              for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and len(losses[1]) == 5
