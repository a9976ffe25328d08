"""A chunk of blocks of many networks of one shape, on a GPU, recorded once and replayed.

docs/blocked-sgd.md step by step: the chain is ``blocked_chain_``; the products are those of
``blocked_products_`` and ``blocked_gram_``, or PyTorch's where these do not take the shape.
Everything works on buffers that keep their addresses; what the device has to know of a chunk is
copied into them without a host sync. Blocks that are not full are padded with copies of their last
image, which change nothing, so that one recording serves every chunk of every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastmlp.data.transforms import Normalization
from fastmlp.engines.cuda_graph import CapturedGraph, SideStream, full_float32
from fastmlp.ops.blocked_sgd import blocked_chain_ref
from fastmlp.ops.flip_shift import flip_shift_ref
from fastmlp.ops.matmul_precision import FLOAT32

CHUNK_BYTES = 128 << 20
"""About how much memory the inputs of a chunk may take; those of two chunks are there at a time."""
CHUNK_BLOCKS = 32
"""Blocks in a chunk at most: an epoch can only be stopped between two chunks."""
OVERLAPPED_NETWORKS = 32
"""Networks whose chains, at most, leave most of a GPU free while they run."""


def run_kernel(name: str, *args: Any) -> None:
    """Run a compiled operator; the tests put an emulated one in its place."""
    getattr(torch.ops.fastmlp, name)(*args)


@dataclass(frozen=True)
class PipelineShape:
    """What a recording depends on: ``groups`` of ``networks`` each, which share their images.

    A block has ``steps`` batches, a chunk ``blocks`` blocks.
    """

    groups: int
    networks: int
    inputs: int
    hidden: int
    classes: int
    batch: int
    steps: int
    blocks: int
    momentum: bool
    decay: bool
    dtype: torch.dtype
    augmented: tuple[int, int, int] | None
    """The images' (planes, height, width) where they are flipped and shifted."""
    compiled: bool
    """Whether the chain is the kernel, or PyTorch's operators where no kernel takes the shape."""
    planes: int = 1
    """Parts of an image in which pixels become numbers by the same scale and shift."""
    slices: int = 0
    """Into how many parts our kernels cut a product; 0 where products are PyTorch's."""
    matmul_precision: int = FLOAT32
    """What is allowed while it is recorded, which its products keep."""

    @property
    def rows(self) -> int:
        """Images in a block."""
        return self.batch * self.steps

    @property
    def all(self) -> int:
        """The number of networks."""
        return self.groups * self.networks

    @property
    def overlapped(self) -> bool:
        """Whether products run beside the chain. With momentum or decay what the chain changes of
        the next block's product takes more than one product of its own."""
        few = self.all <= OVERLAPPED_NETWORKS
        return few and self.steps > 1 and self.blocks > 1 and not (self.momentum or self.decay)


def block_bytes(
    rows: int, inputs: int, steps: int, dtype: torch.dtype, as_bytes: bool = False
) -> int:
    """Return the bytes that the inputs of a group's block and their Gram matrix take; ``as_bytes``
    where our kernels multiply the images as they are."""
    if as_bytes:
        return rows * (inputs + 2 * rows * dtype.itemsize)
    numbers = inputs + (rows if steps > 1 else 0)
    extra = 5 if dtype == torch.float64 else 1  # bytes of a pixel, and as float32 on the way
    return rows * (numbers * dtype.itemsize + inputs * extra)


@dataclass(frozen=True)
class Schedule:
    """The images of an epoch's blocks: ``index`` (blocks, R) into the order, the last of a block
    repeated behind its end, and ``rows`` (blocks,), the number of images without repetition."""

    index: Tensor
    rows: Tensor

    @classmethod
    def of(cls, images: int, start_step: int, shape: PipelineShape) -> Schedule:
        """Return the blocks from ``start_step`` on; they end at the same steps wherever the epoch
        resumes."""
        first = start_step // shape.steps
        ends = torch.arange(first + 1, -(-images // shape.rows) + 1) * shape.rows
        begins = (ends - shape.rows).clamp(min=start_step * shape.batch)
        ends = ends.clamp(max=images)
        index = begins[:, None] + torch.arange(shape.rows)
        return cls(torch.minimum(index, ends[:, None] - 1), ends - begins)

    def padded(self, blocks: int) -> Schedule:
        """Return a schedule of ``blocks`` blocks, those added at the end without images."""
        missing = blocks - len(self.rows)
        index = torch.cat([self.index, self.index[-1:, -1:].expand(missing, self.index.shape[1])])
        return Schedule(index, torch.cat([self.rows, self.rows.new_zeros(missing)]))


class ChunkInputs:
    """The inputs of a chunk.

    ``pixels`` (blocks, G, R, I) are its images, ``x`` the numbers that they become, where PyTorch
    multiplies these, and ``labels`` (blocks, G, R) theirs. ``gram`` (blocks, G, R, R or 0) holds
    the Gram matrices + 1 and, where products overlap the chain, ``cross`` (blocks, G, R, R) the
    products with the block before. ``rows`` (blocks, G) are the images that count.
    """

    def __init__(
        self, shape: PipelineShape, images: Tensor, labels: Tensor, normalization: Normalization
    ) -> None:
        self._shape = n = shape
        self._images, self._labels, self._normalization = images, labels, normalization

        def make(*sizes: int, dtype: torch.dtype = shape.dtype) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=images.device)

        chunk = (n.blocks, n.groups, n.rows)
        self.index = make(*chunk, dtype=torch.int64)
        self.flip_shifts = make(*chunk, 3, dtype=torch.int8) if n.augmented else None
        self.rows = make(n.blocks, n.groups, dtype=torch.int64)
        self.labels = make(*chunk, dtype=torch.int64)
        self.pixels = make(*chunk, n.inputs, dtype=torch.uint8)
        # Our kernels take the pixels as they are.
        self.x = make(*chunk, 0 if n.slices else n.inputs)
        # Pixels are normalised in float32 whatever the network's dtype.
        doubles = n.dtype == torch.float64
        self._floats = make(*chunk, n.inputs, dtype=torch.float32) if doubles else self.x
        self.gram = make(*chunk, n.rows if n.steps > 1 else 0)
        self.cross = make(*chunk, n.rows) if n.overlapped else None

    def set(self, index: Tensor, rows: Tensor, flip_shifts: Tensor | None) -> None:
        """Say which images the chunk has; all on the device. :meth:`gather` then computes them."""
        self.index.copy_(index)
        self.rows.copy_(rows)
        if self.flip_shifts is not None and flip_shifts is not None:
            self.flip_shifts.copy_(flip_shifts)

    def gather(self) -> None:
        """Compute the inputs of all blocks, their labels and Gram matrices; products of images
        without TF32, as steps multiply them again and again."""
        n, index = self._shape, self.index.view(-1)
        torch.index_select(self._labels, 0, index, out=self.labels.view(-1))
        pixels = self.pixels.view(-1, n.inputs)
        torch.index_select(self._images, 0, index, out=pixels)
        if self.flip_shifts is not None and n.augmented is not None:
            pixels.copy_(flip_shift_ref(pixels, self.flip_shifts.view(-1, 3), n.augmented))
        if n.slices:
            columns = self._normalization.scale, self._normalization.shift
            run_kernel("blocked_gram_", self.gram, self.cross, self.pixels, *columns, n.planes)
            return
        floats = self._floats.view(-1, n.inputs)
        torch.mul(pixels, self._normalization.scale, out=floats).add_(self._normalization.shift)
        if self._floats is not self.x:
            self.x.copy_(self._floats)
        with full_float32():
            self._multiply()

    def _multiply(self) -> None:
        n, x = self._shape, self.x.view(-1, self._shape.rows, self._shape.inputs)
        if n.steps > 1:
            gram = self.gram.view(-1, n.rows, n.rows)
            torch.bmm(x, x.transpose(1, 2), out=gram).add_(1)
        if self.cross is not None:  # the same of neighbouring blocks, without the biases
            later, earlier = x[n.groups :], x[: -n.groups]
            out = self.cross[1:].view(-1, n.rows, n.rows)
            torch.bmm(later, earlier.transpose(1, 2), out=out)


class BlockedPipeline:
    """The buffers and the recordings of a shape.

    ``parameters`` and ``momentum`` (empty without) hold the weight (M, H, I), bias (M, H), weight
    (M, C, H) and bias (M, C) of all its networks; ``recurrence`` (M, steps + 1, 6) and ``options``
    (M, 5) their settings. A replay leaves ``losses`` and ``correct``, both (blocks, M, steps).

    While a chunk runs, the inputs of the next one are gathered beside it: there are two sets of
    inputs, and a recording for each.
    """

    def __init__(
        self, shape: PipelineShape, images: Tensor, labels: Tensor, normalization: Normalization
    ) -> None:
        self.shape = n = shape
        device = images.device

        def make(*sizes: int, dtype: torch.dtype = shape.dtype) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=device)

        layers = [[n.all, n.hidden, n.inputs], [n.all, n.hidden]]
        layers += [[n.all, n.classes, n.hidden], [n.all, n.classes]]
        self.parameters = [make(*sizes) for sizes in layers]
        self.momentum = [make(*sizes) for sizes in layers if n.momentum]
        self._spare = make(*layers[0]) if n.momentum and n.decay else None
        self.recurrence, self.options = make(n.all, n.steps + 1, 6), make(n.all, 5)
        self._chunks = [ChunkInputs(n, images, labels, normalization) for _ in range(2)]
        products = (n.groups, n.rows, n.networks, n.hidden)
        # Where products overlap the chain, those of even and of odd blocks.
        self._p, self._to_w = ([make(*products) for _ in range(1 + n.overlapped)] for _ in range(2))
        self._q = make(*products) if n.momentum and n.steps > 1 else None
        self._to_v = make(*products) if n.momentum else None
        self._ends = make(n.all, 4)
        self._parts = make(n.slices, *products) if n.slices else None
        self._columns = normalization.scale, normalization.shift
        self.losses = make(n.blocks, n.all, n.steps)
        self.correct = make(n.blocks, n.all, n.steps, dtype=torch.int64)
        self._beside, self._gathering = SideStream(device), SideStream(device, priority=0)
        self._turn = 0  # of the chunk that the next replay runs
        self._first_gather = CapturedGraph(self._chunks[0].gather, device)
        self._recordings = [CapturedGraph(partial(self._run, turn), device) for turn in range(2)]

    def start(self, index: Tensor, rows: Tensor, flip_shifts: Tensor | None) -> None:
        """Gather the first chunk of an epoch: the images ``index`` (blocks, G, R), of which the
        first ``rows`` (blocks, G) of a block count, with ``flip_shifts`` (blocks, G, R, 3); all on
        the device."""
        self._turn = 0
        self._chunks[0].set(index, rows, flip_shifts)
        self._first_gather.replay(self._chunks[0].gather)

    def replay(self, following: tuple[Tensor, Tensor, Tensor | None] | None) -> None:
        """Run the chunk that was gathered last, and gather the one that follows it, which is what
        :meth:`start` takes; None where it is the last one."""
        if following is not None:
            self._chunks[1 - self._turn].set(*following)
        self._recordings[self._turn].replay(partial(self._run, self._turn))
        self._turn = 1 - self._turn

    def _run(self, turn: int) -> None:
        self._gathering.run(self._chunks[1 - turn].gather)
        inputs = self._chunks[turn]
        if inputs.cross is not None:
            self._run_overlapped(inputs, inputs.cross)
        else:
            for block in range(self.shape.blocks):
                self._multiply(inputs, block)
                self._run_chain(inputs, block)
                self._update(inputs, block)
        self._gathering.join()

    def _run_overlapped(self, inputs: ChunkInputs, cross: Tensor) -> None:
        """Run the chunk with products beside the chains.

        While a chain runs, the weights of the block before it are updated and the product of the
        block after it is made of them. What the chain then changes of that product is one small
        product more: x(n+1) [w + to_w^T x(n)]^T = x(n+1) w^T + [x(n+1) x(n)^T] to_w.
        """
        self._prepare(inputs, 0)
        for block in range(self.shape.blocks):
            self._complete(cross, block)
            self._beside.run(partial(self._prepare, inputs, block + 1))
            self._run_chain(inputs, block)
            self._beside.join()
        self._prepare(inputs, self.shape.blocks + 1)

    def _prepare(self, inputs: ChunkInputs, block: int) -> None:
        """Update the weights by the images two blocks before, and multiply the block's by them,
        each where there are such."""
        updates, multiplies = block > 1, block < self.shape.blocks
        if self._parts is None:
            if updates:
                self._update(inputs, block - 2)
            if multiplies:
                self._multiply(inputs, block)
            return
        run_kernel(
            "blocked_products_",
            self.parameters[0],
            self._of(self._to_w, block) if updates else None,
            inputs.pixels[block - 2] if updates else None,
            inputs.pixels[block] if multiplies else None,
            *self._columns,
            self._parts if multiplies else None,
        )

    def _complete(self, cross: Tensor, block: int) -> None:
        """Add to the block's product what the chain before it has changed."""
        n, p = self.shape, self._of(self._p, block)
        to_w = self._of(self._to_w, block - 1)
        if self._parts is not None:
            changed = (cross[block], to_w) if block else (None, None)
            run_kernel("blocked_product_sum_", p, self._parts, *changed)
        elif block:
            p = p.view(n.groups, n.rows, -1)
            p.baddbmm_(cross[block], to_w.view(n.groups, n.rows, -1))

    @staticmethod
    def _of(buffers: Sequence[Tensor], block: int) -> Tensor:
        return buffers[block % len(buffers)]

    def _multiply(self, inputs: ChunkInputs, block: int) -> None:
        """Compute p = x w^T, and q of the momentum."""
        self._product(inputs.x[block], self.parameters[0], self._of(self._p, block))
        if self._q is not None:
            self._product(inputs.x[block], self.momentum[0], self._q)

    def _product(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        n = self.shape
        stacked = weight.view(n.groups, n.networks * n.hidden, n.inputs)
        torch.bmm(x, stacked.transpose(1, 2), out=out.view(n.groups, n.rows, -1))

    def _run_chain(self, inputs: ChunkInputs, block: int) -> None:
        """Take the block's steps, one after the other."""
        compiled = partial(run_kernel, "blocked_chain_")
        chain: Callable[..., None] = compiled if self.shape.compiled else blocked_chain_ref
        chain(
            *(self._of(self._p, block), self._q, inputs.gram[block], inputs.labels[block]),
            *(inputs.rows[block], self.recurrence, self.options, self.shape.batch),
            *(self.parameters[1:], self.momentum[1:]),
            *(self._of(self._to_w, block), self._to_v, self._ends),
            *(self.losses[block], self.correct[block]),
        )

    def _update(self, inputs: ChunkInputs, block: int) -> None:
        """Set w <- w + ends[0] w + ends[1] v + to_w^T x, v <- ends[2] w + ends[3] v + to_v^T x."""
        w, x = self.parameters[0], inputs.x[block]
        w_w, w_v, v_w, v_v = self._ends[:, :, None, None].unbind(1)
        if self._spare is not None:
            torch.mul(w, v_w, out=self._spare)
        if self.shape.decay:
            w.addcmul_(w, w_w)
        if self._to_v is not None:
            v = self.momentum[0]
            w.addcmul_(v, w_v)
            v.mul_(v_v)
            if self._spare is not None:
                v.add_(self._spare)
            self._add_product(v, self._to_v, x)
        self._add_product(w, self._of(self._to_w, block), x)

    def _add_product(self, weight: Tensor, factors: Tensor, x: Tensor) -> None:
        n = self.shape
        stacked = weight.view(n.groups, n.networks * n.hidden, n.inputs)
        stacked.baddbmm_(factors.view(n.groups, n.rows, -1).transpose(1, 2), x)
