"""Writes the tables of GPU support into docs/gpu_support.md and README.md, from benchmarks/results/gpu_support.csv.

python docs/_gpu_support.py
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "benchmarks" / "results" / "gpu_support.csv"
STATES = ("compiled", "executed_on_the_host", "run_on_a_card", "tuned")
NO = "no"


def main() -> None:
    """Replaces the tables between the marks."""
    for path, table in tables().items():
        path.write_text(replaced(path.read_text(), table))


def tables() -> dict[Path, str]:
    """Returns the table of each page."""
    rows = read()
    return {ROOT / "docs" / "gpu_support.md": full_table(rows), ROOT / "README.md": short_table(rows)}


def read() -> list[dict[str, str]]:
    """Returns the rows of the CSV file. An empty state means no."""
    with open(SOURCE, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def full_table(rows: list[dict[str, str]]) -> str:
    """Returns one line per backend and architecture."""
    lines = [["backend", "architecture", "cards", *(name.replace("_", " ") for name in STATES)]]
    for row in rows:
        states = [row[name] or NO for name in STATES]
        lines.append([f"`{row['backend']}`", row["architecture"], row["cards"], *states])
    return _markdown(lines)


def short_table(rows: list[dict[str, str]]) -> str:
    """Returns one line per backend. A state that holds for a part of the architectures names them."""
    lines = [["GPU backend", *(name.replace("_", " ") for name in STATES)]]
    for backend in dict.fromkeys(row["backend"] for row in rows):
        own = [row for row in rows if row["backend"] == backend]
        lines.append([f"`{backend}`", *(_summary(own, name) for name in STATES)])
    return _markdown(lines)


def _summary(rows: list[dict[str, str]], state: str) -> str:
    by_value: dict[str, list[str]] = {}
    for row in rows:
        by_value.setdefault(row[state], []).append(row["architecture"])
    known = {value: names for value, names in by_value.items() if value}
    if not known:
        return NO
    return "; ".join(f"{value}: {_names(names, len(names) == len(rows))}" for value, names in known.items())


def _names(architectures: list[str], are_all: bool) -> str:
    return f"{architectures[0]} to {architectures[-1]}" if are_all else ", ".join(architectures)


def _markdown(lines: list[list[str]]) -> str:
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([rows[0], "|---" * len(lines[0]) + "|", *rows[1:]])


def replaced(text: str, table: str) -> str:
    """Returns the text with the table between its marks."""
    marks = re.compile(r"(<!-- gpu_support: begin[^\n]*-->\n).*?(<!-- gpu_support: end -->)", re.DOTALL)
    if len(marks.findall(text)) != 1:
        raise ValueError("expected one pair of marks, <!-- gpu_support: begin --> and <!-- gpu_support: end -->")
    return marks.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text)


if __name__ == "__main__":
    main()
