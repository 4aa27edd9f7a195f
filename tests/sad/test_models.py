"""Models and tokenizers from folders, and the checks that they fit together."""

from __future__ import annotations

import json

import pytest
import torch

from sad import models
from sad.errors import InputError
from tests.sad.training import tiny


def test_weights_and_dtypes(tmp_path):
    model = tiny.model(seed=3)
    model.save_pretrained(tmp_path)
    assert torch.equal(models.load_model("student", tmp_path).lm_head.weight, model.lm_head.weight)
    assert models.load_model("teacher", tmp_path, dtype="bfloat16").lm_head.weight.dtype == torch.bfloat16


def test_a_config_alone_is_a_student_only_on_request(tmp_path):
    tiny.model().config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="--from-config"):
        models.load_model("student", tmp_path)
    first, again, other = (models.load_model("student", tmp_path, from_config=True, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(InputError, match="hf download"):
        models.load_model("teacher", "gpt2-xl")
    with pytest.raises(InputError, match=r"config\.json"):
        models.load_model("teacher", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="teacher"):
        models.load_model("teacher", tmp_path)
    with pytest.raises(InputError, match="student_dtype"):
        models.check_dtype("student_dtype", "int4")


def test_a_file_that_belongs_to_another_user_is_named(tmp_path, monkeypatch):
    tiny.model().save_pretrained(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).endswith("model.safetensors"))  # root reads everything
    with pytest.raises(InputError, match=r"student: .*model\.safetensors', which this user may not read\. Ask the owner"):
        models.load_model("student", tmp_path)


def test_a_tokenizer_comes_back_from_its_folder_or_is_absent(tmp_path):
    assert models.load_tokenizer("student", tmp_path) is None
    tiny.tokenizer().save_pretrained(tmp_path)
    assert models.load_tokenizer("student", tmp_path).get_vocab() == tiny.tokenizer().get_vocab()
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="student's tokenizer"):
        models.load_tokenizer("student", tmp_path)


def test_one_tokenizer_for_both():
    same = models.shared_tokenizer(tiny.tokenizer(), tiny.tokenizer(), ["Action: go to desk 1\n"])
    assert len(same) == 300
    assert models.shared_tokenizer(None, same) is same and models.shared_tokenizer(same, None) is same
    with pytest.raises(InputError, match="none"):
        models.shared_tokenizer(None, None)


def test_other_vocabularies_are_named_by_their_first_differences():
    with pytest.raises(InputError) as caught:
        models.shared_tokenizer(tiny.tokenizer(300), tiny.tokenizer(310))
    message = str(caught.value)
    names = {index: token for token, index in tiny.tokenizer(310).get_vocab().items()}
    assert "300 and 310 entries, 10 ids differ" in message
    assert f"id 300: None and {names[300]!r}" in message and "id 303" not in message


def test_equal_vocabularies_that_cut_differently():
    """Two tokenizers have the same entries, and one never produces the last."""
    ours = tiny.tokenizer()
    state = json.loads(ours.backend_tokenizer.to_str())
    state["model"]["merges"] = state["model"]["merges"][:-10]
    theirs = tiny.tokenizer()
    theirs._tokenizer = type(ours.backend_tokenizer).from_str(json.dumps(state))
    assert ours.get_vocab() == theirs.get_vocab()
    models.shared_tokenizer(theirs, ours)  # the merges are not compared without text
    with pytest.raises(InputError, match="different merges"):
        models.shared_tokenizer(theirs, ours, [tiny.trajectories(1)[0].text])


def test_a_model_too_small_for_tokenizer_or_sequence():
    models.check_fits("student", tiny.model(vocabulary=320), tiny.tokenizer(), 128)
    with pytest.raises(InputError, match="300 ids"):
        models.check_fits("student", tiny.model(vocabulary=299), tiny.tokenizer(), 128)
    with pytest.raises(InputError, match="128 positions"):
        models.check_fits("teacher", tiny.model(), tiny.tokenizer(), 129)
