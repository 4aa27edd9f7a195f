"""The figures of the paper (arXiv 2505.13820), to show beside those of a study. This project measured none of them."""

from __future__ import annotations

from typing import NamedTuple

SOURCE = "arXiv 2505.13820"
TEACHER, BASELINE = "teacher", "token_kl"
_ABLATION_STUDENT = "340M"


class PaperRow(NamedTuple):
    """One row of table 3 or 5.

    Attributes:
        method: The name of the method in a study.
        student: Size of the student.
        success: Task success, %.
        cot_match: CoT match, %.
        reasoning_length: Reasoning tokens; None in table 5.
        steps: Reasoning and action steps per episode.
    """

    method: str
    student: str
    success: float
    cot_match: float
    reasoning_length: float | None
    steps: float


TABLES: dict[str, list[PaperRow]] = {
    "ALFWorld": [
        PaperRow(TEACHER, "1.5B", 71.2, 100.0, 8.2, 5.8),
        PaperRow("token_kl", "120M", 39.4, 59.3, 12.4, 9.1),
        PaperRow("sad", "120M", 43.7, 62.3, 11.2, 8.2),
        PaperRow("token_kl", "340M", 52.1, 68.1, 10.6, 7.8),
        PaperRow("sad", "340M", 56.3, 71.5, 9.8, 7.1),
        PaperRow("token_kl", "760M", 60.2, 74.0, 9.5, 7.0),
        PaperRow("sad", "760M", 64.8, 77.9, 8.9, 6.4),
        PaperRow("reason_only", "340M", 52.7, 69.2, None, 7.4),
        PaperRow("act_only", "340M", 49.5, 61.8, None, 7.8),
        PaperRow("no_spans", "340M", 48.2, 60.4, None, 8.1),
        PaperRow("random_spans", "340M", 45.9, 57.7, None, 8.4),
    ],
    "WebShop": [
        PaperRow(TEACHER, "1.5B", 68.7, 100.0, 11.5, 7.4),
        PaperRow("token_kl", "120M", 36.7, 55.1, 15.7, 10.7),
        PaperRow("sad", "120M", 41.2, 58.7, 14.6, 9.5),
        PaperRow("token_kl", "340M", 49.8, 62.4, 14.1, 9.4),
        PaperRow("sad", "340M", 54.7, 66.9, 13.1, 8.7),
        PaperRow("token_kl", "760M", 57.0, 69.3, 13.2, 8.6),
        PaperRow("sad", "760M", 61.5, 73.1, 12.4, 8.1),
    ],
    "HotPotQA": [
        PaperRow(TEACHER, "1.5B", 78.5, 100.0, 10.8, 6.2),
        PaperRow("token_kl", "120M", 48.3, 65.7, 14.8, 8.9),
        PaperRow("sad", "120M", 52.8, 66.2, 13.8, 7.8),
        PaperRow("token_kl", "340M", 61.5, 70.5, 13.0, 7.9),
        PaperRow("sad", "340M", 65.5, 74.0, 12.2, 7.0),
        PaperRow("token_kl", "760M", 69.1, 76.4, 12.0, 7.2),
        PaperRow("sad", "760M", 73.1, 80.4, 11.7, 6.6),
    ],
}


def closest_environment(name: str) -> str | None:
    """Returns the paper's environment for one of a study by its name, or None. `household` has tasks like ALFWorld's."""
    known = {"alfworld": "ALFWorld", "household": "ALFWorld", "webshop": "WebShop", "hotpotqa": "HotPotQA"}
    return next((found for word, found in known.items() if word in name.lower()), None)


def success_difference(environment: str, method: str) -> float | None:
    """Returns the success of a method minus that of the token-level baseline in points, for the 340M student, or None."""
    rows = {row.method: row for row in TABLES[environment] if row.student == _ABLATION_STUDENT}
    if method == BASELINE or method not in rows:
        return None
    return rows[method].success - rows[BASELINE].success
