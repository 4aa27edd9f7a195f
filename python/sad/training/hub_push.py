"""Pushes the student and its checkpoints to the Hugging Face Hub.

`transformers.Trainer` would copy model files into the output folder and upload that folder, with the records of the run and
`training_args.bin`, which may hold the token. Here only a model folder is uploaded, and a push that
fails changes nothing on disk.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress, logging

from sad.errors import InputError

logger = logging.get_logger(__name__)

STAGING_NAME = ".hub"  # in the output folder: files of pushes that are under way
_SECRET = "training_args.bin"
_STATES = [
    "optimizer*", "scheduler*", "scaler*", "rng_state*", "trainer_state.json", "manifest.json", "global_step*", "latest",
    "zero_to_fp32.py", "pytorch_model_fsdp*",
]  # fmt: skip


class PushesToHub:
    """Replaces the pushes of `transformers.Trainer`. A mixin before it, for a trainer that has `create_model_card`."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Creates the repository if it is missing, and checks that the token may write to it. Nothing is uploaded.

        Args:
            token: Default: `hub_token`, else the token of the login.
            private: Whether a new repository is private. Default: `hub_private_repo`.

        Raises:
            InputError: It cannot be created or written to, or the Hub cannot be reached.
        """
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        token = self.args.hub_token if token is None else token
        private = self.args.hub_private_repo if private is None else private
        try:
            api = HfApi()
            self.hub_model_id = api.create_repo(name, token=token, private=private, exist_ok=True).repo_id
            # A repository that exists is accepted without the right to write. This question needs the right.
            url = f"{api.endpoint}/api/models/{self.hub_model_id}/preupload/{self.args.hub_revision or 'main'}"
            asked = {"files": [{"path": "README.md", "size": 0, "sample": ""}]}
            hf_raise_for_status(get_session().post(url, json=asked, headers=build_hf_headers(token=token)))
        except Exception as error:  # of the HTTP library, which differs between versions of huggingface_hub
            self.hub_model_id = None
            remedy = "Check the network, or remove push_to_hub and push the trained model later: hf upload NAME FOLDER"
            if _is_denied(error):
                remedy = "Log in with a token that may write (hf auth login), or pass hub_model_id with your user name."
            raise InputError("push_to_hub", "a repository to write to", f"{name!r} ({_reason(error)})", remedy) from None
        self.push_in_progress = None

    def push_folder(self, folder: Path, message: str) -> CommitInfo | None:
        """Uploads a model folder and waits for it. Only the main process does something.

        Args:
            folder: The folder.
            message: The message of the commit.

        Raises:
            InputError: The Hub does not take it. The folder is unchanged.
        """
        if not self.is_world_process_zero():
            return None
        try:
            return HfApi().upload_folder(folder_path=folder, commit_message=message, **self._target())
        except Exception as error:  # as above
            command = shlex.join(["hf", "upload", self.hub_model_id, str(folder)])
            got = f"an error ({_reason(error)}); the model is in {folder}"
            raise InputError("push_to_hub", "the Hub to take the model", got, f"Push it with: {command}") from None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """Saves the model with its card in a hidden folder and uploads it.

        Args:
            commit_message: The message of the commit.
            blocking: Must be true.
            token: Default: `hub_token`, else the token of the login.
            revision: Must be None: set `hub_revision`.
            **kwargs: Accepted for compatibility; the card is that of `create_model_card`.

        Raises:
            InputError: The Hub does not take the model, or an argument is not supported.
        """
        if not blocking or revision is not None:
            name, got = ("revision", repr(revision)) if blocking else ("blocking", "False")
            raise InputError(name, "the default", got, "Set hub_revision in the configuration; pushes at the end wait.")
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        staged = Path(self.args.output_dir, STAGING_NAME, "model")
        self.save_model(str(staged), _internal_call=True)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            self.write_model_card(staged)
        self._finish_current_push(keep=staged)
        pushed = self.push_folder(staged, commit_message)
        if self.is_world_process_zero():
            shutil.rmtree(staged.parent, ignore_errors=True)
        return pushed

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Uploads the model of a checkpoint in the background, and with `hub_strategy` the whole checkpoint."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if not busy:
            self._finish_current_push()
        folder = Path(checkpoint_folder)
        staged = Path(self.args.output_dir, STAGING_NAME, folder.name)
        shutil.copytree(folder, staged, copy_function=_link, dirs_exist_ok=True)  # the checkpoint may be rotated meanwhile
        self.write_model_card(staged)
        target = {**self._target(), "folder_path": staged, "run_as_future": True}
        message = f"Training in progress, step {self.state.global_step}"
        api = HfApi()
        jobs = [api.upload_folder(commit_message=message, **target | {"ignore_patterns": [_SECRET, *_STATES]})]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            path = "last-checkpoint" if self.args.hub_strategy == HubStrategy.CHECKPOINT else folder.name
            jobs.append(api.upload_folder(commit_message=f"{message}, checkpoint", path_in_repo=path, **target))
        if busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)

    def _finish_current_push(self, keep: Path | None = None) -> None:
        """Waits for the pushes of checkpoints, warns of those that failed, and removes their files."""
        if getattr(self, "push_in_progress", None) is None:
            return
        super()._finish_current_push()
        for job in self.push_in_progress.jobs:
            if (error := job.exception()) is not None:
                logger.warning("A checkpoint was not pushed to the Hub (%s). It is kept on disk.", _reason(error))
        self.push_in_progress = None
        for staged in Path(self.args.output_dir, STAGING_NAME).glob("*"):
            if staged != keep:
                shutil.rmtree(staged, ignore_errors=True)
        if keep is None:
            shutil.rmtree(Path(self.args.output_dir, STAGING_NAME), ignore_errors=True)

    def _target(self) -> dict[str, Any]:
        """Returns the arguments of every upload."""
        args = self.args
        revision = getattr(args, "hub_revision", None)
        return {"repo_id": self.hub_model_id, "token": args.hub_token, "revision": revision, "ignore_patterns": [_SECRET]}


def _link(source: str, target: str) -> None:
    """Links a file, or copies it if the file system has no hard links."""
    try:
        Path(target).unlink(missing_ok=True)
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _is_denied(error: Exception) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, LocalTokenNotFoundError) or (isinstance(error, HfHubHTTPError) and status in (401, 403))


def _reason(error: BaseException) -> str:
    """Returns the first line of an error, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
