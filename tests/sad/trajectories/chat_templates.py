"""Which conversations can be labelled with which chat template: judges every cell of a table on its own.

As a script it writes the table of docs/chat_templates.md:

    python -m tests.sad.trajectories.chat_templates FOLDER_WITH_TEMPLATES docs/chat_templates.md
"""

from __future__ import annotations

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import sad

START, END = "<!-- table -->", "<!-- end of table -->"
MARK = re.compile(r"<\|[A-Za-z_]+\|?>|<[a-z_]+\|>|<｜[^｜]+｜>|<(?:start|end)_of_(?:turn|utterance)>|<sop>")
EOS = {  # by the start of the template's name; the first that fits
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>",
    "glm": "<|endoftext|>",
    "gptoss": "<|return|>",
    "idefics": "<end_of_utterance>",
    "llama": "<|eot_id|>",
    "llava": "</s>",
    "phi": "<|endoftext|>",
    "": "<|im_end|>",
}
FAMILIES_THAT_THINK = ("deepseek", "diffusion_gemma", "glm", "gptoss", "lfm2_2_5", "nemotron", "qwen3_5", "qwen3_6")


def thinks(name: str) -> bool:
    """Returns whether the models of a template think, so that all conversations must be labelled."""
    return name in ("qwen3", "qwen3_training") or name.startswith(FAMILIES_THAT_THINK)


def _call(name: str, value: str, number: int) -> dict[str, Any]:
    function = {"name": name, "arguments": {"place": value}}
    return {"id": f"callid{number:03}", "type": "function", "function": function}


def _ask(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _say(text: str, thought: str = "", *calls: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    return message | ({"reasoning_content": thought} if thought else {}) | ({"tool_calls": list(calls)} if calls else {})


def _result(text: str, number: int) -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": f"callid{number:03}"}


class Conversation(NamedTuple):
    """A conversation whose words tell who wrote them: `thought..` and `reply..` are the model's, `seen..` the others'."""

    title: str
    messages: list[dict[str, Any]]
    tools: bool = False


CONVERSATIONS = (
    Conversation("plain", [_ask("seenone?"), _say("replyone."), _ask("seentwo?"), _say("replytwo.")]),
    Conversation("thinking", [_ask("seenone?"), _say("replyone.", "thoughtone thoughtmore.")]),
    Conversation(
        "tool calls",
        [
            _ask("seenone?"),
            _say("", "", _call("look", "replyone", 1)),
            _result("seentwo", 1),
            _say("", "", _call("look", "replytwo", 2)),
            _result("seenthree", 2),
            _say("replythree."),
        ],
        tools=True,
    ),
    Conversation(
        "parallel calls",
        [
            _ask("seenone?"),
            _say("", "", _call("look", "replyone", 1), _call("open", "replytwo", 2)),
            _result("seentwo", 1),
            _result("seenthree", 2),
            _say("replythree."),
        ],
        tools=True,
    ),
    Conversation(
        "thoughts over several turns",
        [
            _ask("seenone?"),
            _say("replyone.", "thoughtone."),
            _ask("seentwo?"),
            _say("replytwo.", "thoughttwo."),
            _ask("seenthree?"),
            _say("replythree.", "thoughtthree."),
        ],
    ),
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} at a place",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "where"}},
                "required": ["place"],
            },
        },
    }
    for name in ("look", "open")
]


@cache
def _core() -> bytes:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return core.to_str()


def tokenizer_of(name: str, template: str) -> Any:
    """Returns a tokenizer with one token per byte, the special tokens of a template, and this template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    eos = next(token for start, token in EOS.items() if name.startswith(start))
    special = sorted(set(MARK.findall(template)) - {eos})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_core()), bos_token="<s>", eos_token=eos, additional_special_tokens=special
    )
    tokenizer.chat_template = template
    return tokenizer


class Cell(NamedTuple):
    """What becomes of a conversation: "labelled", "refused" or "wrong"; the number of examples, and why."""

    verdict: str
    examples: int = 0
    reason: str = ""


def judge(tokenizer: Any, conversation: Conversation) -> Cell:
    """Labels a conversation and checks every word, every border, and that a refusal is true."""
    tools = TOOLS if conversation.tools else None
    trajectory = sad.Trajectory(messages=conversation.messages, extra={"tools": tools} if tools else {})
    try:
        corpus = sad.encode_all([trajectory], tokenizer, say=lambda message: None)
    except sad.InputError as error:
        return _judge_refusal(tokenizer, conversation, tools, error)
    texts = [(tokenizer.decode(x["input_ids"]), _letters(tokenizer, x)) for x in corpus.examples]
    alone = len(texts) == 1
    faults = [fault for text, labels in texts for fault in _faults(tokenizer, conversation, tools, text, labels, alone)]
    spoken = re.findall(r"(?:thought|reply)\w+", repr(conversation.messages))
    for word in spoken:
        label = 1 if word.startswith("thought") else 2
        found = [set(labels[m.start() : m.end()]) for text, labels in texts for m in re.finditer(rf"\b{word}\b", text)]
        if found.count({label}) != 1 or not all(kinds in ({label}, {0}) for kinds in found):
            faults.append(f"{word}: {found}, expected {label} once")
    for word in re.findall(r"seen\w+", repr(conversation.messages)):
        if not any(word in text for text, _ in texts):
            faults.append(f"{word} is lost")
    if faults:
        return Cell("wrong", len(texts), "; ".join(faults))
    return Cell("labelled", len(texts), "; ".join(item.reason for _, item in corpus.unparsed))


def _letters(tokenizer: Any, example: dict[str, Any]) -> list[int]:
    """Returns the label of every character of the decoded example."""
    labels: list[int] = []
    for token, label in zip(example["input_ids"], example["span_ids"]):
        written = tokenizer.convert_ids_to_tokens(token)
        labels += [label] * (len(written) if written in tokenizer.all_special_tokens else 1)
    return labels


def _faults(tokenizer: Any, conversation: Conversation, tools: Any, text: str, labels: list[int], alone: bool) -> list[str]:
    """Returns what is wrong with the runs of labelled characters of one example; `alone`: there is no other example."""
    if len(text) != len(labels):
        return [f"{len(labels)} labels of {len(text)} characters"]
    found = []
    runs = [match.span() for match in re.finditer("x+", "".join("x" if label else "." for label in labels))]
    masked = _generated(tokenizer, conversation, tools, text)
    for start, end in runs:
        run = text[start:end]
        if "seen" in run:
            found.append(f"the run {run!r} holds what others wrote")
        if not re.search(r"(?:thought|reply)\w+", run):
            found.append(f"the run {run!r} has no word of the model")
        if masked is None and re.search(r"user|USER|User", run):
            found.append(f"the run {run!r} holds the header of a turn")
        if not _HEADER.search(text[:start].rstrip()):
            found.append(f"the run {run!r} follows {text[:start].rstrip()[-30:]!r}, which is no header")
        ends_with_mark = run.rstrip().endswith((*tokenizer.all_special_tokens, "</tool_call>"))
        if text[end:].lstrip().startswith(tokenizer.eos_token) and not ends_with_mark:
            found.append(f"the end mark after {run[-30:]!r} has no label")
    if masked is not None:  # a training template says itself what the model writes
        outside = "".join(text[i] for i, label in enumerate(labels) if label and not masked[i])
        missed = "".join(text[i] for i, label in enumerate(labels) if masked[i] and not label)
        if outside.replace("<|tool_response>", "").strip():  # Gemma 4 stops with this mark after a call
            found.append(f"labels outside of the template's generation blocks: {outside!r}")
        if alone and re.search(r"\w{4}", re.sub(r"<[^<>]*>|assistant|thought", "", missed)):
            found.append(f"no labels in the template's generation blocks: {missed!r}")
    return found


_HEADER = re.compile(
    r"(?:assistant|model|ASSISTANT|Assistant|CHATBOT)\S{0,40}$|Assistant:$|\[/INST\]$|</think>$"
    r"|(?:assistant<\|end_header_id|ASSISTANT_TOKEN|CHATBOT_TOKEN|START_RESPONSE|assistant)\|>$|<｜Assistant｜>$|outputs?▁end｜>$"
)


def _generated(tokenizer: Any, conversation: Conversation, tools: Any, text: str) -> list[bool] | None:
    """Returns for each character of an example whether a training template marks it as generated; None for another one."""
    if "generation %}" not in tokenizer.chat_template and "generation -%}" not in tokenizer.chat_template:
        return None
    for count in range(len(conversation.messages), 0, -1):
        for messages in (conversation.messages[:count], _without_empty(conversation.messages[:count])):
            try:
                found = tokenizer.apply_chat_template(
                    messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True
                )
            except Exception:
                continue
            if tokenizer.decode(found["input_ids"]) == text and any(found["assistant_masks"]):
                example = {"input_ids": found["input_ids"], "span_ids": found["assistant_masks"]}
                return [bool(mark) for mark in _letters(tokenizer, example)]
    return None


def _without_empty(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the messages as DeepSeek's template wants them: no empty content, arguments as JSON."""
    written = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in message.get("tool_calls", ())
        ]
        written.append({**message, **({"tool_calls": calls} if calls else {})})
    return written


def _judge_refusal(tokenizer: Any, conversation: Conversation, tools: Any, error: sad.InputError) -> Cell:
    """Checks with transformers alone that the template rejects the conversation, or drops words of it, in every form."""
    reason = f"{error.got} {error.remedy}"
    for key in ("reasoning_content", "reasoning", "thinking", "inline"):
        messages = [dict(message) for message in conversation.messages]
        for message in messages:
            if "reasoning_content" in message:
                thought = message.pop("reasoning_content")
                if key == "inline":
                    continue
                message[key] = thought
        try:
            text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        except Exception:
            continue
        if all(word in text for word in re.findall(r"(?:thought|reply|seen)\w+", repr(conversation.messages))):
            return Cell("wrong", reason=f"refused although the template writes it all: {reason}")
    return Cell("refused", reason=reason)


def table(folder: Path) -> dict[str, list[Cell]]:
    """Returns the cells of every template of a folder."""
    found = {}
    for path in sorted(folder.glob("*.jinja")):
        tokenizer = tokenizer_of(path.stem, path.read_text(encoding="utf-8"))
        found[path.stem] = [judge(tokenizer, conversation) for conversation in CONVERSATIONS]
    return found


def page(cells: dict[str, list[Cell]]) -> str:
    """Returns the table as Markdown."""
    lines = ["| template | " + " | ".join(conversation.title for conversation in CONVERSATIONS) + " |"]
    lines.append("|---" * (len(CONVERSATIONS) + 1) + "|")
    for name, row in cells.items():
        lines.append(f"| `{name}` | " + " | ".join(map(_shown, row)) + " |")
    return "\n".join(lines)


def _shown(cell: Cell) -> str:
    if cell.verdict == "labelled":
        one_by_one = ", one call each" if "one call per message" in cell.reason else ""
        return "yes" + (f", {cell.examples} examples" if cell.examples > 1 else "") + one_by_one
    if cell.verdict == "wrong":
        return f"WRONG: {cell.reason}"
    return "refused: " + ("no thoughts" if "reasoning" in cell.reason else "no calls")


def write_page(path: Path, cells: dict[str, list[Cell]]) -> None:
    """Replaces the table of a page."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    path.write_text(f"{before}{START}\n{page(cells)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    write_page(Path(sys.argv[2]), table(Path(sys.argv[1])))
