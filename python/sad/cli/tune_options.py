"""The options of `sad tune`, apart from the checks, which import PyTorch."""

from dataclasses import dataclass
from pathlib import Path

from sad.options import option


@dataclass(frozen=True)
class TuneOptions:
    """The options of `sad tune`."""

    vocab_size: list[int] = option([], help="Vocabulary columns to measure. Repeatable. Default: four usual vocabularies.")
    dtype: list[str] = option(
        [], help="Dtype of the logits: float32, bfloat16 or float16. Repeatable. Default: bfloat16 and float32."
    )
    tokens: int = option(4096, help="Rows of a timed call, fewer if they do not fit in half of the GPU's memory.")
    device: str = option("cuda", help="cuda or cuda:N, the GPU to measure.")
    seconds: float = option(50.0, help="Time limit. What is measured until then is kept.")
    out: Path | None = option(None, help="The file to write. Default: the one that the kernels read, in the cache folder.")
