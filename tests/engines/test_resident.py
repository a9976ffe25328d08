"""One copy of a tensor on each device."""

from __future__ import annotations

import gc

import torch

from fastmlp.engines.resident import _copies, resident

META = torch.device("meta")  # the only other device that is everywhere


def test_a_tensor_that_is_there_is_not_copied():
    tensor = torch.arange(6)
    assert resident(tensor, torch.device("cpu")) is tensor
    turned = torch.arange(6).view(2, 3).t()
    assert resident(turned, torch.device("cpu")).is_contiguous()


def test_everyone_gets_the_same_copy_while_one_holds_it():
    tensor = torch.zeros(4, 3).t()
    copy = resident(tensor, META)
    assert copy.device == META
    assert copy.is_contiguous()
    assert resident(tensor, META) is copy
    assert resident(torch.zeros(4, 3).t(), META) is not copy
    kept, number = _copies[tensor][META][1], len(_copies)
    del copy
    assert kept() is None  # nobody holds it, so it takes no memory
    del tensor
    gc.collect()
    assert len(_copies) < number


def test_a_tensor_that_was_written_to_is_copied_again():
    tensor = torch.zeros(4)
    copy = resident(tensor, META)
    tensor.add_(1)
    assert resident(tensor, META) is not copy
