"""The compiled operators ``torch.ops.fastmlp.*``: checks, typed wrappers, autograd, autocast.

For each operator, in this order: its check, its wrapper, its fake kernel (shapes for
``torch.compile``), its gradient and, from these, its :class:`~fastmlp.ops._register.Operator`. Backward
kernels are operators too, and their own gradients (double backward) are compositions of torch
operators, so every order of derivative exists. :mod:`fastmlp.functional` is the friendlier door: it
checks first and can run without a compiler.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmlp.ops._register import Operator
from fastmlp.ops.matmul_precision import FLOAT32, float32_of
from fastmlp.ops.reference import relu_backward_ref

ACTIVATIONS = ("none", "relu")
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # as at::Reduction numbers them


def _check_floating(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise TypeError(
            f"{name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}; "
            "convert it with .float()"
        )


def _check_same_dtype(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    _check_floating(name, tensor)
    if tensor.dtype != other.dtype and not torch.is_autocast_enabled(other.device.type):
        raise TypeError(
            f"{name} must have the dtype of {other_name}, {other.dtype}, got {tensor.dtype}"
        )
    if tensor.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}"
        )


# ---- linear -------------------------------------------------------------------------------------


def check_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> None:
    """Raises TypeError or ValueError, in one sentence, unless the arguments fit :func:`linear`."""
    _check_floating("x", x)
    _check_same_dtype("weight", weight, "x", x)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape (O, I), got {tuple(weight.shape)}")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x must have shape (..., {weight.shape[1]}) to fit weight {tuple(weight.shape)}, "
            f"got {tuple(x.shape)}"
        )
    if bias is not None:
        _check_same_dtype("bias", bias, "x", x)
        if bias.dim() != 1 or bias.shape[0] != weight.shape[0]:
            raise ValueError(f"bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """``act(x @ weight.T + bias)``: x (..., I), weight (O, I), bias (O,) -> (..., O).

    Float32 on CUDA is multiplied in TF32 only where PyTorch allows it, as ``F.linear`` does.
    """
    result: Tensor = _linear(x, weight, bias, activation == "relu", float32_of(x))
    return result


def _linear_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    relu: bool = False,
    float32: int = FLOAT32,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, relu, _ = inputs
    ctx.save_for_backward(x, weight, output if relu else None)
    ctx.has_bias = bias is not None


def _linear_autograd(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, y = ctx.saved_tensors
    needs = ctx.needs_input_grad  # shorter where trailing arguments were left at their defaults
    mask = (needs[0], needs[1], ctx.has_bias and needs[2])
    return *linear_backward(dy, x, weight, y, mask), None, None


_linear = Operator("linear", _linear_fake, _linear_setup, _linear_autograd, "region")


def linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None = None,
    output_mask: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dw, db) of :func:`linear`, None where ``output_mask`` says it is not needed.

    dy (..., O), x (..., I), weight (O, I); ``y`` (..., O) is linear's output where it ended in a
    ReLU, or that one's mask, and None where it did not. TF32 is as in :func:`linear`, as allowed at
    this call.
    """
    dx, dw, db = _linear_backward(dy, x, weight, y, *output_mask, float32_of(dy))
    return (
        dx if output_mask[0] else None,
        dw if output_mask[1] else None,
        db if output_mask[2] else None,
    )


def _linear_backward_fake(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    need_dx: bool,
    need_dw: bool,
    need_db: bool,
    float32: int = FLOAT32,
) -> tuple[Tensor, ...]:
    shapes, needs = (x.shape, weight.shape, weight.shape[:1]), (need_dx, need_dw, need_db)
    return tuple(dy.new_empty(s if need else (0,)) for s, need in zip(shapes, needs, strict=True))


def _linear_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.needs = inputs[4:7]
    ctx.set_materialize_grads(False)


def _linear_backward_autograd(
    ctx: Any, ddx: Tensor | None, ddw: Tensor | None, ddb: Tensor | None
) -> tuple[Tensor | None, ...]:
    """From dx = g W, dw = g^T x, db = sum g, with g = dy where the ReLU let through."""
    dy, x, weight, y = ctx.saved_tensors
    need_dx, need_dw, need_db = ctx.needs
    g = dy if y is None else relu_backward_ref(dy, y)
    count = g.shape[:-1].numel()
    d_dy, d_x, d_weight = torch.zeros_like(dy), None, None
    if need_dx and ddx is not None:
        d_dy = d_dy + ddx @ weight.t()
        d_weight = g.reshape(count, -1).t() @ ddx.reshape(count, -1)
    if need_dw and ddw is not None:
        d_dy = d_dy + x @ ddw.t()
        d_x = g @ ddw
    if need_db and ddb is not None:
        d_dy = d_dy + ddb
    if y is not None:
        d_dy = relu_backward_ref(d_dy, y)
    return d_dy, d_x, d_weight, None, None, None, None, None


_linear_backward = Operator(
    "linear_backward", _linear_backward_fake, _linear_backward_setup, _linear_backward_autograd
)


# ---- relu ---------------------------------------------------------------------------------------


def check_relu(x: Tensor) -> None:
    """Raises TypeError unless x is a floating-point tensor."""
    _check_floating("x", x)


def relu(x: Tensor) -> Tensor:
    """``max(x, 0)``, any shape and strides; nan stays nan."""
    result: Tensor = _relu(x)
    return result


def _relu_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _relu_autograd(ctx: Any, dy: Tensor) -> Tensor:
    return relu_backward(dy, *ctx.saved_tensors)


_relu = Operator("relu", torch.empty_like, _relu_setup, _relu_autograd)


def relu_backward(dy: Tensor, y: Tensor) -> Tensor:
    """``0 where y <= 0, else dy``; y is relu's output or its input, of dy's shape, or the mask."""
    result: Tensor = _relu_backward(dy, y)
    return result


def _relu_backward_fake(dy: Tensor, y: Tensor) -> Tensor:
    return dy.new_empty(dy.shape) if y.dtype == torch.uint8 else torch.empty_like(y)


def _relu_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _relu_backward_autograd(ctx: Any, ddx: Tensor) -> tuple[Tensor, None]:
    return relu_backward_ref(ddx, *ctx.saved_tensors), None


_relu_backward = Operator(
    "relu_backward", _relu_backward_fake, _relu_backward_setup, _relu_backward_autograd
)


# ---- softmax cross entropy ----------------------------------------------------------------------


def check_softmax_xent(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> None:
    """Raises TypeError or ValueError, in one sentence, unless the arguments fit
    :func:`softmax_xent`."""
    _check_floating("logits", logits)
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor, got {type(target).__name__}")
    if target.dtype not in (torch.int64, torch.uint8):
        raise TypeError(
            f"target must hold class indices as int64 or uint8, got {target.dtype}; "
            "convert it with .long()"
        )
    if logits.dim() == 0:
        raise ValueError("logits must have shape (C,) or (N, C, ...), got a scalar")
    want = logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else torch.Size()
    if target.shape != want:
        raise ValueError(
            f"target must have shape {tuple(want)} to fit logits {tuple(logits.shape)}, "
            f"got {tuple(target.shape)}"
        )
    if target.device != logits.device:
        raise ValueError(f"target must be on {logits.device} like logits, got {target.device}")
    if weight is not None:
        _check_same_dtype("weight", weight, "logits", logits)
        classes = logits.shape[1 if logits.dim() > 1 else 0]
        if weight.dim() != 1 or weight.shape[0] != classes:
            raise ValueError(f"weight must have shape ({classes},), got {tuple(weight.shape)}")
        if weight.requires_grad and torch.is_grad_enabled():
            raise ValueError("weight cannot require a gradient, as in PyTorch; use weight.detach()")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {label_smoothing}")


def softmax_xent(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of softmax(logits); shapes as :func:`fastmlp.functional.softmax_cross_entropy`.

    Raises IndexError (CPU; compiled by torch.compile, a RuntimeError) on a label that is no class;
    on CUDA that row's loss becomes nan.
    """
    shape = target.shape
    if logits.dim() != 2:  # (C,) is a batch of one, (N, C, d1, ...) one of N * d1 * ... rows
        logits = logits.movedim(1, -1) if logits.dim() > 2 else logits
        logits, target = logits.reshape(-1, logits.shape[-1]), target.reshape(-1)
    loss = _checked_softmax_xent(
        logits, target, weight, REDUCTIONS[reduction], ignore_index, label_smoothing
    )[0]
    return loss.reshape(shape) if reduction == "none" else loss


def _checked_softmax_xent(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    try:
        result: tuple[Tensor, Tensor, Tensor] = _softmax_xent(*args)
    except RuntimeError as error:  # the stable ABI has no other kind
        if "is out of bounds" in str(error):
            raise IndexError(str(error).splitlines()[0]) from None
        raise
    return result


def softmax_xent_with_grad(
    logits: Tensor, target: Tensor, dloss: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The mean loss () and its gradient (N, C) at once, for training loops without autograd.
    ``dloss`` () multiplies the gradient; None is 1."""
    loss, stats, total = _checked_softmax_xent(logits, target)
    dloss = torch.ones_like(loss) if dloss is None else dloss
    return loss, _softmax_xent_backward(dloss, logits, target, stats, total)


def _softmax_xent_fake(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    loss = logits.new_empty(target.shape if reduction == REDUCTIONS["none"] else ())
    stats = logits.new_empty((logits.shape[0], 2), dtype=dtype)
    return loss, stats, logits.new_empty((), dtype=dtype)


def _softmax_xent_setup(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    logits, target, weight, *ctx.options = inputs  # all six, defaults filled in
    _, stats, total_weight = output
    ctx.save_for_backward(logits, target, stats, total_weight, weight)
    ctx.mark_non_differentiable(stats, total_weight)


def _softmax_xent_autograd(ctx: Any, dloss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    dlogits = _softmax_xent_backward(dloss, *ctx.saved_tensors, *ctx.options)
    return dlogits, None, None, None, None, None


_softmax_xent = Operator(
    "softmax_xent", _softmax_xent_fake, _softmax_xent_setup, _softmax_xent_autograd, "float32"
)


def _softmax_xent_backward_fake(dloss: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _softmax_xent_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3], *inputs[4:6])
    ctx.options = inputs[6:]


def _softmax_xent_backward_autograd(ctx: Any, ddlogits: Tensor) -> tuple[Tensor | None, ...]:
    """With q the target distribution (class weights and smoothing in it) and p = softmax(logits),
    dlogits = scale (sum(q) p - q), so its own gradient is scale sum(q) p (v - <v, p>)."""
    dloss, logits, target, total_weight, weight = ctx.saved_tensors
    reduction, ignore_index, smoothing = ctx.options
    classes, target = logits.shape[1], target.long()  # a uint8 would wrap against ignore_index
    kept = (target != ignore_index)[:, None]
    w = logits.new_ones(classes) if weight is None else weight
    hot = torch.nn.functional.one_hot(torch.where(kept[:, 0], target, 0), classes)
    q = ((1 - smoothing) * hot * w + smoothing / classes * w) * kept
    mass = q.sum(1, keepdim=True)
    p = torch.softmax(logits, 1)
    scale = dloss[:, None] if reduction == REDUCTIONS["none"] else dloss
    if reduction == REDUCTIONS["mean"]:
        scale = scale / total_weight.to(dloss.dtype)
    d_logits = scale * mass * p * (ddlogits - (ddlogits * p).sum(1, keepdim=True))
    d_dloss = torch.where(kept, ddlogits * (mass * p - q), 0).sum(1)
    if reduction != REDUCTIONS["none"]:
        d_dloss = d_dloss.sum()
    if reduction == REDUCTIONS["mean"]:
        d_dloss = d_dloss / total_weight.to(dloss.dtype)
    return d_dloss, torch.where(kept, d_logits, 0), *([None] * 7)


_softmax_xent_backward = Operator(
    "softmax_xent_backward",
    _softmax_xent_backward_fake,
    _softmax_xent_backward_setup,
    _softmax_xent_backward_autograd,
)
