"""Embedding: a table of vectors, looked up by integers."""

from __future__ import annotations

import numpy as np

from dlc.errors import ArgumentError, explain
from dlc.frontend import functional as F
from dlc.frontend import init
from dlc.frontend.module import Module
from dlc.frontend.nn.linear import check_counts, check_device, empty_parameter
from dlc.ir.node import Node


class Embedding(Module):
    """Row ``i`` of a table for each integer ``i`` of the input.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows and columns of the weight.
    padding_idx : int, optional
        A row that starts at zero and that training leaves alone.
    max_norm : None
        Taken for PyTorch's sake.
    dtype : str

    Notes
    -----
    The rows start standard normal.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        *,
        device: object = None,
        dtype: object = "float32",
    ):
        super().__init__()
        check_device(self, device)
        if max_norm is not None:
            advice = "Rows are not scaled as they are looked up: that would change the weight."
            message = explain("Embedding: max_norm", "None", repr(max_norm), advice=advice)
            raise ArgumentError(message)
        check_counts(self, num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            expected = f"padding_idx within {num_embeddings} rows"
            raise ArgumentError(explain("Embedding", expected, str(padding_idx)))
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        self.weight = empty_parameter(num_embeddings, embedding_dim, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial values."""
        values = init.normal_(np.empty(self.weight.shape, self.weight.dtype))
        if self.padding_idx is not None:
            values[self.padding_idx] = 0
        self.weight.data = values

    def forward(self, input: Node) -> Node:
        """Integers of any shape to (..., embedding_dim)."""
        return F.embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
