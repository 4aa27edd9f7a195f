"""`sad inspect`: which tokens of a trajectory file are reasoning and which are actions."""

from pathlib import Path
from typing import Annotated

import typer

HTML_LIMIT = 100
UNPARSED_LIMIT = {"terminal": 20, "html": 500}


def command(
    file: Annotated[Path, typer.Argument(help="Trajectories, one JSON object a line (.jsonl or .jsonl.gz).")],
    format: Annotated[
        str | None, typer.Option("--format", "-f", help="How texts are written; default: as each trajectory says, or sad.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", "-t", help="Folder or model name; without it lengths are in characters.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page here.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=0, help="How many trajectories to show.")] = None,
    id: Annotated[list[str] | None, typer.Option(help="Only the trajectory of this id; may be repeated.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Cut trajectories to this many tokens.")] = None,
    include_prefix: Annotated[bool, typer.Option(help="Whether spans hold their prefix.")] = True,
) -> None:
    """Show which tokens of a trajectory file are reasoning (blue) and which are actions (red).

    Prints the overlay of the first trajectories (3, or --limit; a page holds 100), the span lengths of all of them, and
    what could not be parsed, by line.
    """
    from sad.errors import InputError
    from sad.trajectories.encode import load_tokenizer
    from sad.trajectories.formats import get_format
    from sad.trajectories.inspection import inspect_trajectories
    from sad.trajectories.trajectory import read_jsonl

    if html is not None and html.exists():
        raise InputError(str(html), "a new file", "an existing one", "Choose another name or remove it.")
    if format is not None:
        get_format(format, "--format")
    trajectories = read_jsonl(file)
    if id:
        missing = set(id) - {trajectory.id for trajectory in trajectories}
        if missing:
            raise InputError("--id", f"ids in {file}", ", ".join(sorted(missing)), f"The first is {trajectories[0].id!r}.")
        trajectories = [trajectory for trajectory in trajectories if trajectory.id in id]
    if not trajectories:
        raise InputError(str(file), "at least one trajectory", "none", "Check that the file is complete.")
    in_terminal, in_page = (3, HTML_LIMIT) if limit is None else (limit, limit)
    found = inspect_trajectories(
        trajectories,
        load_tokenizer(tokenizer) if tokenizer else None,
        format=format,
        max_length=max_length,
        include_prefix=include_prefix,
        keep=max(in_terminal, in_page if html else 0),
    )
    _print(found, in_terminal)
    if html is not None:
        _write_page(found, html, in_page, title=file.name, format=format or "as given", tokenizer=tokenizer)
        typer.echo(f"page: {html}")


def _pieces(item):
    from sad.report.overlay import span_pieces, token_pieces

    if item.encoded is None:
        return span_pieces(item.segmentation.text, item.segmentation.spans)
    _, span_ids, truncated, offsets = item.encoded
    return token_pieces(item.segmentation.text, offsets, span_ids, truncated=truncated)


def _counts(item) -> str:
    """What is in one trajectory, in words."""
    spans = [sum(span.kind == kind for span in item.segmentation.spans) for kind in (1, 2)]
    words = f"{spans[0]} reasoning and {spans[1]} action spans"
    if item.encoded is None:
        return f"{words}, {len(item.segmentation.text)} characters"
    ids = item.encoded.span_ids
    cut = f", {item.encoded.truncated} tokens cut off" if item.encoded.truncated else ""
    return f"{words}; {len(ids)} tokens: {ids.count(1)} reasoning, {ids.count(2)} action{cut}"


def _facts(found) -> str:
    counts = (
        (found.with_both, "with reasoning and actions"),
        (found.with_reason - found.with_both, "with reasoning alone"),
        (found.with_act - found.with_both, "with actions alone"),
        (found.with_none, "with neither"),
        (found.lengths.total, found.lengths.unit),
        (found.truncated, "truncated"),
    )
    return ", ".join([f"{found.lengths.trajectories} trajectories", *(f"{count} {what}" for count, what in counts if count)])


def _length_rows(found) -> list[dict]:
    """One row per kind and way of counting: name (of its colour), label, summary."""
    from sad.trajectories.inspection import summarize

    ways = (("per span", found.lengths.per_span), ("per trajectory", found.lengths.per_trajectory))
    return [
        {"name": name, "label": f"{label} {way}", "summary": summarize(lengths[kind])}
        for way, lengths in ways
        for kind, name, label in ((1, "reason", "reasoning"), (2, "act", "action"))
    ]


def _share_rows(found) -> list[dict]:
    from sad.trajectories.spans import SpanKind

    named = (
        (SpanKind.REASON, "reason", "reasoning"),
        (SpanKind.ACT, "act", "action"),
        (SpanKind.NONE, "none", "unsupervised"),
    )
    return [{"kind": k, "name": name, "label": label, "share": found.lengths.share(k)} for k, name, label in named]


def _print(found, limit: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sad.report.overlay import terminal_overlay

    console = Console(highlight=False)
    for item in found.kept[:limit]:
        console.rule(Text(item.trajectory.id, style="bold"), align="left")
        console.print(_counts(item), style="dim")
        console.print(terminal_overlay(_pieces(item)), soft_wrap=True)
    table = Table(title=f"Lengths in {found.lengths.unit}", title_justify="left", title_style="bold")
    for column in ("", "count", "mean", "median", "95 %", "max"):
        table.add_column(column, justify="right" if column else "left")
    for row in _length_rows(found):
        s = row["summary"]
        style = "blue" if row["name"] == "reason" else "red"
        table.add_row(
            Text(row["label"], style=style), str(s.count), f"{s.mean:.1f}", f"{s.median:.1f}", f"{s.p95:.1f}", str(s.max)
        )
    console.print(table)
    console.print(Text(_facts(found)), soft_wrap=True)
    console.print(Text(", ".join(f"{row['label']} {100 * row['share']:.1f} %" for row in _share_rows(found))))
    shown = found.unparsed[: UNPARSED_LIMIT["terminal"]]
    console.print(Text(f"not parsed: {len(found.unparsed)} place(s)" if found.unparsed else "not parsed: nothing"))
    for name, item in shown:
        console.print(Text(f"  {name}, line {item.line}: {item.text[:80]!r}: {item.reason}"), soft_wrap=True)
    if len(found.unparsed) > len(shown):
        console.print(f"  and {len(found.unparsed) - len(shown)} more")


def _write_page(found, path: Path, limit: int, *, title: str, format: str, tokenizer: str | None) -> None:
    from sad.report.overlay import html_page, overlay_lines
    from sad.trajectories.inspection import histogram

    shown = [
        {
            "id": item.trajectory.id,
            "success": item.trajectory.success,
            "facts": _counts(item),
            "lines": overlay_lines(_pieces(item)),
        }
        for item in found.kept[:limit]
    ]
    charts = [
        {"name": name, "label": f"{label} spans", "bins": histogram(found.lengths.per_span[kind])}
        for kind, name, label in ((1, "reason", "reasoning"), (2, "act", "action"))
    ]
    page = html_page(
        title=title,
        format=format,
        tokenizer=tokenizer,
        facts=_facts(found),
        unit=found.lengths.unit,
        shares=_share_rows(found),
        lengths=_length_rows(found),
        charts=charts,
        unparsed=found.unparsed,
        unparsed_limit=UNPARSED_LIMIT["html"],
        shown=shown,
        trajectories=found.lengths.trajectories,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(page)
