"""Silences the libraries in commands that show their own progress."""

from __future__ import annotations


def quiet_libraries() -> None:
    """Turns off the messages below errors, the progress bars and the warnings of transformers and accelerate."""
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers|accelerate")
