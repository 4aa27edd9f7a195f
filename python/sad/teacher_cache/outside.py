"""Makes a cache of a teacher that runs elsewhere: behind a URL, or in the program that wrote a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sad.errors import InputError
from sad.hub import model_folder
from sad.teacher_cache.endpoint import open_endpoint
from sad.teacher_cache.examples import load_cache_tokenizer, read_examples
from sad.teacher_cache.filling import Example, Source, write_rows
from sad.teacher_cache.importing import FileTeacher
from sad.teacher_cache.metadata import CacheMetadata, supervised_rows, tokenizer_digest
from sad.teacher_cache.storage import CacheFolder
from sad.teacher_cache.writer import CacheReport, read_shards

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sad.teacher_cache.import_options import ImportOptions
    from sad.teacher_cache.options import CacheOptions


def fill_from_endpoint(
    options: CacheOptions, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> CacheReport:
    """Requests the log-probabilities of all examples that the cache lacks.

    Args:
        options: The options of the command.
        examples: Examples with tokens and labels.
        tokenizer: The teacher's tokenizer.
        say: Receives progress messages.

    Returns:
        Statistics of the cache.

    Raises:
        InputError: The server cannot be used. The rows that it has sent until then are in the cache.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        remedy = "Run `sad cache` without accelerate launch; --concurrency sets the number of parallel requests."
        raise InputError("endpoint", "one process", f"{os.environ['WORLD_SIZE']} processes", remedy)
    metadata = _metadata(options, tokenizer)
    teacher = open_endpoint(
        options.endpoint,
        options.model,
        tokenizer,
        top_k=metadata.top_k,
        vocab_size=metadata.vocab_size,
        api=options.api,
        api_key=os.environ.get(options.api_key_env),
        concurrency=options.concurrency,
        requests_per_minute=options.requests_per_minute,
        timeout=options.timeout,
        observe=options.observe,
        say=say,
    )

    def source(missing: Sequence[Example]) -> object:
        form = teacher.check(missing)
        say(f"{options.endpoint}: {options.model}, form {form}, {len(missing)} requests, {options.concurrency} at a time")
        return teacher.run(missing)

    return _fill(source, examples, options, metadata, say)


def import_file(options: ImportOptions, say: Callable[[str], None] = print) -> CacheReport:
    """Writes a cache from the log-probabilities in files: the work of `sad cache import`.

    Args:
        options: Inputs and format of the cache.
        say: Receives progress messages.

    Returns:
        Statistics of the cache.

    Raises:
        InputError: An input cannot be used, or an example has no record.
    """
    read_shards(CacheFolder(options.out))
    tokenizer = load_cache_tokenizer(options.tokenizer)
    metadata = _metadata(options, tokenizer)
    examples = read_examples(options, tokenizer, say)
    teacher = FileTeacher(options.file, metadata.top_k, metadata.vocab_size, tokenizer, observe=options.observe, say=say)
    return _fill(teacher.run, examples, options, metadata, say)


def _fill(
    source: Source,
    examples: Sequence[Example],
    options: CacheOptions | ImportOptions,
    metadata: CacheMetadata,
    say: Callable[[str], None],
) -> CacheReport:
    labelled = [example for example in examples if len(supervised_rows(example["span_ids"], metadata.observe))]
    report = write_rows(source, labelled, options.out, metadata)
    say(
        f"{options.out}: {report.tokens} supervised tokens, {report.bytes_per_token:.1f} bytes per token\n"
        f"the top {metadata.top_k} tokens have {report.mass:.2%} of the teacher's probability on average, "
        f"{report.mass_low:.2%} at the 1st percentile\n"
        f"for a student with a uniform tail, the loss misses at most {report.tail_spread:.4f} nats of KL per token\n"
        f"the stored entropies are lower bounds: the teacher's are up to {report.tail_spread:.4f} nats higher on average"
    )
    return report


def _metadata(options: CacheOptions | ImportOptions, tokenizer: PreTrainedTokenizerBase) -> CacheMetadata:
    """Returns the identity of the cache. The name of the teacher is all that is known of its weights."""
    return CacheMetadata(
        top_k=options.top_k,
        vocab_size=_vocab_size(options.vocab_size, options.tokenizer, tokenizer),
        dtype=options.dtype,
        tokenizer=tokenizer_digest(tokenizer),
        teacher=hashlib.sha256(f"model by name: {options.model}".encode()).hexdigest(),
        teacher_dtype="unknown",
        observe=options.observe,
        teacher_name=options.model,
        exact_entropy=False,
    )


def _vocab_size(requested: int | None, folder: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the columns of the softmax: as requested, as in the config beside the tokenizer, or the ids in use."""
    used = max(tokenizer.get_vocab().values()) + 1
    if requested is not None:
        if requested < used:
            remedy = "Leave it out, or give the size of the student's head."
            raise InputError("vocab_size", f"at least the tokenizer's {used} ids", str(requested), remedy)
        return requested
    try:
        config = json.loads((model_folder("tokenizer", folder, weights=False) / "config.json").read_text())
        columns = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    except (OSError, ValueError, AttributeError):
        columns = None
    return columns if isinstance(columns, int) and columns >= used else used
