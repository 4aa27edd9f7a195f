"""The options of `sad cache`. This module imports neither PyTorch nor transformers, so `sad --help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass

from sad.errors import InputError
from sad.options import option
from sad.trajectories.options import check_encoding, encoding_option

DTYPES = ("uint16", "float32")  # storage of the log-probabilities
HIDDEN_DTYPES = ("bfloat16", "float16", "float32")  # storage of hidden states
TOP_K = 64
BATCH_TOKENS = 4096

_INPUT, _CACHE, _TEACHER = "Input", "Cache", "Teacher"
_ENDPOINT = "Teacher behind a URL"
APIS = ("auto", "vllm", "sglang", "echo")  # forms of the requests to a server


@dataclass(kw_only=True)
class CacheOptions:
    """The inputs and the format of a cache.

    Each field has its description in its `help` metadata, which `sad cache --help` shows.

    Raises:
        InputError: A value is out of range.
    """

    teacher: str | None = option(None, help="Folder of the teacher model, if there is no --endpoint.", group=_INPUT)
    data: list[str] = option(help="Trajectories: a file or a folder. May be repeated.", group=_INPUT)
    out: str = option(help="Folder of the cache, or a URL that fsspec can open.", group=_CACHE)
    top_k: int | None = option(
        None, help=f"Log-probabilities to store per supervised token. Default: {TOP_K}.", group=_CACHE
    )
    hidden: bool = option(
        False,
        flag="--hidden",
        help="Store the teacher's last hidden states and its head instead of log-probabilities: the exact loss.",
        group=_CACHE,
    )
    dtype: str | None = option(
        None,
        help="Storage. Log-probabilities: uint16 (default) or float32. With --hidden bfloat16, float16 or float32. Default "
        "with --hidden: the teacher's dtype if it has 16 bits, else bfloat16.",
        group=_CACHE,
    )
    format: str | None = encoding_option("format", _INPUT)
    source: str = encoding_option("source", _INPUT)
    long: str = encoding_option("long", _INPUT)
    long_context: float = encoding_option("long_context", _INPUT)
    long_head: int = encoding_option("long_head", _INPUT)
    unroll: str = encoding_option("unroll", _INPUT)
    kept_ids: str = encoding_option("kept_ids", _INPUT)
    chat_template: str | None = encoding_option("chat_template", _INPUT)
    on_error: str = encoding_option("on_error", _INPUT)
    observe: bool = option(
        False,
        flag="--observe",
        help="Store observation tokens too, for `sad train` with --lambda-observe above 0.",
        group=_CACHE,
    )
    max_length: int = option(512, help="Tokens per trajectory; must equal --max-length of `sad train`.", group=_INPUT)
    vocab_size: int | None = option(
        None,
        help="Columns of the teacher's softmax. Default: all columns of its head. Set it if the student has fewer.",
        group=_CACHE,
    )
    tokenizer: str | None = option(None, help="Folder of the tokenizer. Default: the teacher's folder.", group=_INPUT)
    teacher_dtype: str = option("auto", help="auto (as saved), float32, bfloat16 or float16.", group=_TEACHER)
    teacher_quantization: str | None = option(
        None, help="8bit or 4bit (needs bitsandbytes). Default: no quantization.", group=_TEACHER
    )
    trust_remote_code: bool = option(
        False,
        flag="--trust-remote-code",
        group=_TEACHER,
        help="Run Python code in the teacher's folder, if its config names any. Default: refuse such a folder.",
    )
    batch_tokens: int = option(BATCH_TOKENS, help="Tokens per batch of the teacher, padding included.", group=_TEACHER)
    use_cpu: bool = option(False, flag="--use-cpu", help="Run on the CPU even if there is a GPU.", group=_TEACHER)
    endpoint: str | None = option(
        None, help="URL of a vLLM or SGLang server, with the version: http://localhost:8000/v1.", group=_ENDPOINT
    )
    model: str | None = option(None, help="Name of the teacher on the server.", group=_ENDPOINT)
    api: str = option(
        "auto", help="Form of the requests: vllm, sglang, echo, or auto to find it out (docs/cache.md).", group=_ENDPOINT
    )
    api_key_env: str = option("OPENAI_API_KEY", help="Environment variable with the key of the server.", group=_ENDPOINT)
    concurrency: int = option(8, help="Number of parallel requests.", group=_ENDPOINT)
    requests_per_minute: float | None = option(
        None, help="Maximum number of requests per minute. Default: no limit.", group=_ENDPOINT
    )
    timeout: float = option(300.0, help="Timeout of a request in seconds.", group=_ENDPOINT)

    def __post_init__(self) -> None:
        if self.hidden and self.top_k is not None:
            remedy = "Leave one of them out: the hidden states determine all log-probabilities."
            raise InputError("top_k", "nothing with hidden", str(self.top_k), remedy)
        if not self.hidden:
            self.top_k = TOP_K if self.top_k is None else self.top_k
            self.dtype = DTYPES[0] if self.dtype is None else self.dtype
        for name, least in (("top_k", 1), ("max_length", 2), ("batch_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                remedy = "Choose a value in that range."
                raise InputError(name, f"a whole number >= {least}", str(value), remedy)
        check_storage(self.dtype, self.hidden)
        check_encoding(self, self.max_length)
        self._check_teacher()
        if not self.data:
            raise InputError("data", "a file of trajectories", "nothing", "Give --data; repeat it for more files.")

    def _check_teacher(self) -> None:
        """Checks that there is one teacher: a folder, or a model on a server with the folder of its tokenizer."""
        if self.endpoint is None:
            for name in ("model", "requests_per_minute"):
                if getattr(self, name) is not None:
                    remedy = f"Add --endpoint, or leave out --{name.replace('_', '-')}."
                    raise InputError(name, "nothing without endpoint", repr(getattr(self, name)), remedy)
            if self.teacher is None:
                remedy = "Give --teacher FOLDER, or --endpoint URL and --model NAME."
                raise InputError("teacher", "a folder with a model", "none", remedy)
            return
        if self.hidden:
            remedy = "Leave out --hidden: a server sends log-probabilities only."
            raise InputError("hidden", "nothing with endpoint", "True", remedy)
        for name, default in (("teacher", None), ("teacher_quantization", None), ("teacher_dtype", "auto")):
            if getattr(self, name) != default:
                remedy = f"Leave out --{name.replace('_', '-')}: the server runs the teacher. Its name goes into --model."
                raise InputError(name, "nothing with endpoint", repr(getattr(self, name)), remedy)
        for name, what in (("model", "the teacher's name on the server"), ("tokenizer", "a folder with its tokenizer")):
            if getattr(self, name) is None:
                raise InputError(name, f"{what}, with endpoint", "none", f"Give --{name}.")
        if self.api not in APIS:
            raise InputError("api", "one of " + ", ".join(APIS), repr(self.api), "Choose one of these.")
        if self.concurrency < 1:
            raise InputError("concurrency", "a whole number >= 1", str(self.concurrency), "8 is usual.")


def check_storage(dtype: str | None, hidden: bool) -> None:
    """Checks the storage of log-probabilities or, with `hidden`, of hidden states. None: the default.

    Raises:
        InputError: The kind of cache does not have this storage.
    """
    dtypes = HIDDEN_DTYPES if hidden else DTYPES
    if dtype is not None and dtype not in dtypes:
        expected = f"one of {', '.join(dtypes)} for {'hidden states' if hidden else 'log-probabilities'}"
        raise InputError("dtype", expected, repr(dtype), "Choose one of these.")
