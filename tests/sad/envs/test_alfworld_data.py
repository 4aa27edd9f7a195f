"""The ALFWorld data folder: listed games, skipped files, and errors for missing data."""

from __future__ import annotations

import json

import pytest

import sad

from .alfworld_data import write_game

BOOK = "look_at_obj_in_light-Book-None-DeskLamp-301"


def test_broken_files_are_skipped_counted_and_named(tmp_path):
    split = tmp_path / "json_2.1.1" / "valid_seen"
    good = write_game(split / BOOK / "trial_1")
    broken = {
        name: write_game(split / BOOK / name) for name in ("empty", "cut", "page", "list", "goal", "words", "slot", "half")
    }
    broken["empty"].write_text("")
    broken["cut"].write_text(good.read_text()[:-40])
    broken["page"].write_bytes(b"<html>\xff\xfe not found")
    broken["list"].write_text("[1]")
    game = json.loads(good.read_text())
    broken["goal"].write_text(
        json.dumps(game | {"pddl_problem": game["pddl_problem"].replace("(isToggled ?l)", "(isToggled ?x)")})
    )
    broken["slot"].write_text(good.read_text().replace("put {o} in/on {r}", "put {o} beside {neighbour}"))
    broken["words"].write_text(json.dumps(game | {"grammar": "none"}))
    broken["half"].write_text(json.dumps(game | {"pddl_problem": game["pddl_problem"][:-1]}))
    with pytest.warns(UserWarning, match=r"8 broken game files skipped; the first: .*cut.game\.tw-pddl: "):
        env = sad.envs.make("alfworld", root=tmp_path, split="valid_seen")
    assert [task.id for task in env.tasks] == [f"{BOOK}/trial_1"]
    messages = [message.partition("game.tw-pddl: ") for message in env.skipped]
    assert sorted(path for path, _, _ in messages) == sorted(f"{path.parent}/" for path in broken.values())
    assert all(reason for _, _, reason in messages)
    good.write_text("")
    with pytest.raises(sad.InputError, match=r"split: expected games \(game.tw-pddl\) to play in .*, got 9 broken ones"):
        sad.envs.make("alfworld", root=tmp_path, split="valid_seen")


def test_games_that_the_official_engine_omits_are_omitted_without_a_warning(tmp_path, recwarn):
    split = tmp_path / "valid_seen"
    write_game(split / BOOK / "trial_1")
    write_game(split / BOOK / "trial_2", solvable=False)
    write_game(split / BOOK / "trial_3", solvable=None)
    write_game(split / "pick_and_place_with_movable_recep-Book-Box-Desk-301" / "trial_1")
    write_game(split / "pick_and_place_simple-AppleSliced-None-Desk-3" / "trial_1")
    env = sad.envs.make("alfworld", root=tmp_path, split="valid_seen", types=["look_at_obj_in_light"])
    assert [task.id for task in env.tasks] == [f"{BOOK}/trial_1"] and not env.skipped and not recwarn


def test_a_human_written_goal_is_kept(tmp_path):
    write_game(tmp_path / "train" / BOOK / "trial_1", task='Hold the \\"book\\" up to the light')
    env = sad.envs.make("alfworld", root=tmp_path)
    assert env.tasks[0].goal == 'Hold the "book" up to the light'
    assert env.reset(env.tasks[0]).endswith('Your task is to: Hold the "book" up to the light')
    with pytest.raises(sad.InputError, match="a goal in one of the household's templates"):
        env.expert(env, env.tasks[0])


def test_the_error_for_a_missing_folder_names_the_download_command(tmp_path, monkeypatch):
    expected = r"root: expected ALFWorld's data folder, .* got .*nowhere, which does not exist\. Get .*alfworld-download"
    with pytest.raises(sad.InputError, match=expected):
        sad.envs.make("alfworld", root=tmp_path / "nowhere", split="valid_seen")
    with pytest.raises(sad.InputError, match="alfworld-download"):
        sad.envs.make("alfworld", root=tmp_path, split="valid_seen")
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    write_game(tmp_path / "json_2.1.1" / "valid_seen" / BOOK / "trial_1")
    assert len(sad.envs.make("alfworld", split="valid_seen").tasks) == 1
    with pytest.raises(sad.InputError, match="split: expected one of valid_seen, got 'train'"):
        sad.envs.make("alfworld")
    with pytest.raises(sad.InputError, match="types: expected one of pick_and_place_simple"):
        sad.envs.make("alfworld", split="valid_seen", types=["pick"])


def test_a_game_file_that_is_changed_or_removed_later(tmp_path):
    path = write_game(tmp_path / "train" / BOOK / "trial_1")
    env = sad.envs.make("alfworld", root=tmp_path)
    env.reset(env.tasks[0])
    path.write_text('{"grammar": ""}')
    with pytest.raises(sad.InputError, match=r"game\.tw-pddl: expected an object with `grammar` and `pddl_problem`"):
        env.reset(env.tasks[0])
    path.write_text("")
    with pytest.raises(sad.InputError, match=r"game\.tw-pddl: expected a game file"):
        env.reset(env.tasks[0])
    path.unlink()
    with pytest.raises(sad.InputError, match=r"game\.tw-pddl: expected a game file"):
        env.reset(env.tasks[0])
