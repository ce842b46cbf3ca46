"""The processes of one run: this one alone, or those that torchrun starts, each with a share of the seeds.

Seeds are independent, so that nothing crosses between processes but rows of the log, weights to be saved, and
the wish to stop. All of that lies in the host's memory, and goes by gloo whatever the device.
"""
import os
from datetime import timedelta

import torch
import torch.distributed as dist

from config import UserError

TIMEOUT = timedelta(seconds=55)  # a rank that is silent for so long counts as dead
START_TIMEOUT = timedelta(minutes=15)  # until all have compiled


class Ranks:
    """Rank `rank` of `size`, as torchrun's environment says; rank 0 alone reads and writes the run's folder.

    Each method is called by every rank, in the same order. Raises UserError if another rank has died.
    """

    def __init__(self):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.group = None  # of all ranks, with torch.distributed's own timeout

    def __enter__(self):
        if self.size > 1:
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
            dist.init_process_group("gloo", timeout=START_TIMEOUT)
        return self

    def __exit__(self, *_):
        if self.size > 1:
            dist.destroy_process_group()

    def share(self, n: int) -> slice:
        """This rank's part of n seeds. Raises UserError if there are more ranks than seeds."""
        if self.size > n:
            raise UserError(f"{self.size} processes for num_seeds = {n}: a seed trains in one process; "
                            f"expected at most {n} of them, or more seeds")
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def from_first(self, call):
        """What `call()` gives on rank 0, on every rank. If it raises UserError there, the others just end."""
        result = None
        if self.rank == 0:
            try:
                result = call()
            except UserError as e:
                result = e
        if self.size > 1:
            box = [result]
            self.talk(dist.broadcast_object_list, box)
            result = box[0]
        if isinstance(result, UserError):
            raise result if self.rank == 0 else SystemExit(2)
        return result

    def gather(self, value) -> list | None:
        """The values of all ranks in rank 0, None in the others."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.rank == 0 else None
        self.talk(dist.gather_object, value, values)
        return values

    def most(self, number: int) -> int:
        """The greatest of the ranks' whole numbers or truth values."""
        if self.size == 1:
            return number
        box = torch.tensor([int(number)])
        self.talk(dist.all_reduce, box, dist.ReduceOp.MAX)
        return int(box)

    def ready(self) -> None:
        """Wait until every rank has come here; from now on TIMEOUT holds."""
        if self.size > 1:
            self.talk(dist.barrier)
            self.group = dist.new_group(timeout=TIMEOUT, backend="gloo")

    def talk(self, collective, *args) -> None:
        """Do a collective operation."""
        try:
            collective(*args, group=self.group)
        except RuntimeError as e:
            why = str(e).split(". ")[0]
            raise UserError(f"rank {self.rank}: another process of this run has died; what was saved is "
                            f"kept, go on with --init_from=resume ({why})") from None
