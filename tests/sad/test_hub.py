"""Models by folder or by name: what is downloaded, and one message for each way to fail."""

from __future__ import annotations

from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from sad import hub, models
from sad.errors import InputError
from sad.trajectories.tokenizers import load_tokenizer
from tests.sad.training import tiny


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    """Returns a function that sets the files of the Hub's only model `own/tiny`, or the error of any request."""
    hub._download.cache_clear()
    tiny.model().save_pretrained(tmp_path / "snapshot")
    tiny.tokenizer().save_pretrained(tmp_path / "snapshot")
    asked: list[list[str] | None] = []

    def download(name, allow_patterns=None, local_files_only=False):
        asked.append(allow_patterns)
        return str(tmp_path / "snapshot")

    def set_up(files=("config.json", "model.safetensors"), error=None):
        def info(self, name, timeout):
            if error is not None:
                raise error
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        return asked

    yield set_up
    hub._download.cache_clear()


def test_a_name_is_a_model(fake_hub):
    asked = fake_hub()
    assert models.load_model("teacher", "own/tiny").config.n_embd == 32
    assert models.load_tokenizer("teacher", "own/tiny").eos_token == load_tokenizer("own/tiny").eos_token == "<eos>"
    assert "*.safetensors" in asked[0] and not [patterns for patterns in asked[1:] if "*.safetensors" in patterns]
    assert not [patterns for patterns in asked if "*.py" in patterns]


def test_old_weights_only_without_new_ones(fake_hub):
    asked = fake_hub(files=("config.json", "pytorch_model.bin"))
    hub.model_folder("teacher", "own/tiny")
    assert "*.bin" in asked[0] and "*.safetensors" not in asked[0]


def test_a_folder_takes_precedence(fake_hub, tmp_path, monkeypatch):
    fake_hub(error=AssertionError("the Hub was asked"))
    (tmp_path / "own" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.model_folder("teacher", "own/tiny").is_dir()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (GatedRepoError, "does not grant you access to this model. Ask for access at https://huggingface.co/own/tiny"),
        (RepositoryNotFoundError, "the Hub has no such model. Check the spelling"),
        (LocalEntryNotFoundError, "not in the local cache"),
        (ConnectionError("no route\nto host"), "the Hub cannot be reached (no route). Check the spelling and the network"),
        (TimeoutError(), "the Hub cannot be reached (TimeoutError)"),
    ],
)
def test_errors(fake_hub, error, expected):
    fake_hub(error=error.__new__(error) if isinstance(error, type) else error)  # their constructors differ by version
    with pytest.raises(InputError) as caught:
        models.load_model("teacher", "own/tiny")
    assert caught.value.where == "teacher" and expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["./no/such", "/no/such", "a/b/c", "no such", "", "../x"])
def test_what_cannot_be_a_name_is_not_asked_for(fake_hub, value):
    fake_hub(error=AssertionError("the Hub was asked"))
    with pytest.raises(InputError, match="is not a folder"):
        hub.model_folder("student", value)
