"""The batches of a run: random windows of the text, by seed and iteration alone."""
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from data import rng

BLOCK = 1000  # iterations whose batches are drawn at once


def draw_block(seeds: list[int], block: int, places: int, batch_size: int, empty=np.empty) -> np.ndarray:
    """The batches of iterations block * BLOCK and on: int32 offsets (BLOCK, S, B) in 0 .. places - 1.

    `empty` makes the array, if not in ordinary memory.
    """
    draws = empty((BLOCK, len(seeds), batch_size), dtype=np.int32)
    for i, seed in enumerate(seeds):
        draws[:, i] = rng(seed, "batches", block).integers(0, places, draws[:, i].shape, dtype=np.int32)
    return draws


class Batches:
    """The batches of iterations 0 .. end - 1, each block drawn in a thread while the one before is used."""

    def __init__(self, seeds: list[int], places: int, batch_size: int, end: int, empty=np.empty):
        self.args, self.end, self.pool = (places, batch_size, empty), end, ThreadPoolExecutor(1)
        self.seeds, self.drawn = seeds, {}

    def get(self, it: int, n: int) -> np.ndarray:
        """Those of n iterations from `it` on, or of fewer where a block ends: (n, S, B)."""
        block, drawn = it // BLOCK, self.drawn
        wanted = [b for b in (block, block + 1) if b == block or b * BLOCK < self.end]
        self.drawn: dict[int, Future] = {
            b: drawn[b] if b in drawn else self.pool.submit(draw_block, self.seeds, b, *self.args)
            for b in wanted}
        return self.drawn[block].result()[it % BLOCK:it % BLOCK + n]
