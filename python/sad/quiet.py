"""Silences messages of the libraries."""

from __future__ import annotations

import logging

# Logger -> start of a message that it prints when it is imported and that does not concern any command of `sad`.
IRRELEVANT = {
    # An optional kernel for 4-bit products on CPUs with avx512_bf16. Without it bitsandbytes uses its own code.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
}


def drop_irrelevant_messages() -> None:
    """Drops the messages of `IRRELEVANT`, and no others of their loggers. Imports no library."""
    for logger, start in IRRELEVANT.items():
        logging.getLogger(logger).addFilter(lambda record, start=start: not str(record.msg).startswith(start))


def quiet_libraries() -> None:
    """Turns off the messages below errors, the progress bars and the warnings of transformers and accelerate.

    For commands that show their own progress.
    """
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers|accelerate")
