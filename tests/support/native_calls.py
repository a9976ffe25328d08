"""Right calls of every native operator, of small random tensors."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastmlp.ops.activations import row_of_kernel
from fastmlp.ops.blocked_sgd import recurrence
from fastmlp.ops.losses import LOSSES, loss_row
from fastmlp.ops.step_config import StepConfig, options_of

Arguments = list[Any]
DTYPES = [
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int8, torch.uint8),
]


FOR_A_GPU = (
    *("blocked_chain_", "blocked_gram_", "blocked_products_", "blocked_product_sum_"),
    *("linear_plan_cuda", "cuda_archs", "cuda_driver_version"),
)
"""Operators that the CUDA library alone has."""


class Calls:
    """Right calls of an operator each, of small sizes drawn from ``random``."""

    def __init__(self, random: random.Random) -> None:
        self.random = random
        self.floating = random.choice(DTYPES[:4])
        self.real = random.choice(DTYPES[:2])
        self.rows, self.inputs, self.outputs = (random.randint(1, 20) for _ in range(3))

    def numbers(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape).to(dtype or self.floating)

    def labels(self, *shape: int, below: int) -> Tensor:
        return torch.randint(0, below, shape)

    def activation(self) -> Arguments:
        return [self.numbers(self.rows, self.inputs), self.random.randrange(7)]

    def activation_backward(self) -> Arguments:
        x, number = self.activation()
        return [self.numbers(*x.shape), x, number]

    def linear(self) -> Arguments:
        weight, bias = self.numbers(self.outputs, self.inputs), self.numbers(self.outputs)
        lead = self.random.choice([(), (self.rows,), (2, self.rows)])
        x = self.numbers(*lead, self.inputs)
        return [x, weight, self.random.choice([None, bias]), self.random.randrange(7), 0]

    def linear_backward(self) -> Arguments:
        x, weight, _, number, _ = self.linear()
        dy = self.numbers(*x.shape[:-1], self.outputs)
        needs = [self.random.random() < 0.8 for _ in range(3)]
        return [dy, x, weight, self.numbers(*dy.shape) if number else None, number, *needs, 0]

    def mlp(self) -> Arguments:
        numbers = [self.random.randrange(7) for _ in range(self.random.randint(1, 3))]
        bias, parameters = (
            self.random.random() < 0.7,
            self.network(self.inputs, len(numbers), self.floating),
        )
        parameters = parameters if bias else parameters[::2]
        x = self.numbers(self.rows, self.inputs)
        return [x, parameters, numbers, bias, self.random.random() < 0.5, 0]

    def mlp_backward(self) -> Arguments:
        x, parameters, numbers, bias, _, _ = self.mlp()
        kept = torch.ops.fastmlp.mlp(x, parameters, numbers, bias, True)
        dy = self.numbers(*kept[-1].shape)
        if row_of_kernel(numbers[-1]).saves != "output":
            kept.pop()
        return [dy, x, kept, parameters, numbers, bias, self.random.random() < 0.5, 0]

    def cross_entropy(self) -> Arguments:
        logits, weight = self.numbers(self.rows, self.outputs), self.numbers(self.outputs).abs()
        target = self.labels(self.rows, below=self.outputs)
        target = self.random.choice([target, target.byte()])
        weight = self.random.choice([None, weight])
        return [logits, target, weight, self.random.randrange(3), -100, 0.1]

    def cross_entropy_backward(self) -> Arguments:
        logits, target, *options = self.cross_entropy()
        saved = torch.ops.fastmlp.cross_entropy(logits, target, *options)
        return [torch.ones_like(saved[0]), logits, target, *saved[1:], *options]

    def flip_shift(self) -> Arguments:
        shape = [self.random.randint(1, 3), self.random.randint(3, 8), self.random.randint(3, 8)]
        images = self.pixels(shape[0] * shape[1] * shape[2])
        return [images, torch.randint(-2, 3, (self.rows, 3), dtype=torch.int8), shape]

    def pixels(self, features: int, *groups: int) -> Tensor:
        return torch.randint(0, 256, (*groups, self.rows, features), dtype=torch.uint8)

    def network(self, inputs: int, layers: int, dtype: torch.dtype) -> list[Tensor]:
        sizes = [inputs, *(self.random.randint(1, 9) for _ in range(layers - 1)), self.outputs]
        tensors: list[Tensor] = []
        for fan_in, fan_out in pairwise(sizes):
            tensors += [self.numbers(fan_out, fan_in, dtype=dtype)]
            tensors += [self.numbers(fan_out, dtype=dtype)]
        return tensors

    def images(self, features: int) -> Arguments:
        images, labels = self.pixels(features), self.labels(self.rows, below=self.outputs)
        return [images, labels, torch.rand(features), torch.rand(features)]

    def evaluate(self) -> Arguments:
        layers = [self.random.randint(1, 3) for _ in range(self.random.randint(1, 3))]
        parameters = [t for n in layers for t in self.network(self.inputs, n, self.real)]
        counts = self.random.choice([None, self.labels(self.rows, below=4)])
        return [*self.images(self.inputs), counts, layers, parameters]

    def blocked_train_(self) -> Arguments:
        shape = [1, 3, 4]
        orders = [torch.randint(0, self.rows, (self.random.randint(1, 30),)) for _ in range(2)]
        moves = [
            torch.randint(-1, 2, (len(order) * self.random.randint(0, 1), 3), dtype=torch.int8)
            for order in orders
        ]
        layers = [2, 3, 2]
        parameters = [t for n in layers for t in self.network(12, n, self.real)]
        mu = self.random.choice([0.0, 0.9])
        momentum = [torch.zeros_like(t) for t in parameters] if mu else []
        steps = [self.random.randint(1, 4) for _ in orders]
        tables = [recurrence(5, 0.1, mu) for _ in layers]
        options = torch.tensor([[0.1, mu, 0.0, 0.0, 0.0]] * 3, dtype=torch.float64)
        batches = [self.random.randint(1, 9) for _ in orders]
        lists = [orders, moves, batches, steps, [0, 1, 1], layers, parameters, momentum, tables]
        return [*self.images(12), shape, *lists, options]

    def blocked_chain_(self) -> Arguments:
        groups, batch, steps, networks, hidden, classes = 2, 3, 2, 2, 4, 3
        every, rows = groups * networks, batch * steps
        p, q, to_w, to_v = (torch.randn(groups, rows, networks, hidden) for _ in range(4))
        shapes = [(every, hidden), (every, classes, hidden), (every, classes)]
        parameters, momentum = ([torch.randn(shape) for shape in shapes] for _ in range(2))
        tables, options = torch.rand(every, steps + 1, 6), torch.rand(every, 5)
        labels = self.labels(groups, rows, below=classes)
        given = [torch.randn(groups, rows, rows), labels, torch.full((groups,), rows)]
        outs = [torch.zeros(every, 4), torch.zeros(every, steps)]
        outs += [torch.zeros(every, steps, dtype=torch.int64)]
        return [p, q, *given, tables, options, batch, parameters, momentum, to_w, to_v, *outs]

    def blocked_gram_(self) -> Arguments:
        blocks, groups, rows, inputs = 3, 2, self.rows, 48
        gram, cross = torch.zeros(2, blocks, groups, rows, rows)
        pixels = self.pixels(inputs, blocks, groups)
        return [gram, cross, pixels, torch.ones(inputs), torch.zeros(inputs), 3]

    def blocked_products_(self) -> Arguments:
        groups, networks, hidden, inputs = 2, 2, self.outputs, 48
        products, images = (groups, self.rows, networks, hidden), [self.pixels(inputs, groups)] * 2
        weight = torch.randn(groups * networks, hidden, inputs)
        columns = [torch.rand(inputs), torch.rand(inputs)]
        return [weight, torch.randn(products), *images, *columns, torch.zeros(1, *products)]

    def blocked_product_sum_(self) -> Arguments:
        groups, networks = 2, 2
        products = (groups, self.rows, networks, self.outputs)
        cross = torch.randn(groups, self.rows, self.rows)
        return [torch.zeros(products), torch.randn(3, *products), cross, torch.randn(products)]

    def rows_of_data(self, loss: str) -> Arguments:
        """x, columns, starts, and targets, row_weights, class_weight, scale, shift."""
        weighted, labelled = self.random.random() < 0.5, loss_row(loss).takes_labels
        targets = self.labels(self.rows, below=self.outputs)
        targets = targets if labelled else self.numbers(self.rows, self.outputs, dtype=self.real)
        weights = torch.rand(self.rows, dtype=torch.float64) if weighted else None
        classes = torch.rand(self.outputs, dtype=torch.float64) if weighted and labelled else None
        rest = [targets, weights, classes]
        if self.random.random() < 0.5:
            counts = torch.randint(0, self.inputs + 1, (self.rows,))
            starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
            columns = torch.randint(0, self.inputs, (int(starts[-1]),), dtype=torch.int32)
            return [self.numbers(len(columns), dtype=self.real), columns, starts, *rest, None, None]
        x = self.random.choice([self.pixels(self.inputs), self.numbers(self.rows, self.inputs)])
        x = x if x.dtype in (torch.uint8, torch.float32, torch.float64) else x.float()
        return [x, None, None, *rest, *(torch.rand(2, self.inputs, dtype=torch.float64))]

    def options(self) -> tuple[StepConfig, list[float]]:
        config = StepConfig(
            loss=self.random.choice(list(LOSSES)),
            batch_size=self.random.randint(1, 9),
            optimizer=self.random.choice(["sgd", "adam", "adamw"]),
            activation=self.random.choice(["relu", "gelu"]),
            dropout=self.random.choice([0.0, 0.3]),
            clip_norm=self.random.choice([None, 1.0]),
        )
        options = options_of(config)
        options[8], options[26:] = 0.01, [1, 0, 10, 0, 1]
        return config, options

    def train_steps_(self) -> Arguments:
        layers = [self.random.randint(1, 3) for _ in range(self.random.randint(1, 3))]
        config, options = self.options()
        parameters = [t for n in layers for t in self.network(self.inputs, n, self.real)]
        state, at = [], 0
        for count in layers:
            mine = parameters[at : at + 2 * count]
            for _ in config.state_kinds[:-1]:
                state += [torch.zeros_like(tensor) for tensor in mine]
            at += 2 * count
        orders = [torch.randint(0, self.rows, (self.random.randint(0, 30),)) for _ in layers]
        table = torch.tensor([options] * len(layers), dtype=torch.float64)
        return [*self.rows_of_data(config.loss), orders, layers, parameters, state, table]

    def predict_rows(self) -> Arguments:
        x, columns, starts, _, _, _, scale, shift = self.rows_of_data("cross_entropy")
        rows = torch.randint(0, self.rows, (self.random.randint(0, 130),))
        parameters = self.network(self.inputs, self.random.randint(1, 3), self.real)
        return [x, columns, starts, scale, shift, rows, parameters, self.random.randrange(7)]

    def evaluate_rows(self) -> Arguments:
        rows = torch.randint(0, self.rows, (self.random.randint(0, 130),))
        parameters = self.network(self.inputs, self.random.randint(1, 3), self.real)
        config, options = self.options()
        table = torch.tensor(options, dtype=torch.float64)
        return [*self.rows_of_data(config.loss), rows, parameters, table]

    def cpu_isa(self) -> Arguments:
        return []

    def linear_plan(self) -> Arguments:
        return [self.rows, self.inputs, self.outputs, self.floating]

    def linear_plan_cuda(self) -> Arguments:
        return [*self.linear_plan(), 132, 90, 0]

    def cuda_archs(self) -> Arguments:
        return []

    def cuda_driver_version(self) -> Arguments:
        return []

    def blocked_plan(self) -> Arguments:
        return [self.rows, self.inputs, self.random.random() < 0.5, self.outputs]

    def blocked_plan_cuda(self) -> Arguments:
        return [self.rows, self.inputs, self.outputs, 4, False, 90, 99 << 10]

    def blocked_products_plan_cuda(self) -> Arguments:
        sizes = self.rows, 16 * self.inputs, 1, self.outputs, 2, False
        return [*sizes, 132, 90, self.random.choice([99, 227]) << 10]
