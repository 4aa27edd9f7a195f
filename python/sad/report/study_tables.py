"""The tables and sentences of a study's report, for the page, Markdown and the terminal alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sad.report import paper
from sad.report.table import MISSING, Cell, Table, percent

DECIDED = 0.05  # largest Holm p value of a difference that counts as decided
_METRICS = {  # name in the summary: heading, factor, digits
    "reasoning_length": ("reasoning tokens", 1, 1),
    "cot_match": ("CoT match, %", 100, 1),
    "steps": ("steps", 1, 1),
    "invalid_actions": ("invalid actions", 1, 2),
}
_STATES = {"done": "done", "part": "in part", "failed": "failed", "open": "open"}


def results_table(group: Mapping[str, Any], baseline: str) -> Table:
    """Returns the results of an environment and student in the form of the paper's tables 3 and 5: one row per method."""
    scored = any(_differs(method["metrics"], "score", "success") for method in group["methods"])
    header = ["method", "success, %", *(["score, %"] if scored else []), "difference, points", "p"]
    header += [heading for heading, _, _ in _METRICS.values()] + ["learning rate", "seeds", "state"]
    rows = [_method_row(method, baseline, scored) for method in group["methods"]]
    if group["teacher"]:
        rows.insert(0, _teacher_row(group["teacher"], scored))
    return Table(header, rows)


def short_table(group: Mapping[str, Any], baseline: str) -> Table:
    """Returns the columns of `results_table` that fit a terminal."""
    rows = []
    for method in group["methods"]:
        difference = method["difference"]
        seeds = str(len(method["seeds"])) if method["state"] == "done" else _STATES[method["state"]]
        p = _p_value(difference["p_holm"]) if difference else MISSING
        success = _estimate(method["metrics"].get("success"), 100, 1)
        rows.append([method["name"], success, _difference(method, baseline), p, seeds])
    if group["teacher"]:
        rows.insert(0, ["teacher", Cell(f"{100 * group['teacher']['success']:.1f}"), MISSING, MISSING, MISSING])
    return Table(["method", "success, %", "difference", "Holm p", "seeds"], rows)


def group_title(group: Mapping[str, Any]) -> str:
    """Returns environment and student."""
    return f"{group['environment']}, {group['student']}"


def group_facts(group: Mapping[str, Any]) -> str:
    """Describes the student, the tasks and the teacher in one line."""
    facts = [f"{group['init']} weights before the training"]
    if group["parameters"]:
        student, teacher = group["parameters"]["student"], group["parameters"]["teacher"]
        facts.append(f"{student:,} parameters ({percent(student / teacher)} of the teacher)")
        facts.append(f"{group['tasks']:,} test tasks")
    return ", ".join(facts)


def outcome(group: Mapping[str, Any], baseline: str) -> str:
    """Says in one line which methods are better and worse than the baseline, and which differences are not decided."""
    methods = {method["name"]: method for method in group["methods"]}
    found = methods.get(baseline, {"metrics": {}})["metrics"].get("success")
    start = (
        f"{baseline} has no result yet." if found is None else f"{baseline} solves {100 * found['mean']:.1f} % of the tasks."
    )
    sides: dict[str, list[str]] = {"Better": [], "Worse": [], "Not decided": []}
    for name, method in methods.items():
        if difference := method["difference"]:
            side = {1: "Better", -1: "Worse", 0: "Not decided"}[decided(difference)]
            sides[side].append(f"{name} ({_signed(difference['mean'])})")
    return " ".join([start, *(f"{side}: {', '.join(names)}." for side, names in sides.items() if names)])


def visible_line(group: Mapping[str, Any]) -> str:
    """Says which differences the study can see, or nothing if no method can be compared."""
    found = [method["difference"]["visible"] for method in group["methods"] if method["difference"]]
    if not any(found):
        return ""
    least, most = f"{100 * min(found):.1f}", f"{100 * max(found):.1f}"
    points = least if least == most else f"{least} to {most}"
    return f"Smallest difference that these tasks and seeds show with a power of 80 %: {points} points."


def failures(group: Mapping[str, Any]) -> list[str]:
    """Returns one line per failed cell with its message."""
    return [
        f"{method['name']}, seed {one['seed']}, {one['panel']} tasks: {one['message']}"
        for method in group["methods"]
        for one in method["failed"]
    ]


def decided(difference: Mapping[str, float]) -> int:
    """Returns 1 if a method is better than the baseline, -1 if it is worse, and 0 if the data do not decide it."""
    if difference["p_holm"] >= DECIDED:
        return 0
    return 1 if difference["mean"] > 0 else -1


def run_counts(summary: Mapping[str, Any]) -> str:
    """Says how many trainings the report contains."""
    methods = [method for group in summary["groups"] for method in group["methods"]]
    tests = sum(len(method["seeds"]) for method in methods)
    selections = sum(solved is not None for method in methods for solved in method["selection"].values())
    failed = sum(len(method["failed"]) for method in methods)
    unfinished = sum(method["state"] in ("open", "part") for method in methods)
    facts = [f"{tests} trainings with test results", f"{selections} trainings to choose learning rates"]
    facts += [f"{failed} failed"] if failed else []
    facts += [f"{unfinished} methods not finished"] if unfinished else []
    return ", ".join(facts)


def machine(measured: Mapping[str, Any]) -> str:
    """Describes devices, versions, time and cost in one line."""
    versions = [f"{name} {version}" for name, version in measured["versions"].items()]
    hours = f"{measured['seconds'] / 3600:.1f} h" if measured["seconds"] >= 3600 else f"{measured['seconds']:.0f} s"
    cost = [] if measured["cost"] is None else [f"cost {measured['cost']:.2f}"]
    return ", ".join([*measured["devices"], *versions, f"{hours} of training and play in all", *cost])


def sizes(summary: Mapping[str, Any], environment: str) -> list[list[Mapping[str, Any]]]:
    """Returns the groups of each initialization that has at least two student sizes, in order of size."""
    families: dict[str, list[Mapping[str, Any]]] = {}
    for group in _groups(summary, environment):
        if group["parameters"]:
            families.setdefault(group["init"], []).append(group)
    found = [sorted(groups, key=lambda group: group["parameters"]["student"]) for groups in families.values()]
    return [groups for groups in found if len({group["parameters"]["student"] for group in groups}) > 1]


def sizes_table(groups: Sequence[Mapping[str, Any]]) -> Table:
    """Returns success over student size (Fig. 2): one row per method of at least two students, one column per student."""
    counts = Counter(method["name"] for group in groups for method in group["methods"])
    names = [name for name, count in counts.items() if count > 1]
    header = ["success, %", *(f"{group['student']} ({group['parameters']['student']:,})" for group in groups)]
    found = [{method["name"]: method["metrics"].get("success") for method in group["methods"]} for group in groups]
    return Table(header, [[name, *(_estimate(own.get(name), 100, 1) for own in found)] for name in names])


def curve_table(group: Mapping[str, Any]) -> Table | None:
    """Returns success over the training: one row per method, one column per evaluation; None without results."""
    steps = sorted({point["step"] for method in group["methods"] for point in method["curve"]})
    if not steps:
        return None
    rows = []
    for method in group["methods"]:
        own = {point["step"]: point for point in method["curve"]}
        rows.append([method["name"], *(_estimate(own.get(step), 100, 1) for step in steps)])
    return Table(["success, %, after step", *map(str, steps)], rows)


def rates_table(group: Mapping[str, Any]) -> Table | None:
    """Returns the solved tasks of the select panel per learning rate; None if the study has one learning rate."""
    rates = dict.fromkeys(rate for method in group["methods"] for rate in method["selection"])
    if not rates:
        return None
    rows = []
    for method in group["methods"]:
        chosen = "" if method["learning_rate"] is None else f"{method['learning_rate']:g}"
        cells = [_solved(method["selection"].get(rate), rate == chosen) for rate in rates]
        rows.append([method["name"], *cells])
    return Table(["solved at learning rate", *rates], rows)


def pass_table(group: Mapping[str, Any]) -> Table | None:
    """Returns pass^k per method; None without samples."""
    found = {method["name"]: method["pass_k"] for method in group["methods"] if method["pass_k"]}
    if not found:
        return None
    count = max(map(len, found.values()))
    rows = [[name, *(f"{100 * value:.1f}" for value in values)] for name, values in found.items()]
    return Table(["pass^k, %", *(f"k = {k}" for k in range(1, count + 1))], rows)


def methods_table(summary: Mapping[str, Any]) -> Table:
    """Returns name, description and source of each method."""
    methods = {method["name"]: method for group in summary["groups"] for method in group["methods"]}
    return Table(["method", "training", "source"], [[name, one["text"], one["source"]] for name, one in methods.items()])


def timing_table(measured: Mapping[str, Any]) -> Table:
    """Returns mean seconds, tokens/s and peak memory of the trainings."""
    rows = [
        [
            f"{one['environment']}, {one['student']}, {one['method']}",
            f"{one['training_seconds']:,.1f}",
            f"{one['tokens_per_second']:,.0f}",
            f"{one['peak_memory_bytes'] / 2**30:.2f}",
        ]
        for one in measured["methods"]
    ]
    return Table(["training of", "seconds", "tokens/s", "peak memory, GiB"], rows)


def directions_table(summary: Mapping[str, Any], environment: str) -> Table | None:
    """Returns our differences to `token_kl` beside those of the paper; None if the paper has none to compare with."""
    known = paper.closest_environment(environment)
    if known is None or summary["baseline"] != paper.BASELINE:
        return None
    rows = []
    for group in _groups(summary, environment):
        for method in group["methods"]:
            theirs = paper.success_difference(known, method["name"])
            if theirs is not None:
                same = _direction(method["difference"], theirs)
                rows.append(
                    [f"{method['name']}, {group['student']}", _difference(method, paper.BASELINE), f"{theirs:+.1f}", same]
                )
    if not rows:
        return None
    return Table(["difference to token_kl, points", "this study", f"paper, {known}, 340M", "direction"], rows)


def paper_table(environment: str) -> Table | None:
    """Returns the paper's tables 3 and 5 for the environment that is closest to one of a study; None if there is none."""
    known = paper.closest_environment(environment)
    if known is None:
        return None
    header = ["paper's method", "student", "success, %", "reasoning tokens", "CoT match, %", "steps"]
    rows = []
    for row in paper.TABLES[known]:
        length = MISSING if row.reasoning_length is None else f"{row.reasoning_length:.1f}"
        cells = [f"{row.success:.1f}", length, f"{row.cot_match:.1f}", f"{row.steps:.1f}"]
        rows.append([row.method, row.student, *cells])
    return Table(header, rows)


def how_to_read(summary: Mapping[str, Any]) -> list[str]:
    """Explains the tables in plain sentences."""
    baseline, one_seed = summary["baseline"], len(summary["seeds"]) == 1
    return [
        "Success is the share of the test tasks that the student solves with greedy decoding, as a mean over the finished "
        "seeds. The interval contains the true value in 95 of 100 studies like this one.",
        f"The difference compares a method with {baseline} on the same tasks and seeds. If its interval contains 0, "
        "the data do not decide which of the two is better.",
        "p is the probability of a difference at least this large if both methods were equally good. Holm is p "
        f"corrected for the number of compared methods. A difference is decided if the Holm value is below {DECIDED}.",
        "The intervals include the variation between tasks"
        + (
            " only, because the study has one seed. Another seed can move a result further than they show."
            if one_seed
            else " and between seeds. A method with one finished seed has an interval over tasks only."
        ),
        "CoT match is the share of the teacher's reasoning tokens that the student writes on the same task. Reasoning "
        "tokens, steps and invalid actions are means per episode. Steps are reasoning and action lines.",
        "The state is done, in part (some seeds are missing), open (no result yet) or failed. No cell is left out: "
        "a failed one is listed with its message, and its row shows the seeds that finished.",
        f"The paper's figures are those of {paper.SOURCE}, tables 3 and 5. Its models and data are others, so compare "
        "the direction of the differences, not the values.",
    ]


def _method_row(method: Mapping[str, Any], baseline: str, scored: bool) -> list[str | Cell]:
    metrics, difference = method["metrics"], method["difference"]
    row: list[str | Cell] = [method["name"], _estimate(metrics.get("success"), 100, 1)]
    row += [_estimate(metrics.get("score"), 100, 1)] if scored else []
    row.append(_difference(method, baseline))
    row.append(Cell(_p_value(difference["p"]), f"Holm {_p_value(difference['p_holm'])}") if difference else MISSING)
    row += [_estimate(metrics.get(name), factor, digits) for name, (_, factor, digits) in _METRICS.items()]
    row.append(MISSING if method["learning_rate"] is None else f"{method['learning_rate']:g}")
    row += [str(len(method["seeds"])), Cell(_STATES[method["state"]], mark=method["state"])]
    return row


def _teacher_row(teacher: Mapping[str, float], scored: bool) -> list[str | Cell]:
    found = {
        "reasoning_length": f"{teacher['reasoning_length']:.1f}",
        "cot_match": "100.0",
        "steps": f"{teacher['steps']:.1f}",
    }
    skipped = [MISSING] * (3 if scored else 2)
    return [
        "teacher",
        f"{100 * teacher['success']:.1f}",
        *skipped,
        *(found.get(name, MISSING) for name in _METRICS),
        *[MISSING] * 3,
    ]


def _groups(summary: Mapping[str, Any], environment: str) -> Iterable[Mapping[str, Any]]:
    return (group for group in summary["groups"] if group["environment"] == environment)


def _differs(metrics: Mapping[str, Any], one: str, other: str) -> bool:
    return one in metrics and other in metrics and metrics[one]["mean"] != metrics[other]["mean"]


def _estimate(found: Mapping[str, float] | None, factor: float, digits: int) -> Cell:
    if found is None:
        return Cell(MISSING)
    low_high = f"{factor * found['low']:.{digits}f}–{factor * found['high']:.{digits}f}"
    return Cell(f"{factor * found['mean']:.{digits}f}", low_high)


def _difference(method: Mapping[str, Any], baseline: str) -> Cell:
    found = method["difference"]
    if found is None:
        return Cell("baseline" if method["name"] == baseline else MISSING)
    low_high = f"{_signed(found['low'])} to {_signed(found['high'])}"
    return Cell(_signed(found["mean"]), low_high, mark="strong" if decided(found) else "")


def _signed(fraction: float) -> str:
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"  # + 0.0: no negative zero


def _p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _solved(count: int | None, chosen: bool) -> Cell:
    if count is None:
        return Cell(MISSING)
    return Cell(str(count), "chosen" if chosen else "", "strong" if chosen else "")


def _direction(ours: Mapping[str, float] | None, theirs: float) -> str:
    if ours is None:
        return "open"
    return {0: "not decided", 1: "same", -1: "opposite"}[decided(ours) * (1 if theirs > 0 else -1)]
