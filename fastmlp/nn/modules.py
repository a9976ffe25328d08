"""All modules under the name by which pickles of earlier versions know them."""

from fastmlp.nn.layers import CrossEntropyLoss, Linear, LinearActivation, LinearReLU, ReLU
from fastmlp.nn.mlp import MLP

__all__ = ["MLP", "CrossEntropyLoss", "Linear", "LinearActivation", "LinearReLU", "ReLU"]
