"""Embeddings of earlier steps, so that few images are assigned to prototypes as many would be (README §4)."""

from __future__ import annotations

import torch
from mmengine.dist import all_gather, get_rank, get_world_size
from torch import Tensor, nn


class EmbeddingQueue(nn.Module):
    """The last `length` embeddings of each global crop's foreground; every process holds all of them.

    So a checkpoint of the main process has the whole state, and a training may be resumed on another number of
    processes.

    Args:
        length: embeddings of a crop.
        dim: their width.
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(2, length, dim))
        self.register_buffer("pushed", torch.zeros(2, dtype=torch.int64))  # so far, also those that have left

    def own_rows(self, crop: int) -> Tensor:
        """This process's part (n, dim) of a crop's queue, its share of the assignment; none until it is full."""
        if int(self.pushed[crop]) < self.rows.shape[1]:
            return self.rows[crop, :0]
        return self.rows[crop, get_rank() :: get_world_size()]

    @torch.no_grad()
    def push(self, crop: int, embeddings: Tensor, masks: Tensor, random: Tensor, count: int) -> None:
        """Let `count` embeddings of the foreground join, drawn over the images of all processes, or as many as it has.

        Args:
            crop: 0 or 1.
            embeddings: (n, dim) of this process's tokens.
            masks: (n,), 1 for the foreground.
            random: (n,) in [0, 1); tokens of low numbers are drawn. They belong to the images, so that it does not
                matter which process has which.
            count: at most the length of the queue.
        """
        low, places = torch.where(masks > 0, random, 2.0).topk(min(count, len(random)), largest=False)
        low, found = torch.cat(all_gather(low)), torch.cat(all_gather(embeddings[places].contiguous()))
        low, places = low.topk(min(count, len(low)), largest=False)
        length = self.rows.shape[1]
        slots = (self.pushed[crop] + torch.arange(len(low), device=low.device)) % length
        is_foreground = low < 1
        self.rows[crop, slots] = torch.where(is_foreground[:, None], found[places], self.rows[crop, slots])
        self.pushed[crop] += is_foreground.sum()
