"""From a teacher's folder and files of trajectories to a cache: what `sad cache` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sad import models
from sad.errors import InputError
from sad.model_parts import model_digest
from sad.teacher_cache.folder import CacheFolder
from sad.teacher_cache.metadata import DTYPES, CacheMetadata, tokenizer_digest
from sad.teacher_cache.teacher import head_columns
from sad.teacher_cache.writer import BATCH_TOKENS, CacheReport, read_shards, write_teacher_cache
from sad.trajectories.encode import encode_all
from sad.trajectories.trajectory import read_jsonl


@dataclass
class CacheOptions:
    """What a cache is made of.

    Args:
        teacher: Folder of the teacher.
        data: Files of trajectories.
        out: Folder or URL of the cache.
        top_k: Tokens listed per supervised token.
        dtype: How their log-probabilities are stored: "uint16" or "float32".
        format: How the trajectories are written, where the files do not say.
        max_length: Longer ones are cut; as in the training that reads the cache.
        vocab_size: The softmax runs over this many columns; None: all that the teacher's head has.
        tokenizer: Folder of the tokenizer, where the teacher's has none.
        teacher_dtype: A name in `models.DTYPES`.
        teacher_quantization: "8bit" or "4bit".
        batch_tokens: Tokens that the teacher reads at once, padding included.
        use_cpu: Run on the CPU though there is a GPU.

    Raises:
        InputError: A value is out of range.
    """

    teacher: str
    data: list[str]
    out: str
    top_k: int = 64
    dtype: str = "uint16"
    format: str | None = None
    max_length: int = 512
    vocab_size: int | None = None
    tokenizer: str | None = None
    teacher_dtype: str = "auto"
    teacher_quantization: str | None = None
    batch_tokens: int = BATCH_TOKENS
    use_cpu: bool = False

    def __post_init__(self) -> None:
        for name, least in (("top_k", 1), ("max_length", 2), ("batch_tokens", 1)):
            if getattr(self, name) < least:
                remedy = "Choose a value in that range."
                raise InputError(name, f"a whole number >= {least}", str(getattr(self, name)), remedy)
        if self.dtype not in DTYPES:
            raise InputError("dtype", "one of " + ", ".join(DTYPES), repr(self.dtype), "Choose one of these.")
        if not self.data:
            raise InputError("data", "a file of trajectories", "nothing", "Give --data, more than once for more files.")
        models.check_dtype("teacher_dtype", self.teacher_dtype)
        models.check_quantization(self.teacher_quantization)


def make_cache(options: CacheOptions, say: Callable[[str], None] = print) -> CacheReport:
    """Runs the teacher over the trajectories, and leaves a finished cache.

    Under `accelerate launch` every process calls this.

    Args:
        options: What of.
        say: Told what was read and written, in one process only.

    Returns:
        The cache in numbers.

    Raises:
        InputError: Something cannot be used. What a run before this one wrote is as it was.
    """
    state = PartialState(cpu=True) if options.use_cpu else PartialState()
    announce = say if state.is_main_process else lambda message: None
    read_shards(CacheFolder(options.out))  # whether it is a cache's, before anything large is loaded
    folder = models.check_model_dir("teacher", options.teacher)
    tokenizer = _tokenizer(options)
    examples = []
    for path in options.data:
        trajectories = read_jsonl(path)
        corpus = encode_all(trajectories, tokenizer, format=options.format, max_length=options.max_length)
        announce(f"{path}: read {len(trajectories)} trajectories; {corpus.summary()}")
        examples += corpus.examples
    if not examples:
        remedy = "See with `sad inspect` what was found; --format says how the file is written."
        raise InputError("data", "trajectories with reasoning or actions", "none", remedy)
    teacher = _teacher(options, state, tokenizer)
    dtype = str(teacher.dtype).removeprefix("torch.")
    announce(f"teacher: {type(teacher).__name__}, {teacher.num_parameters():,} parameters, {dtype}")
    settings = CacheMetadata(
        top_k=options.top_k,
        vocab_size=_vocab_size(options.vocab_size, teacher, tokenizer),
        dtype=options.dtype,
        tokenizer=tokenizer_digest(tokenizer),
        teacher=model_digest(teacher),
        teacher_dtype=options.teacher_quantization or dtype,
        teacher_name=folder.resolve().name,
    )
    report = write_teacher_cache(teacher, examples, options.out, settings, batch_tokens=options.batch_tokens)
    announce(
        f"{options.out}: {report.tokens} supervised tokens, {report.bytes_per_token:.1f} bytes each\n"
        f"the {options.top_k} listed have {report.mass:.2%} of the teacher's probability, {report.mass_low:.2%} in the 1st "
        f"percentile; to a student who finds all others alike they hide {report.tail_spread:.4f} nats of KL a token"
    )
    return report


def _tokenizer(options: CacheOptions) -> PreTrainedTokenizerBase:
    folder = options.tokenizer or options.teacher
    tokenizer = models.load_tokenizer("teacher", folder)
    if tokenizer is None:
        remedy = "Give the folder of one, such as the student's, with --tokenizer."
        raise InputError("teacher's tokenizer", "a folder with a tokenizer", f"none in {folder!r}", remedy)
    return tokenizer


def _teacher(options: CacheOptions, state: PartialState, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    quantization = {"quantization": options.teacher_quantization, "device": state.device}
    teacher = models.load_model("teacher", Path(options.teacher), dtype=options.teacher_dtype, **quantization)
    models.check_fits("teacher", teacher, tokenizer, options.max_length)
    return teacher if options.teacher_quantization is not None else teacher.to(state.device)


def _vocab_size(asked: int | None, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    columns, used = head_columns(teacher), max(tokenizer.get_vocab().values()) + 1
    if asked is not None and not used <= asked <= columns:
        expected = f"from the tokenizer's {used} ids to the {columns} columns of the teacher's head"
        raise InputError("vocab_size", expected, str(asked), "Leave it out, or give the size of the student's head.")
    return columns if asked is None else asked
