"""A pruned model gives the same logits on the same texts, and its tokenizer still encodes every text."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sad.errors import InputError
from sad.scratch.models import build_decoder, train_tokenizer
from sad.scratch.shape import DecoderShape
from sad.study.vocabulary import prune_vocabulary

TEXTS = [f"The cat number {k} sat on a mat, and the dog said hello to mug {k}.\n" for k in range(40)]
USED = ["The cat sat.\n", "mug 3 on a mat\n"]


def check(tokenizer, model, texts: list[str], tied: bool = True) -> None:
    model.eval()
    before = {text: tokenizer(text)["input_ids"] for text in texts}
    logits = {text: model(torch.tensor([ids])).logits[0] for text, ids in before.items()}
    names = {text: tokenizer.convert_ids_to_tokens(ids) for text, ids in before.items()}
    pruned = prune_vocabulary(model, tokenizer, texts)
    assert len(pruned) == model.config.vocab_size < len(tokenizer)
    for text in texts:
        ids = pruned(text)["input_ids"]
        assert pruned.convert_ids_to_tokens(ids) == names[text]
        kept = tokenizer.convert_tokens_to_ids(pruned.convert_ids_to_tokens(range(len(pruned))))
        torch.testing.assert_close(model(torch.tensor([ids])).logits[0], logits[text][:, kept], rtol=1e-5, atol=1e-5)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert pruned.convert_ids_to_tokens(model.config.eos_token_id) == tokenizer.eos_token


def test_byte_level_bpe() -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    model = build_decoder(DecoderShape(1, 16, 2), tokenizer, 64, seed=0)
    check(tokenizer, model, USED)


def test_other_texts_are_still_encoded_without_a_loss() -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    model = build_decoder(DecoderShape(1, 16, 2), tokenizer, 64, seed=0)
    pruned = prune_vocabulary(model, tokenizer, USED)
    for text in ["hello dog\n", "ünïcode 你好\t"]:
        assert pruned.decode(pruned(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_heads_of_their_own_and_special_tokens_of_a_post_processor() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_tokenizer(TEXTS, 400)
    core = tokenizer.backend_tokenizer
    core.add_special_tokens(["<bos>"])
    core.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", core.token_to_id("<bos>"))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", bos_token="<bos>")
    model = build_decoder(DecoderShape(1, 16, 2), tokenizer, 64, seed=0)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    check(tokenizer, model, USED, tied=False)


def test_other_types_are_refused() -> None:
    core = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(InputError, match="a BPE tokenizer"):
        prune_vocabulary(None, PreTrainedTokenizerFast(tokenizer_object=core), ["a"])
    assert json.loads(core.to_str())["model"]["type"] == "WordLevel"
