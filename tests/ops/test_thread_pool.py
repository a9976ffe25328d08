"""The threads of the CPU engines: they stay, and neither a fork nor another leader stands still."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.steps import config_of, make_network, numbers_of, problem

from fastmlp.ops._load import native_available
from fastmlp.ops.train_steps import train_steps_

pytestmark = pytest.mark.skipif(not native_available(), reason="the kernels are not built")


def trained(seed: int = 0) -> torch.Tensor:
    """The parameters after steps large enough for several threads."""
    config = config_of(batch_size=53, momentum=0.9)
    x, targets = problem(config)
    network = make_network((7, 128, 128, 3), config, 53, seed=seed)
    for _ in range(20):
        train_steps_([network], x, targets)
    return numbers_of(network)


def put_trained(queue) -> None:
    queue.put(trained().numpy())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_trains_too(threads):
    """A fork leaves a child without the threads that its parent had."""
    threads(2)
    want = trained()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=put_trained, args=(queue,))
    child.start()
    got = torch.from_numpy(queue.get(timeout=120))
    child.join(timeout=120)
    assert child.exitcode == 0
    assert torch.equal(got, want)


def test_many_leaders_at_once_and_another_number_of_threads(threads):
    threads(1)
    want = [trained(seed) for seed in range(6)]
    for count in (2, 3):
        threads(count)
        with ThreadPoolExecutor(6) as executor:
            got = list(executor.map(trained, range(6)))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
