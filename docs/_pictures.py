"""Draws the pictures of docs/concepts.md from generated tasks, with the package's own functions.

python docs/_pictures.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import sad
from sad.training.curriculum import CurriculumSampler, difficulty_scores

FOLDER = Path(__file__).parent / "pictures"
REASON, ACT, OTHER = "#3b7dd8", "#d0473a", "#808080"  # readable on white and on black
TASKS = 200


def main() -> None:
    """Draws all pictures."""
    style = {"svg.fonttype": "none", "font.size": 11, "svg.hashsalt": "sad"}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), OTHER)
    matplotlib.rcParams.update(style)
    env = sad.envs.make("household", size="small", tasks=TASKS)
    trajectories = sad.collect_expert(env, env.tasks)
    FOLDER.mkdir(exist_ok=True)
    draw_spans(trajectories[1])
    draw_lengths(trajectories)
    draw_curriculum(trajectories)
    draw_divergences()


def draw_spans(trajectory: sad.Trajectory) -> None:
    """The first lines of a trajectory in the colors of their spans, with both masks."""
    found = sad.segment(trajectory.text, "sad")
    starts = {span.start: span.kind for span in found.spans}
    lines, position = [], 0
    for line in trajectory.text.splitlines(keepends=True)[:9]:
        kind = starts.get(position, sad.SpanKind.NONE)
        lines.append((line.rstrip(), kind))
        position += len(line)
    figure, axis = plt.subplots(figsize=(9.4, 0.32 * len(lines) + 0.4))
    colors = {sad.SpanKind.REASON: REASON, sad.SpanKind.ACT: ACT}
    axis.text(0.905, -0.9, "m_r", color=REASON, family="monospace", ha="center", va="center")
    axis.text(0.965, -0.9, "m_a", color=ACT, family="monospace", ha="center", va="center")
    for row, (line, kind) in enumerate(lines):
        short = line if len(line) < 84 else f"{line[:81]}..."
        axis.text(0, row, short, color=colors.get(kind, OTHER), family="monospace", fontsize=9, va="center")
        for place, one in ((0.905, sad.SpanKind.REASON), (0.965, sad.SpanKind.ACT)):
            mask = str(int(kind == one))
            axis.text(place, row, mask, color=colors[one], family="monospace", ha="center", va="center")
    axis.set(xlim=(0, 1), ylim=(len(lines) - 0.5, -1.4))
    axis.axis("off")
    _save(figure, "spans")


def draw_lengths(trajectories: list[sad.Trajectory]) -> None:
    """Histograms of the characters of reasoning and action spans."""
    lengths: dict[sad.SpanKind, list[int]] = {sad.SpanKind.REASON: [], sad.SpanKind.ACT: []}
    for trajectory in trajectories:
        for span in sad.segment(trajectory.text, "sad").spans:
            lengths[span.kind].append(span.end - span.start)
    figure, axis = plt.subplots(figsize=(6.4, 2.8))
    bins = np.arange(0, 180, 6)
    axis.hist(lengths[sad.SpanKind.REASON], bins, color=REASON, alpha=0.75, label="reasoning spans")
    axis.hist(lengths[sad.SpanKind.ACT], bins, color=ACT, alpha=0.75, label="action spans")
    _label(axis, "characters per span", "spans")
    _save(figure, "span_lengths")


def draw_curriculum(trajectories: list[sad.Trajectory]) -> None:
    """The difficulty of the draws of a training of one epoch, in the order of the training."""
    words = [dict.fromkeys(sad.SpanKind, 0) for _ in trajectories]
    for count, trajectory in zip(words, trajectories):
        for span in sad.segment(trajectory.text, "sad").spans:
            count[span.kind] += len(trajectory.text[span.start : span.end].split())
    reason, act = ([count[kind] for count in words] for kind in (sad.SpanKind.REASON, sad.SpanKind.ACT))
    scores = difficulty_scores(reason, act, np.zeros(len(words)), gamma=0.0)
    order = list(CurriculumSampler(scores, epochs=1, seed=0))
    figure, axis = plt.subplots(figsize=(6.4, 2.8))
    axis.plot(scores[order], ".", color=REASON, markersize=4, label="one trajectory")
    _label(axis, "draw (one epoch)", "difficulty (eq. 7)")
    _save(figure, "curriculum")


def draw_divergences() -> None:
    """A teacher with two modes, and the student with one mode that is closest to it under each divergence."""
    x = torch.linspace(-6, 6, 241, dtype=torch.float64)
    teacher = torch.logaddexp(-((x + 2) ** 2) / 0.8 + 0.35, -((x - 2) ** 2) / 0.8)
    figure, axis = plt.subplots(figsize=(6.4, 2.8))
    axis.fill_between(x, teacher.softmax(0), color=OTHER, alpha=0.35, label="teacher")
    for divergence, color, dash in (("forward_kl", REASON, "-"), ("reverse_kl", ACT, "-"), ("jsd", "#2f9e6e", "--")):
        students = torch.stack(
            [
                -((x - center) ** 2) / (2 * width**2)
                for center in torch.linspace(-3, 3, 61, dtype=torch.float64)
                for width in torch.linspace(0.4, 4, 37, dtype=torch.float64)
            ]
        )
        teachers, everywhere = teacher.expand_as(students), torch.ones(len(students), dtype=torch.int8)
        losses = sad.fused_span_kl(students, teachers, everywhere, divergence=divergence, reduction="none")
        best = students[losses.argmin()]
        axis.plot(x, best.softmax(0), color=color, linestyle=dash, label=divergence)
    _label(axis, "token", "probability")
    _save(figure, "divergences")


def _label(axis: Axes, x: str, y: str) -> None:
    axis.set(xlabel=x, ylabel=y)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)


def _save(figure: plt.Figure, name: str) -> None:
    figure.savefig(FOLDER / f"{name}.svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
