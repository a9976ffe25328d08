"""Calls of native operators changed in ways that an attacker or a careless user would.

Run as a program it makes calls and writes a line of JSON before and after each: what is called, and
how it ended.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
from support.native_calls import DTYPES, Arguments, Calls
from torch import Tensor

import fastmlp

TORCHS_OWN = ("Declaration:", "Could not run", "no fallback function", "can't allocate memory")
"""What PyTorch itself says, of arguments that no operator can take, or of a result beyond all
memory."""
OF_NUMBERS = (
    *("is out of bounds", "lost its memory", "too large", "share memory"),
    *("there is no memory", "must shift an image"),
)
"""What an operator can say of the numbers in tensors or of their memory: meta tensors lack both."""
SHAPES_ALONE = {
    *("activation", "activation_backward", "linear", "linear_backward", "mlp", "mlp_backward"),
    *("cross_entropy", "cross_entropy_backward", "flip_shift"),
}
"""Operators whose results' shapes follow from the arguments', and which torch.compile therefore
sees: on meta tensors they refuse what they refuse otherwise."""
NOT_FOR_USERS = ("bad_alloc", "vector::", "std::", "API call failed", ".cpp", ".h:")
SECONDS = 20
"""A call that takes longer is killed."""
INTEGERS = [0, 1, -1, 2, 7, 2**31, 2**32, 2**47, 2**61, 2**62, 2**63 - 1, -(2**63), -(2**31)]
FLOATS = [float("nan"), float("inf"), -float("inf"), 1e300, -1.0, 0.5, 0.0, 3.0, 2.0**62, 2.0**63]


def operators() -> list[str]:
    """Return the names of all native operators that the dispatcher has."""
    names = {name.split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    return sorted(n.removeprefix("fastmlp::") for n in names if n.startswith("fastmlp::"))


def _with_value(tensor: Tensor, random: random.Random) -> Tensor:
    tensor = tensor.clone()
    values = FLOATS if tensor.is_floating_point() else INTEGERS
    if tensor.numel() and not tensor.is_complex() and tensor.is_contiguous():
        limits = None if tensor.is_floating_point() or tensor.dtype == torch.bool else torch.iinfo
        value = random.choice(values)
        if limits:
            value = max(min(value, limits(tensor.dtype).max), limits(tensor.dtype).min)
        tensor.view(-1)[random.randrange(tensor.numel())] = value
    return tensor


def _huge(tensor: Tensor, random: random.Random) -> Tensor:
    if not tensor.dim() or not len(tensor):
        return torch.empty(2**61, 0, dtype=tensor.dtype)
    return tensor[:1].expand(random.choice([2**44, 2**52]), *tensor.shape[1:])


def _longer(tensor: Tensor, dim: int) -> Tensor:
    return torch.cat([tensor, tensor], dim)


TENSOR_CHANGES: list[Callable[[Tensor, random.Random], Any]] = [
    _with_value,
    _with_value,
    _huge,
    lambda t, r: t.to(r.choice(DTYPES)),
    lambda t, r: t.unsqueeze(r.randint(0, t.dim())),
    lambda t, r: t.select(r.randrange(t.dim()), 0) if t.numel() and t.dim() else t.new_zeros(3),
    lambda t, r: t.narrow(r.randrange(t.dim()), 0, 0) if t.dim() else t.new_zeros(0),
    lambda t, r: t.narrow(d := r.randrange(t.dim()), 0, max(t.shape[d] - 1, 0)) if t.dim() else t,
    lambda t, r: _longer(t, r.randrange(t.dim())) if t.dim() else t.new_zeros(2),
    lambda t, r: t.new_zeros(()),
    lambda t, r: t.mT.contiguous().mT if t.dim() > 1 else _longer(t.view(-1), 0)[::2],
    lambda t, r: t[:1].expand_as(t) if t.dim() else t,
    lambda t, r: _longer(t, t.dim() - 1)[..., : t.shape[-1]] if t.dim() else t,
    lambda t, r: t.to("meta"),
    lambda t, r: t.requires_grad_() if t.is_floating_point() else t,
    lambda t, r: torch._neg_view(t) if t.is_floating_point() else t,
    lambda t, r: t.to_sparse() if t.dim() else t,
]


def _change_list(values: list[Any], random: random.Random) -> list[Any]:
    values = list(values)
    kind = random.randrange(6)
    if kind == 0:
        return []
    at = random.randrange(len(values)) if values else 0
    if kind == 1:
        return values[:at] + values[at + 1 :]
    if not values:
        return values
    if kind == 2:  # the same one twice
        values[at] = random.choice(values)
    elif kind == 3 and isinstance(values[at], Tensor):  # a part of the same memory
        other, numel = random.choice(values), values[at].numel()
        if numel <= other.numel() and other.dtype == values[at].dtype:
            values[at] = other.view(-1)[other.numel() - numel :].view(values[at].shape)
    elif kind == 4:
        values.insert(at, random.choice(values))
    else:
        values[at] = change(values[at], random)
    return values


def change(value: Any, random: random.Random) -> Any:
    """Return an argument changed in one of many ways."""
    if isinstance(value, Tensor):
        if max(value.shape, default=0) > 1 << 20:
            return value  # to change it again would take for ever
        try:
            return random.choice(TENSOR_CHANGES)(value.detach(), random)
        except (RuntimeError, IndexError, NotImplementedError):  # what this tensor cannot become
            return value
    if isinstance(value, list):
        return _change_list(value, random)
    if isinstance(value, bool):
        return not value
    if isinstance(value, torch.dtype):
        return random.choice(DTYPES)
    if isinstance(value, float):
        return random.choice(FLOATS)
    if isinstance(value, int):
        return random.choice([*INTEGERS, value + 1, value - 1])
    return value


def make(name: str, number: int) -> Arguments:
    """Return the call of this number, from its name and number alone."""
    source = random.Random(f"{name} {number}")
    torch.default_generator.manual_seed(source.getrandbits(32))
    arguments: Arguments = getattr(Calls(source), name)()
    if number == 0 or not arguments:
        return arguments
    tensors = tensors_in(arguments)
    if tensors and source.random() < 0.1:  # alone: PyTorch's own operators read freed memory
        freed = source.choice(tensors)
        freed.untyped_storage().resize_(source.choice([0, freed.nbytes // 2]))
        return arguments
    for _ in range(source.choice([0, 1, 1, 1, 2, 3])):
        at = source.randrange(len(arguments))
        others = [a for a in arguments if isinstance(a, Tensor)]
        if others and source.random() < 0.1:  # another argument, or nothing
            arguments[at] = source.choice([None, *others])
        else:
            arguments[at] = change(arguments[at], source)
    return arguments


def describe(value: Any) -> str:
    """Return an argument in words, its numbers where there are few."""
    if isinstance(value, Tensor):
        text = f"{str(value.dtype)[6:]}{tuple(value.shape)}"
        if value.layout != torch.strided or value.device.type != "cpu":
            return f"{text} {value.layout} {value.device}"
        text += f" strides {value.stride()}" if not value.is_contiguous() else ""
        memory = value.untyped_storage().nbytes()
        text += f" storage {memory}" if memory < value.nbytes else ""
        few = 0 < value.numel() <= 30 and memory >= value.nbytes
        return f"{text} {value.tolist()}" if few else text
    if isinstance(value, list):
        return "[" + ", ".join(map(describe, value)) + "]"
    return repr(value)


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in tensors_in(each)]
    return []


def digest(values: Any) -> str:
    """Return a digest of the storages' bytes, and of the numbers beside tensors."""
    state = hashlib.sha256()
    for tensor in tensors_in(values):
        state.update(f"{tensor.dtype} {tuple(tensor.shape)} {tensor.device}".encode())
        if tensor.layout == torch.strided and tensor.device.type == "cpu":
            storage = tensor.detach().untyped_storage()
            state.update(ctypes.string_at(storage.data_ptr(), storage.nbytes()))
    if isinstance(values, (list, tuple)):
        state.update(repr([v for v in values if not isinstance(v, (Tensor, list))]).encode())
    return state.hexdigest()


def run(name: str, number: int) -> dict[str, Any]:
    """Make a call; return how it ended, and what is wrong with that."""
    operator = getattr(torch.ops.fastmlp, name).default
    arguments = make(name, number)
    print(json.dumps({"call": f"{name} {number}: {describe(arguments)[:4000]}"}), flush=True)
    writes = [bool(a.alias_info and a.alias_info.is_write) for a in operator._schema.arguments]
    written = [a for a, w in zip(arguments, writes, strict=True) if w]
    read = [a for a, w in zip(arguments, writes, strict=True) if not w]
    before, whole = digest(read), digest(written)
    signal.alarm(SECONDS)
    outcome = None
    try:
        outcome = operator(*arguments)
    except Exception as error:
        wrong = complaint(error)
        if digest(written) != whole:
            wrong = wrong or "a refused call changed an argument"
        ended = f"{type(error).__name__}: {str(error)[:600]}"
    else:
        wrong = None
        ended = f"returned {digest(outcome)} {digest(written)}"
    if wrong is None and all(map(_is_plain, tensors_in(arguments))):
        wrong = _on_meta(operator, arguments, outcome, ended)
    signal.alarm(0)
    if digest(read) != before:
        wrong = wrong or "an argument that is only read has changed"
    return {"ended": ended, "wrong": wrong}


def _on_meta(operator: Any, arguments: Arguments, outcome: Any, ended: str) -> str | None:
    """Return what is wrong with the operator on meta tensors of these shapes, or None."""
    try:
        found = operator(*[_to_meta(argument) for argument in arguments])
    except Exception as error:
        right = isinstance(error, NotImplementedError) or any(
            part in str(error) for part in TORCHS_OWN
        )
        wrong = (
            None if right or not ended.startswith("returned") else "only meta tensors are refused"
        )
        if not isinstance(error, (RuntimeError, ValueError, TypeError)):
            wrong = f"on meta tensors raised {type(error).__name__}"
        return wrong and f"{wrong}: {str(error)[:300]}"
    if ended.startswith("returned"):
        for real, fake in zip(tensors_in(outcome), tensors_in(found), strict=True):
            if real.shape != fake.shape or real.dtype != fake.dtype:
                return f"on meta tensors {fake.dtype}{tuple(fake.shape)}"
        return None
    right = any(part in ended for part in (*OF_NUMBERS, *TORCHS_OWN))
    shapes_alone = operator._schema.name.removeprefix("fastmlp::") in SHAPES_ALONE
    return "refused, but not on meta tensors" if shapes_alone and not right else None


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu"


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return [_to_meta(each) for each in value] if isinstance(value, list) else value


def complaint(error: Exception) -> str | None:
    """Return what a user would hold against an exception, or None."""
    said = str(error).strip()
    if not isinstance(error, (RuntimeError, ValueError, TypeError, IndexError)):
        return f"raised {type(error).__name__}"
    torchs_own = any(part in said for part in TORCHS_OWN)
    if not said or ("\n" in said and not torchs_own):
        return "the message is not one line"
    if not torchs_own and any(part in said for part in NOT_FOR_USERS):
        return "the message is not for users"
    return None


def main(first: int, last: int, *names: str) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a call that does not end ends the process
    torch.set_num_threads(2)
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):
        limit = 8 << 30  # a call that wants more is told that there is none
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    assert fastmlp.native_available()
    for name in names or operators():
        for number in range(first, last):
            print(json.dumps(run(name, number)), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
