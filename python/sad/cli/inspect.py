"""`sad inspect`: shows which tokens of a trajectory file are reasoning, actions and observations."""

from dataclasses import dataclass
from pathlib import Path

import typer

from sad.cli.flags import takes
from sad.errors import InputError
from sad.options import option
from sad.trajectories.options import check_encoding, encoding_option

HTML_LIMIT = 100
UNPARSED_LIMIT = {"terminal": 20, "html": 500}
KINDS = ((1, "reason", "reasoning"), (2, "act", "action"), (3, "observe", "observation"))  # SpanKind, color, label
TABLE_STYLES = {"reason": "blue", "act": "red", "observe": "color(65)", "none": ""}
PAPER_LENGTH = 512  # the default of --max-length in `sad train`


@dataclass(frozen=True)
class InspectOptions:
    """The options of `sad inspect`."""

    file: Path = option(
        positional=True, help="Trajectories: a file (JSON Lines, JSON, parquet, gzipped or not) or a folder."
    )
    source: str = encoding_option("source")
    format: str | None = encoding_option("format", flag="--format -f")
    tokenizer: str | None = option(
        None, flag="--tokenizer -t", help="Folder or model name of a tokenizer. Without it lengths are in characters."
    )
    html: Path | None = option(None, help="Write a self-contained HTML page to this new file.")
    limit: int | None = option(
        None, flag="--limit -n", help="Number of trajectories to show. Default: 3 in the terminal, 100 on the page."
    )
    id: list[str] = option([], help="Show only the trajectory with this id. Repeatable.")
    max_length: int | None = option(
        None, help="Maximum number of tokens per example, as in `sad train` (512 there). It needs --tokenizer."
    )
    long: str = encoding_option("long")
    long_context: float = encoding_option("long_context")
    long_head: int = encoding_option("long_head")
    unroll: str = encoding_option("unroll")
    kept_ids: str = encoding_option("kept_ids")
    chat_template: str | None = encoding_option("chat_template")
    on_error: str = encoding_option(
        "on_error",
        default="skip",
        help="Trajectories that cannot be read or labelled. skip: list them under `refused`; stop: fail as a training does.",
    )
    include_prefix: bool = option(True, help="Whether a span includes its prefix, such as `Reasoning:`.")

    def __post_init__(self) -> None:
        for flag, value, least in (("--limit", self.limit, 0), ("--max-length", self.max_length, 1)):
            if value is not None and value < least:
                raise InputError(flag, f"an integer of at least {least}", str(value), "Raise it, or remove the option.")
        check_encoding(self, self.max_length)


@takes(InspectOptions)
def command(options: InspectOptions) -> None:
    """Show which tokens of a trajectory file are reasoning (blue), actions (red) and observations (grey-green).

    Prints the overlay of the first trajectories, the span lengths of all trajectories, and the lines that could not be
    parsed.
    """
    from sad.errors import printable
    from sad.files import check_new_file
    from sad.trajectories.command_options import encoding_keywords
    from sad.trajectories.inspection import inspect_trajectories
    from sad.trajectories.read import read_data
    from sad.trajectories.refused import stop_error
    from sad.trajectories.tokenizers import load_tokenizer

    file, ids, page = options.file, options.id, options.html
    check_new_file("--html", page)
    encoding = encoding_keywords(options, options.max_length)
    recognized: list[str] = []
    trajectories, refused = read_data(file, options.source, options.on_error, recognized.append)
    if ids:
        missing = set(ids) - {trajectory.id for trajectory in trajectories}
        if missing:
            remedy = f"The first id is {trajectories[0].id!r}." if trajectories else "No trajectory can be read."
            raise InputError("--id", f"ids in {file}", ", ".join(sorted(missing)), remedy)
        trajectories = [trajectory for trajectory in trajectories if trajectory.id in ids]
    if not trajectories and not refused:
        raise InputError(str(file), "at least one trajectory", "none", "Check that the file is complete.")
    in_terminal, on_page = (3, HTML_LIMIT) if options.limit is None else (options.limit, options.limit)
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer and trajectories else None
    if tokenizer is not None:
        encoding = encoding_keywords(options, options.max_length, tokenizer)
    inspection = inspect_trajectories(
        trajectories,
        tokenizer,
        include_prefix=options.include_prefix,
        keep=max(in_terminal, on_page if page else 0),
        refused=refused,
        **encoding,
    )
    if not inspection.lengths.trajectories:
        raise stop_error(inspection.refused, len(inspection.refused), "")
    typer.echo(printable(f"{file}: {'; '.join(recognized)}"))
    _print(inspection, in_terminal, options.max_length)
    if page is not None:
        _write_page(inspection, on_page, options)
        typer.echo(printable(f"page: {page}"))


def _pieces(item):
    from sad.report.overlay import span_pieces, token_pieces

    if item.encoded is None:
        return span_pieces(item.segmentation.text, [*item.segmentation.spans, *item.segmentation.observations])
    encoded = item.encoded
    text = item.segmentation.text
    return token_pieces(text, encoded.offsets, encoded.span_ids, truncated=encoded.truncated)


def _summary(item) -> str:
    """Describes the spans and the tokens of one trajectory."""
    spans = [sum(span.kind == kind for span in item.segmentation.spans) for kind in (1, 2)]
    words = f"{spans[0]} reasoning, {spans[1]} action and {len(item.segmentation.observations)} observation spans"
    if item.encoded is None:
        return f"{words}, {len(item.segmentation.text)} characters"
    ids = item.encoded.span_ids
    truncated = f", {item.encoded.truncated} tokens truncated" if item.encoded.truncated else ""
    counts = ", ".join(f"{ids.count(kind)} {label}" for kind, _, label in KINDS)
    return f"{words}; {len(ids)} tokens: {counts}{truncated}"


def _totals(inspection) -> str:
    """Describes the whole file."""
    lengths = inspection.lengths
    counts = (
        (inspection.with_both, "with reasoning and actions"),
        (inspection.with_reason - inspection.with_both, "with reasoning only"),
        (inspection.with_act - inspection.with_both, "with actions only"),
        (inspection.with_none, "with neither"),
        (lengths.total, lengths.unit),
        (len(inspection.refused), "refused"),
    )
    return ", ".join([f"{lengths.trajectories} trajectories", *(f"{count} {what}" for count, what in counts if count)])


def _training_facts(inspection, max_length: int | None) -> list[str]:
    """Describes what a training gets: one line of counts, then one per warning. Nothing without a tokenizer."""
    corpus = inspection.corpus
    if corpus is None:
        return []
    if max_length is not None:
        return [
            f"training with --max-length {max_length}: {corpus.summary()}",
            *(f"warning: {message}" for message in corpus.warnings()),
        ]
    above = sum(tokens > PAPER_LENGTH for tokens in inspection.tokens)
    facts = [f"{above} of {len(inspection.tokens)} trajectories have more than {PAPER_LENGTH} tokens"] if above else []
    remedy = f"`sad train` cuts them; --max-length {PAPER_LENGTH} shows what is lost"
    return [*(f"{fact}: {remedy}" for fact in facts), *(f"warning: {message}" for message in corpus.warnings())]


def _length_rows(inspection) -> list[dict]:
    """Returns one row per kind and grouping: name (of its color), label, summary; the last row is that of trajectories."""
    from sad.trajectories.inspection import summarize

    groupings = (("per span", inspection.lengths.per_span), ("per trajectory", inspection.lengths.per_trajectory))
    rows = [
        {"name": name, "label": f"{label} {grouping}", "summary": summarize(lengths[kind])}
        for grouping, lengths in groupings
        for kind, name, label in KINDS
    ]
    if inspection.tokens:
        rows.append({"name": "none", "label": "whole trajectory", "summary": summarize(inspection.tokens)})
    return rows


def _share_rows(inspection) -> list[dict]:
    from sad.trajectories.spans import SpanKind

    return [
        {"kind": kind, "name": name, "label": label, "share": inspection.lengths.share(SpanKind(kind))}
        for kind, name, label in (*KINDS, (0, "none", "other"))
    ]


def _print(inspection, limit: int, max_length: int | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sad.errors import printable
    from sad.report.overlay import terminal_overlay

    console = Console(highlight=False)
    for item in inspection.kept[:limit]:
        console.rule(Text(printable(item.trajectory.id), style="bold"), align="left")
        console.print(_summary(item), style="dim")
        console.print(terminal_overlay(_pieces(item), console), soft_wrap=True)
    table = Table(title=f"Lengths in {inspection.lengths.unit}", title_justify="left", title_style="bold")
    for column in ("", "count", "mean", "median", "95 %", "max"):
        table.add_column(column, justify="right" if column else "left")
    for row in _length_rows(inspection):
        s = row["summary"]
        label = Text(row["label"], style=TABLE_STYLES[row["name"]])
        table.add_row(label, str(s.count), f"{s.mean:.1f}", f"{s.median:.1f}", f"{s.p95:.1f}", str(s.max))
    console.print(table)
    console.print(Text(_totals(inspection)), soft_wrap=True)
    console.print(Text(", ".join(f"{row['label']} {100 * row['share']:.1f} %" for row in _share_rows(inspection))))
    for fact in _training_facts(inspection, max_length):
        console.print(Text(printable(fact)), soft_wrap=True)
    _print_refused(console, inspection.refused)
    unparsed = inspection.unparsed
    shown = unparsed[: UNPARSED_LIMIT["terminal"]]
    console.print(Text(f"not parsed: {len(unparsed)} place(s)" if unparsed else "not parsed: nothing"))
    for name, item in shown:
        console.print(Text(printable(f"  {name}, line {item.line}: {item.text[:80]!r}: {item.reason}")), soft_wrap=True)
    if len(unparsed) > len(shown):
        console.print(f"  and {len(unparsed) - len(shown)} more")


def _print_refused(console, refused) -> None:
    from rich.text import Text

    from sad.errors import printable

    if not refused:
        return
    console.print(Text(f"refused: {len(refused)} trajector{'y' if len(refused) == 1 else 'ies'}"))
    limit = UNPARSED_LIMIT["terminal"]
    for item in refused[:limit]:
        console.print(Text(printable(f"  {item.error}")), soft_wrap=True)
    if len(refused) > limit:
        console.print(f"  and {len(refused) - limit} more")


def _write_page(inspection, limit: int, options: InspectOptions) -> None:
    from sad.files import write_file
    from sad.report.overlay import overlay_lines
    from sad.report.page import inspect_page
    from sad.trajectories.inspection import histogram

    shown = [
        {
            "id": item.trajectory.id,
            "success": item.trajectory.success,
            "facts": _summary(item),
            "lines": overlay_lines(_pieces(item)),
        }
        for item in inspection.kept[:limit]
    ]
    charts = [
        {"name": name, "label": f"{label} spans", "bins": histogram(inspection.lengths.per_span[kind])}
        for kind, name, label in KINDS
    ]
    page = inspect_page(
        title=options.file.name,
        format=options.format or "as given",
        tokenizer=options.tokenizer,
        facts=_totals(inspection),
        unit=inspection.lengths.unit,
        shares=_share_rows(inspection),
        lengths=_length_rows(inspection),
        charts=charts,
        training=_training_facts(inspection, options.max_length),
        refused=inspection.refused,
        unparsed=inspection.unparsed,
        unparsed_limit=UNPARSED_LIMIT["html"],
        shown=shown,
        trajectories=inspection.lengths.trajectories,
    )
    write_file(options.html, page, overwrite=False)
