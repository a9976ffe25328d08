"""Offer layers whose forward and backward are called by hand, as in a first course."""

from fastmlp.manual.classifier import Classifier, Score
from fastmlp.manual.layers import FullyConnectedLayer, ReLU, SoftmaxCrossEntropy

__all__ = ["Classifier", "FullyConnectedLayer", "ReLU", "Score", "SoftmaxCrossEntropy"]
