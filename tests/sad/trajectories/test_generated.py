"""Labels of generated tokens: the characters of each token, and the spans of their text."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedTokenizerFast

from sad import label_generated
from sad.errors import InputError
from sad.trajectories.encode import encode
from sad.trajectories.generated import decode_with_offsets
from sad.trajectories.trajectory import Trajectory
from tests.sad.training import tiny

VOCABULARIES = Path(__file__).resolve().parents[4] / "shared" / "data" / "chat" / "vocab"
TEXT = "Reasoning: the mug 😀 is “here”.\nAction: take mug\nYou see ☃ and 家.\nReasoning: done\nAction: stop\n"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = tiny.tokenizer()
    made.backend_tokenizer.decoder = decoders.ByteLevel()
    return made


def test_offsets_are_those_of_the_tokenizer(tokenizer):
    """All tokens of a character that several tokens share have its range."""
    encoding = tokenizer(TEXT, return_offsets_mapping=True)
    text, offsets = decode_with_offsets(encoding["input_ids"], tokenizer)
    assert text == TEXT
    assert offsets == encoding["offset_mapping"]


@pytest.mark.skipif(not VOCABULARIES.is_dir(), reason="../shared/data/chat/vocab is not there")
@pytest.mark.parametrize("name", ["llama2", "qwen3"])  # the larger ones take up to 10 s to load
def test_real_tokenizers(name):
    content = gzip.decompress(Path(VOCABULARIES, name, "tokenizer.json.gz").read_bytes()).decode()
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(content))
    ids = made(TEXT, add_special_tokens=False)["input_ids"]
    text, offsets = decode_with_offsets(ids, made)
    assert text == made.decode(ids, clean_up_tokenization_spaces=False)
    assert text.strip() == TEXT.strip() and len(offsets) == len(ids)
    pieces = {text[start:end] for start, end in offsets}
    assert {"☃", "家"} <= {piece.strip() for piece in pieces} and offsets[-1][1] == len(text)


def test_labels_are_those_of_the_whole_text(tokenizer):
    """For a prompt that ends a line, and one that ends inside a line, whose token is not generated."""
    whole = encode(Trajectory(id="x", text="You see a desk.\n" + TEXT), tokenizer, format="sad", add_eos=False)
    for length in range(1, len(whole.input_ids)):
        prompt, generated = whole.input_ids[:length], whole.input_ids[length:]
        begins = tokenizer.decode(prompt)
        if begins.count("\n") != 1 or ("Reasoning:" in begins) != ("\nR" in begins):
            continue
        assert label_generated(prompt, generated, tokenizer, "sad") == whole.span_ids[length:], begins


def test_tokens_of_the_environment_are_not_the_models(tokenizer):
    prompt, generated = (tokenizer(text)["input_ids"] for text in ("Task.\n", "Action: go\nAction: fake\n"))
    after = len(tokenizer("Action: go\n")["input_ids"])
    written = [index < after for index in range(len(generated))]
    assert label_generated(prompt, generated, tokenizer, "sad", written=written) == [2] * after + [0] * (
        len(written) - after
    )
    observed = label_generated(prompt, generated, tokenizer, "sad", written=written, observe=True)
    assert observed == [2] * after + [3] * (len(written) - after)


def test_empty_and_refused(tokenizer):
    assert label_generated([1, 2], [], tokenizer, "sad") == []
    with pytest.raises(InputError, match="written"):
        label_generated([1], [2, 3], tokenizer, "sad", written=[True])
    with pytest.raises(InputError, match="format"):
        label_generated([1], [2, 3], tokenizer, "no such format")
