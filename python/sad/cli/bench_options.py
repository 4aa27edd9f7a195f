"""The options of `sad bench`, apart from the checks, which import PyTorch."""

from dataclasses import dataclass
from pathlib import Path

from sad.options import option


@dataclass(frozen=True)
class BenchOptions:
    """The options of `sad bench`."""

    quick: bool = option(False, flag="--quick", group="Cases", help="Measure a few small cases, in seconds.")
    full: bool = option(
        False, flag="--full", group="Cases", help="Measure all sizes that fit in memory. This takes hours on a CPU."
    )
    rows: int | None = option(None, group="Cases", help="Measure one case with N rows.")
    vocab: int | None = option(None, group="Cases", help="Measure one case with V vocabulary columns.")
    supervised: float | None = option(None, group="Cases", help="Measure one case with this fraction of supervised rows.")
    dtype: str | None = option(
        None, group="Cases", help="The dtype of all cases: float32, bfloat16 or float16. Default: each case's own dtype."
    )
    device: str = option("auto", help="auto (the GPU if there is one), cpu, cuda or cuda:N.")
    provider: list[str] = option([], help="Measure only this provider. Repeatable.")
    out: Path | None = option(None, group="Results", help="Write this new CSV file, case by case.")
    plot: Path | None = option(None, group="Results", help="Draw this plot from the CSV file. It needs matplotlib.")
    from_csv: Path | None = option(
        None, flag="--from", group="Results", help="Show the CSV file of an earlier run and measure nothing."
    )
