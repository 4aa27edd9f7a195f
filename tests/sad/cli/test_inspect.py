"""`sad inspect`: the overlay in the terminal and on the page, the lengths, and the text that could not be parsed."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sad import Trajectory, encode
from sad.cli.main import app, main
from sad.errors import InputError
from sad.report.overlay import span_pieces, terminal_overlay, token_pieces
from sad.trajectories.formats import ChatFormat, resolve_format
from sad.trajectories.spans import Span, SpanKind

TEXT = (
    "You see <b>a mug</b>.\nReasoning: I & you <script>alert(1)</script>\nAction: take mug\nYou take it.\n"
    "Reasoning: \nAction: stop"
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns run(*arguments) -> output. Bad input raises InputError, which `main` would print."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments) -> str:
        result = CliRunner().invoke(app, ["inspect", *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.jsonl"
    lines = [{"id": "first", "text": TEXT, "success": True}, {"id": "second", "text": "Reasoning: x\nAction: y\n"}]
    lines += [{"id": f"more-{i}", "text": "nothing"} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


class Page(HTMLParser):
    """Collects the tags, and the text of each <pre> by the class of its spans."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.overlays, self.kinds = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "pre":
            self.overlays.append({"r": "", "a": "", "o": "", "": ""})
        self.kinds.append(dict(attrs).get("class", "")[:1] if tag == "span" else tag)

    def handle_endtag(self, tag):
        self.kinds.pop()

    def handle_data(self, data):
        if "pre" in self.kinds:
            self.overlays[-1][self.kinds[-1] if self.kinds[-1] in ("r", "a", "o") else ""] += data


def test_terminal_overlay_and_lengths_by_token(run, file, shared_data, gpt2_tokenizer):
    output = run(file, "--tokenizer", shared_data / "tokenizers/gpt2")
    lines = output.splitlines()
    assert " R │ Reasoning: I & you <script>alert(1)</script>↵" in lines  # visible without colors
    assert " A │ Action: stop<eos>" in lines and " O │ You take it.↵" in lines and "   │ You see <b>a mug</b>." in lines
    seen = len(gpt2_tokenizer("You take it.\n").input_ids)
    row = next(line for line in lines if "observation per span" in line)
    assert re.findall(r"[\d.]+", row) == ["1", f"{seen}.0", f"{seen}.0", f"{seen}.0", str(seen)]
    assert f" action, {seen} observation" in output and re.search(r"observation \d+\.\d %, other \d+\.\d %", output)
    assert "second ──" in output and "more-0 ──" in output and "more-1 ──" not in output  # the first three only
    row = next(line for line in lines if "reasoning per span" in line)
    short, long = (len(gpt2_tokenizer(line).input_ids) for line in ("Reasoning: x\n", TEXT.splitlines(True)[1]))
    mean, p95 = (short + long) / 2, short + 0.95 * (long - short)
    assert re.findall(r"[\d.]+", row) == ["2", f"{mean:.1f}", f"{mean:.1f}", f"{p95:.1f}", str(long)]
    assert "5 trajectories, 2 with reasoning and actions" in output and "3 with neither" in output
    assert "first, line 5: 'Reasoning:': a prefix with nothing after it" in output
    assert "more-2, line 1: 'nothing': no reasoning and no action found with format 'sad'" in output


def test_without_a_tokenizer_lengths_are_in_characters(run, file):
    output = run(file, "--id", "second")
    assert " R │ Reasoning: x↵" in output and "Lengths in characters" in output
    assert "1 reasoning, 1 action and 0 observation spans, 23 characters" in output
    assert " O │ You take it.↵" in run(file, "--id", "first")
    assert "Reasoning: x" not in run(file, "--limit", "0")
    row = next(
        line for line in run(file, "--id", "second", "--no-include-prefix").splitlines() if "reasoning per span" in line
    )
    assert re.findall(r"[\d.]+", row)[1] == "2.0"  # "x" and its line end


def test_the_page_is_self_contained_and_escaped(run, file, tmp_path, shared_data):
    run(file, "--html", "out/page.html", "--limit", "2", "--tokenizer", shared_data / "tokenizers/gpt2")
    text = (tmp_path / "out/page.html").read_text()
    page = Page(text)
    assert not [
        attrs for tag, attrs in page.tags if tag in ("script", "link", "img", "iframe") or "src" in attrs or "href" in attrs
    ]
    assert not re.search(r"https?://|@import|url\(", text)
    first, second = page.overlays
    assert first["r"] == "Reasoning: I & you <script>alert(1)</script>↵"
    assert first["a"] == "Action: take mug↵Action: stop<eos>"
    assert first["o"] == "You take it.↵"
    assert first[""] == "You see <b>a mug</b>.\n\n\n\nReasoning: \n\n"
    assert second["r"] + second["a"] == "Reasoning: x↵Action: y↵"
    assert "a prefix with nothing after it" in text and "reasoning per trajectory" in text


def test_truncation_is_shown_and_counted(run, file, shared_data):
    output = run(file, "--max-length", "20", "--tokenizer", shared_data / "tokenizers/gpt2")
    assert "1 truncated" in output and re.search(
        r"20 tokens: \d+ reasoning, 0 action, 0 observation, \d+ tokens truncated", output
    )


def test_the_format_option_replaces_the_trajectorys_format(run, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "> think: a\n> look\n", "format": "alfworld-knowagent"}))
    with pytest.raises(InputError, match=r"format of trajectory 'a\.jsonl:1': expected one of alfworld"):
        run(path)
    assert " R │ > think: a↵" in run(path, "-f", "alfworld")


def test_refused_trajectories_are_listed_with_their_line_and_do_not_hide_the_others(run, tmp_path):
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "Action: go"}', "oops", '{"id": "spans", "text": "x", "spans": [[0, 9, "act"]]}', '{"messages": [5]}']
    path.write_text("\n".join([*lines, '{"id": "m", "messages": [{"role": "user", "content": "a"}]}', *["{"] * 10]))
    output = run(path, "--html", tmp_path / "page.html")
    assert " A │ Action: go" in output and "1 trajectories, 1 with actions only, 10 characters, 14 refused" in output
    assert "refused: 14 trajectories" in output
    for line, message in (
        (2, "expected one JSON object per line"),
        (3, "spans: expected"),
        (4, "messages"),
        (5, "tokenizer"),
    ):
        assert re.search(rf"  .*a\.jsonl, line {line}.*{message}", output), line
    assert "Refused trajectories: 14" in (tmp_path / "page.html").read_text()
    path.write_text("\n".join([lines[0], *["{"] * 25]))
    assert "line 21:" in (output := run(path)) and "line 22:" not in output and "and 5 more" in output


def test_what_a_training_loses_is_shown(run, file, shared_data, gpt2_tokenizer):
    base = (file, "--tokenizer", shared_data / "tokenizers/gpt2")
    total = len(gpt2_tokenizer(TEXT).input_ids) + 1
    row = next(line for line in run(*base).splitlines() if "whole trajectory" in line)
    assert re.findall(r"[\d.]+", row)[0] == "5" and re.findall(r"\d+", row)[-1] == str(total)
    output = run(*base, "--max-length", "20")
    found = re.search(r"1 truncated \((\d+) tokens cut, (\d+) of (\d+) supervised\)", output)
    assert int(found[1]) == total - 20 and 0 < int(found[2]) < int(found[3])
    assert f"warning: max_length cuts {found[2]} of {found[3]} supervised tokens" in output
    whole = run(*base, "--max-length", "20", "--long", "window", "--id", "first")
    first = sum(map(bool, encode(TEXT, gpt2_tokenizer).span_ids))
    assert f"0 truncated (0 tokens cut, 0 of {first} supervised)" in whole
    assert "1 trajectories in " in whole and "warning" not in whole and "Action: stop<eos>" in whole


def test_a_format_from_a_file(run, tmp_path):
    (tmp_path / "planner.yaml").write_text("reason: 'Plan:'\nact: 'Do:'\nunprefixed: model\nenvironment: 'Result:'\n")
    (tmp_path / "tags.yaml").write_text("reason_tags: [musing]\nthink_tags: [['<hm>', '</hm>']]\n")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "Plan: look\nDo: look\nResult: a mug\n"}))
    output = run("a.jsonl", "--format", "planner.yaml")
    assert " R │ Plan: look↵" in output and " A │ Do: look↵" in output and " O │ Result: a mug↵" in output
    tags = resolve_format(str(tmp_path / "tags.yaml"))
    assert isinstance(tags, ChatFormat) and (tags.name, tags.reason_tags) == ("tags", ("musing",))
    assert tags.think_tags == (("<hm>", "</hm>"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "f.yaml: expected a YAML file"),
        ("", "f.yaml: expected `field: value` lines, got nothing"),
        ("- a", "f.yaml: expected `field: value` lines, got list"),
        ("reason: 'a'", "f.yaml: expected the fields reason and act, got no act"),
        ("reason: '('\nact: b", r"f.yaml, Format\('f'\).reason: expected a regular expression"),
        ("reason: a\nact: 5", "f.yaml, act: expected a string, got 5"),
        ("reason: a\nact: b\ninline: 'no'", "f.yaml, inline: expected true or false, got 'no'"),
        ("reason: a\nact: b\nthoughts: c", "f.yaml, thoughts: expected one of name, reason"),
        ("reason_tags: a", "f.yaml, reason_tags: expected a list, got 'a'"),
        ("think_tags: [a]", r"f.yaml, think_tags: expected a list of pairs, got \['a'\]"),
    ],
)
def test_bad_format_files(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "f.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        resolve_format("f.yaml")


def test_many_unparsed_places_are_counted_and_not_all_shown(run, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(50)))
    output = run(path)
    assert (
        "not parsed: 50 place(s)" in output and "and 30 more" in output and "text 19" in output and "text 20'" not in output
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl"], "missing.jsonl: expected a file of trajectories, got no such file."),
        (["bad.jsonl"], "bad.jsonl, line 2: expected one JSON object per line, got 'oops'"),
        (["empty.jsonl"], "empty.jsonl: expected at least one trajectory, got none."),
        (
            ["good.jsonl", "-f", "alfred"],
            "--format: expected one of alfworld, chat, markers, react, sad, webshop, or a .yaml file, got 'alfred'.",
        ),
        (
            ["good.jsonl", "-t", "no-such-folder"],
            "tokenizer: expected a folder with a model, or a model of the Hugging Face Hub, got 'no-such-folder'",
        ),
        (["good.jsonl", "--id", "nobody"], "--id: expected ids in good.jsonl, got nobody. The first id is 'good.jsonl:1'."),
        (["good.jsonl", "--long", "cut"], "long: expected one of truncate, window, turns, got 'cut'."),
        (["good.jsonl", "--unroll", "no"], "unroll: expected one of auto, never, always, got 'no'."),
        (["bad.jsonl", "--on-error", "stop"], "bad.jsonl, line 2: expected one JSON object per line, got 'oops'"),
        (["good.jsonl", "-n", "-1"], "--limit: expected an integer of at least 0, got -1."),
        (["good.jsonl", "--max-length", "0"], "--max-length: expected an integer of at least 1, got 0."),
        (["good.jsonl", "--html", "good.jsonl"], "--html: expected a new file, got 'good.jsonl', which exists."),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sad", "inspect", *arguments])
    (tmp_path / "good.jsonl").write_text('{"text": "Action: go"}\n')
    (tmp_path / "bad.jsonl").write_text("\noops\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(SystemExit) as left:
        main()
    output, error = capsys.readouterr()
    assert left.value.code == 2 and output == ""
    assert error.startswith(f"sad: {message}") and len(error.splitlines()) == 1
    assert (tmp_path / "good.jsonl").read_text() == '{"text": "Action: go"}\n'


def test_a_bad_file_raises_before_torch_is_imported(tmp_path):
    code = "import sys; from sad.cli.main import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "inspect", "missing.jsonl"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "False\n") and "no such file" in result.stderr


def test_overlays_show_the_whole_text_once(gpt2_tokenizer):
    """Also if a character is split into byte tokens, and if tokens were truncated."""
    text = "obs 😀\nReasoning: 日本 😀 é\n\nAction: go 日\n\n日 本\nAction: x"
    for max_length in (None, 12, 21):
        encoded = encode(text, gpt2_tokenizer, max_length=max_length, observe=True)
        pieces = token_pieces(text, encoded.offsets, encoded.span_ids, truncated=encoded.truncated, eos="")
        assert "".join(piece.text for piece in pieces) == text
        shades = [piece.shade for piece in pieces if piece.kind]
        assert all(a != b for a, b in pairwise(shades))
    found = Trajectory(text=text).segmented()
    assert len(found.spans) == 3 and len(found.observations) == 1
    pieces = span_pieces(text, found.spans + found.observations)
    assert "".join(piece.text for piece in pieces) == text and "日 本\n" in [piece.text for piece in pieces]


def test_long_lines_keep_their_margin_on_a_terminal():
    text = "Action: " + "put the cabinet " * 8 + "down\nnothing"
    spans = [Span(0, text.index("\n") + 1, SpanKind.ACT)]
    screen = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None)
    lines = terminal_overlay(span_pieces(text, spans), screen).plain.splitlines()
    assert [line[:5] for line in lines] == [" A │ ", *["   │ "] * (len(lines) - 1)] and len(lines) > 4
    assert all(len(line) <= 40 for line in lines)
    words = " ".join(line[5:].strip() for line in lines).replace("↵", "").split()
    assert words == text.split()  # no word is broken
    plain = Console(file=io.StringIO(), width=40)
    assert len(terminal_overlay(span_pieces(text, spans), plain).plain.splitlines()) == 2


def test_the_source_is_recognized_or_named(run, tmp_path):
    record = {"prompt": "Q: 2+2?\n", "completion": "Thought: easy\nAction: 4"}
    (tmp_path / "log.json").write_text(json.dumps([record, record], indent=1))
    for arguments in ([], ["--source", "trl"]):
        shown = run("log.json", *arguments)
        assert "log.json: prompts with completions, 2 trajectories" in shown and "2 with reasoning and actions" in shown
    with pytest.raises(InputError, match=r"source: expected one of auto, .*trl"):
        run("log.json", "--source", "none")


def test_refused_trajectories_stop_on_request(run, tmp_path):
    lines = ({"id": "good", "text": "Action: go\n"}, {"id": "bad", "text": "Action: go\n", "format": "nowhere"})
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "refused: 1 trajectory" in run("f.jsonl")
    with pytest.raises(InputError, match=r"format of trajectory 'bad': expected one of .*nowhere"):
        run("f.jsonl", "--on-error", "stop")
