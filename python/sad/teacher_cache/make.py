"""Makes a cache from a teacher's folder and trajectory files: the work of `sad cache`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sad import interrupts
from sad.errors import InputError
from sad.hub import is_local
from sad.model_parts import model_digest
from sad.models import check_dtype, check_fits, check_model_dir, check_quantization, load_model
from sad.teacher_cache.examples import load_cache_tokenizer, read_examples
from sad.teacher_cache.head import head_of, hidden_metadata
from sad.teacher_cache.metadata import HIDDEN, CacheMetadata, logit_columns, tokenizer_digest
from sad.teacher_cache.options import CacheOptions
from sad.teacher_cache.outside import fill_from_endpoint
from sad.teacher_cache.storage import CacheFolder
from sad.teacher_cache.writer import CacheReport, read_shards, write_teacher_cache


def make_cache(options: CacheOptions, say: Callable[[str], None] = print) -> CacheReport:
    """Runs the teacher over the trajectories and writes a finished cache.

    Under `accelerate launch` every process calls this function.

    Args:
        options: Inputs and format of the cache.
        say: Receives progress messages, in the main process only.

    Returns:
        Statistics of the cache.

    Raises:
        InputError: An input cannot be used. Files of an earlier run stay as they are.
    """
    check_dtype("teacher_dtype", options.teacher_dtype)
    check_quantization(options.teacher_quantization)
    state = PartialState(cpu=True) if options.use_cpu else PartialState()
    announce = say if state.is_main_process else lambda message: None
    read_shards(CacheFolder(options.out))  # reject a folder with other files before loading anything large
    folder = None if options.teacher is None else check_model_dir("teacher", options.teacher)
    folder_of_tokenizer = options.tokenizer or options.teacher or ""
    tokenizer = load_cache_tokenizer(folder_of_tokenizer, trust_remote_code=options.trust_remote_code)
    examples = read_examples(options, tokenizer, announce)
    if folder is None:
        return fill_from_endpoint(options, examples, tokenizer, announce)
    teacher = _load_teacher(options, state, tokenizer)
    dtype = str(teacher.dtype).removeprefix("torch.")
    announce(f"teacher: {type(teacher).__name__}, {teacher.num_parameters():,} parameters, {dtype}")
    metadata = CacheMetadata(
        **_of_kind(options, teacher, _vocab_size(options.vocab_size, teacher, tokenizer)),
        tokenizer=tokenizer_digest(tokenizer),
        teacher=model_digest(teacher),
        teacher_dtype=options.teacher_quantization or dtype,
        observe=options.observe,
        teacher_name=folder.resolve().name if is_local(options.teacher) else options.teacher,
    )
    interrupts.explain(lambda: f"Complete shards in {options.out} are kept. To continue, repeat the command.")
    report = write_teacher_cache(teacher, examples, options.out, metadata, batch_tokens=options.batch_tokens)
    if metadata.is_hidden:
        announce(
            f"{options.out}: {report.tokens} supervised tokens, {report.bytes_per_token:.1f} bytes per token, and "
            f"{report.head_bytes / 1e6:.1f} MB for the head\nhidden states in {metadata.dtype} of a teacher in {dtype}"
        )
        return report
    announce(
        f"{options.out}: {report.tokens} supervised tokens, {report.bytes_per_token:.1f} bytes per token\n"
        f"the top {options.top_k} tokens have {report.mass:.2%} of the teacher's probability on average, "
        f"{report.mass_low:.2%} at the 1st percentile\n"
        f"for a student with a uniform tail, the loss misses {report.tail_spread:.4f} nats of KL per token"
    )
    return report


def _of_kind(options: CacheOptions, teacher: PreTrainedModel, vocab_size: int) -> dict[str, Any]:
    """Returns the fields of the metadata that depend on what the cache stores."""
    if not options.hidden:
        return {"top_k": options.top_k, "vocab_size": vocab_size, "dtype": options.dtype}
    head = head_of(teacher, vocab_size)
    own = str(head.weight.dtype).removeprefix("torch.")
    dtype = options.dtype or (own if own in ("bfloat16", "float16") else "bfloat16")
    return {"kind": HIDDEN, "top_k": 0, "dtype": dtype, **hidden_metadata(head)}


def _load_teacher(options: CacheOptions, state: PartialState, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    teacher = load_model(
        "teacher",
        Path(options.teacher),
        dtype=options.teacher_dtype,
        quantization=options.teacher_quantization,
        device=state.device,
        trust_remote_code=options.trust_remote_code,
    )
    check_fits("teacher", teacher, tokenizer, options.max_length)
    return teacher if options.teacher_quantization is not None else teacher.to(state.device)


def _vocab_size(requested: int | None, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    columns, used = logit_columns(teacher), max(tokenizer.get_vocab().values()) + 1
    if requested is not None and not used <= requested <= columns:
        expected = f"from the tokenizer's {used} ids to the {columns} columns of the teacher's head"
        raise InputError("vocab_size", expected, str(requested), "Leave it out, or give the size of the student's head.")
    return columns if requested is None else requested
