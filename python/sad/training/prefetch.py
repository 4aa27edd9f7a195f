"""Whether a worker process reads the teacher cache ahead of the step: the meaning of `dataloader_num_workers=-1`.

The DataLoader forks the worker. This is safe: the collator runs NumPy and single-threaded code of this package and of
PyTorch (workers have one thread, and a parallel region with one thread starts no other), and it never touches the GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

from transformers.utils import logging

from sad.teacher_cache.reader import TeacherCache
from sad.training.config import SADConfig

AUTO = -1
_SHARED_MEMORY = Path("/dev/shm")  # through which a worker passes its batches on Linux
_BATCHES = 4  # in shared memory at once: two prefetched, one that is being copied, one that is being made
_SHARE = 0.5  # of the free shared memory that they may take

logger = logging.get_logger(__name__)


def reading_workers(args: SADConfig, cache: TeacherCache | None) -> int:
    """Returns the number of DataLoader workers.

    `AUTO` means one worker if a training on a GPU reads a cache, so that the GPU does not wait for the disk. It means none
    if there is no cache, on a CPU, if worker processes are not forked (Windows, macOS), and if the shared memory is too
    small for the batches, as by default in Docker.

    Args:
        args: The configuration.
        cache: The teacher cache, if there is one.
    """
    if args.dataloader_num_workers != AUTO:
        return args.dataloader_num_workers
    if args.dataloader_prefetch_factor is not None or args.dataloader_persistent_workers:  # they need a worker
        return 1
    if cache is None or args.device.type == "cpu" or _start_method(args) != "fork":
        return 0
    examples = max(args.per_device_train_batch_size, args.per_device_eval_batch_size)
    needed = _BATCHES * examples * args.max_length * cache.row_bytes
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else needed
    if needed > _SHARE * free:
        logger.warning(
            "The teacher cache is read in the main process, because its batches need up to %.0f MB of shared memory, and "
            "%.0f MB are free. To read ahead, enlarge /dev/shm (docker run --shm-size) or set dataloader_num_workers to 1.",
            needed / _SHARE / 1e6,
            free / 1e6,
        )
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else each worker warns, although it tokenizes nothing
    return 1


def _start_method(args: SADConfig) -> str:
    """Returns how processes are started, without fixing it for the rest of the program."""
    own = args.dataloader_multiprocessing_context
    return own or multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
