"""ALFWorld games on the household engine: equal to the official engine, and faster. The expert and its table."""

from __future__ import annotations

import copy
import re
import statistics
import time

import pytest

import sad
from sad.envs.alfworld.expert import AlfworldExpert, rollout_expert
from sad.envs.alfworld.object_locations import OBJECT_LOCATIONS
from sad.envs.alfworld.pddl import game_from_pddl
from sad.envs.household import expert as household
from sad.envs.household.env import HouseholdEnv

from .alfworld_data import HELP, rewrite_for_0_4, unpack
from .kitchen import read_gz


@pytest.fixture(scope="module")
def root(shared_data, tmp_path_factory):
    return unpack(shared_data / "alfworld" / "games_valid_seen.jsonl.gz", tmp_path_factory.mktemp("alfworld"))


@pytest.fixture(scope="module")
def env(root):
    return sad.envs.make("alfworld", root=root, split="valid_seen")


def test_official_transcripts_are_reproduced_exactly(env, shared_data):
    tasks = {task.id: task for task in env.tasks}
    different, count = [], 0
    for record in read_gz(shared_data / "alfworld" / "official_engine_valid_seen_expert.jsonl.gz"):
        _, name, trial, _ = record["game"].split("/")
        first, *turns = record["text"].split("\n> ")
        expected = first.removeprefix("-= Welcome to TextWorld, ALFRED! =-\n\n").replace("\n\n", "\n")
        answers = [("reset", expected, env.reset(tasks.pop(f"{name}/{trial}")))]
        won = False
        for turn in turns:
            action, _, observation = turn.partition("\n")
            step = env.step(action)
            won = step.info["won"]
            answers.append((action, observation.strip("\n"), step.observation))
        count += len(answers)
        different += [answer for answer in answers if answer[1] != answer[2]]
        assert won == record["won"], record["game"]
    assert count > 4000 and not different, different[:5]
    assert not tasks  # all 140 games were replayed


def test_tasks_are_the_games_of_the_folder(env, root, shared_data):
    rows = {row["gamefile"]: row for row in read_gz(shared_data / "alfworld" / "games_valid_seen.jsonl.gz")}
    assert {task.id: (task.type, f"Your task is to: {task.goal}") for task in env.tasks} == {
        name: (row["task_type"], row["task"]) for name, row in rows.items()
    }
    assert len({task.type for task in env.tasks[:40]}) == 6  # the order mixes the task types
    again = sad.envs.make("alfworld", root=root / "json_2.1.1", split="valid_seen")
    other = sad.envs.make("alfworld", root=root, split="valid_seen", seed=1)
    assert again.tasks == env.tasks != other.tasks and set(other.tasks) == set(env.tasks)


GAME = "pick_cool_then_place_in_recep-Pot-None-DiningTable-21/trial_T20190909_004531_429065"
OFFICIAL_ANSWERS = [  # of alfworld 0.4.2 on this game, rewritten for 0.4
    ("go to stoveburner 4", "You arrive at stoveburner 4. On the stoveburner 4, you see a pot 1."),
    ("take pot 1 from stoveburner 4", "You pick up the pot 1 from the stoveburner 4."),
    ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed."),
    ("cool pot 1 with fridge 1", "You cool the pot 1 using the fridge 1."),
    ("go to diningtable 3", "You arrive at diningtable 3. On the diningtable 3, you see a bread 1."),
    ("help", HELP.strip("\n")),
    ("put pot 1 in/on diningtable 3", "Nothing happens."),
    ("move pot 1 to diningtable 3", "You move the pot 1 to the diningtable 3."),
]
ADMISSIBLE_AFTER_GOING = "examine diningtable 3;examine pot 1;help;inventory;look;move pot 1 to diningtable 3"


def test_newer_games_have_their_own_commands(shared_data, root, tmp_path):
    folder = tmp_path / "valid_seen" / GAME
    folder.mkdir(parents=True)
    (folder / "game.tw-pddl").write_bytes((root / "json_2.1.1" / "valid_seen" / GAME / "game.tw-pddl").read_bytes())
    rewrite_for_0_4(folder / "game.tw-pddl")
    env = sad.envs.make("alfworld", root=tmp_path, split="valid_seen")
    env.reset(env.tasks[0])
    for action, expected in OFFICIAL_ANSWERS:
        if action == "help":
            assert [c for c in env.admissible_commands if not c.startswith("go ")] == ADMISSIBLE_AFTER_GOING.split(";")
        step = env.step(action)
        assert (step.observation, step.info["valid"]) == (expected, expected != "Nothing happens.")
    assert step.done and step.info["won"]
    trajectory = env.expert(env, env.tasks[0])
    assert trajectory.success and "Action: move pot 1 to diningtable" in trajectory.text
    short = sad.envs.make("alfworld", root=tmp_path, split="valid_seen", loc_prefix=False)
    short.reset(short.tasks[0])
    assert short.step("go to stoveburner 4").observation == "On the stoveburner 4, you see a pot 1."


def test_older_games_have_no_move_and_no_help(env):
    task = next(task for task in env.tasks if task.id == GAME)
    env.reset(task)
    for action in ("go to stoveburner 4", "take pot 1 from stoveburner 4"):
        env.step(action)
    for action in ("help", "move pot 1 to stoveburner 4", "Look", "x" * 10_000, ""):
        step = env.step(action)
        assert (step.observation, step.info["valid"], step.done) == ("Nothing happens.", False, False)
    assert env.step("put pot 1 in/on stoveburner 4 ").observation == "You put the pot 1 in/on the stoveburner 4."


def test_copies_run_independent_episodes(env):
    one, other = copy.copy(env), copy.copy(env)
    first = one.reset(env.tasks[0])
    commands = one.admissible_commands
    other.reset(env.tasks[1])
    other.step(other.admissible_commands[0])
    assert one.admissible_commands == commands and one.reset(env.tasks[0]) == first
    with pytest.raises(sad.InputError, match="task: expected one of the 140 tasks of this env, got 'nowhere'"):
        one.reset(env.tasks[0]._replace(id="nowhere"))


def test_resets_and_steps_are_much_faster_than_the_official_ones(root):
    """The official engine takes 1.8 s and 60 ms. Medians, because the machine can be busy."""
    env = sad.envs.make("alfworld", root=root, split="valid_seen", seed=3)
    resets, steps = [], []
    for task in env.tasks[:40]:
        start = time.perf_counter()
        env.reset(task)
        resets.append(time.perf_counter() - start)
        for command in env.admissible_commands[:20]:
            start = time.perf_counter()
            env.step(command)
            steps.append(time.perf_counter() - start)
    assert statistics.median(resets) < 0.018 and statistics.median(steps) < 0.003


def test_the_expert_solves_games_outside_its_table(env):
    trajectories = [env.expert(env, task, max_steps=50) for task in env.tasks]
    assert sum(trajectory.success for trajectory in trajectories) >= 135
    assert statistics.mean(trajectory.extra["steps"] for trajectory in trajectories) <= 8
    assert not any(trajectory.segmented().unparsed for trajectory in trajectories)
    assert {trajectory.env for trajectory in trajectories} == {"alfworld"}
    for reasoning, action in re.findall(
        r"Reasoning: (.*)\nAction: (.*)\n", "".join(trajectory.text for trajectory in trajectories)
    ):
        named = re.findall(r"[a-z]+ \d+", action)
        assert len(reasoning.split()) <= 32 and all(re.search(rf"\b{name}\b", reasoning) for name in named), reasoning


def test_the_expert_solves_training_games_and_its_table_is_counted_on_them(shared_data):
    unsolved = []

    def games():
        for number, row in enumerate(read_gz(shared_data / "alfworld" / "games_train.jsonl.gz")):
            game = game_from_pddl(row["pddl_problem"], row["task"], row["gamefile"])
            if number % 5 == 0 and not rollout_expert(HouseholdEnv([game]), game.task, max_steps=50).success:
                unsolved.append(game.task)
            yield game

    assert count_locations(games()) == OBJECT_LOCATIONS
    assert all(list(scores.values()) == sorted(scores.values(), reverse=True) for scores in OBJECT_LOCATIONS.values())
    assert not unsolved


def count_locations(games):
    """Computes the table `OBJECT_LOCATIONS` by its definition."""
    rooms, finds, places, actions = {}, {}, {}, {}  # two by (object kind, receptacle kind), two by receptacle kind
    for scene in (game.scene for game in games):
        fixed = {o for o, obj in enumerate(scene.objects) if not obj.traits & {"pickupable", "toggleable"}}
        inside = [{scene.objects[o].kind for o in contents if o not in fixed} for contents in scene.contents]
        present = set().union(*inside) - {"floorlamp"}
        for r, (receptacle, kinds) in enumerate(zip(scene.receptacles, inside)):
            place = receptacle.kind
            places[place] = places.get(place, 0) + 1
            actions[place] = actions.get(place, 0) + 1 + (receptacle.openable and r not in scene.opened)
            for kind in present:
                rooms[kind, place] = rooms.get((kind, place), 0) + 1
                finds[kind, place] = finds.get((kind, place), 0) + (kind in kinds)
    table = {}
    for (kind, place), found in finds.items():
        score = 100 * found / rooms[kind, place] * places[place] / actions[place]
        if found >= 10 and round(score) >= 1:
            table.setdefault(kind, {})[place] = round(score)
    return table


def test_reasoning_names_the_finding_the_need_and_the_next_place():
    expert = AlfworldExpert(
        "You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a cabinet 2, a countertop 1, a "
        "coffeemachine 1, a garbagecan 1, and a microwave 1.\nYour task is to: put a hot mug in cabinet."
    )
    lines = []
    for answer in (
        "",
        "On the coffeemachine 1, you see nothing.",
        "On the countertop 1, you see a egg 1.",
        "The microwave 1 is closed.",
        "You open the microwave 1. The microwave 1 is open. In it, you see nothing.",
        "The cabinet 1 is closed.",
        "You open the cabinet 1. The cabinet 1 is open. In it, you see a cup 1.",
        "On the cabinet 2, you see a cup 2.",
    ):
        lines.append(expert.act(answer).reasoning)
    assert lines == [
        "I need a mug to heat for cabinet. Usual places: coffeemachine, countertop. I look on coffeemachine 1 first.",
        "I see nothing on coffeemachine 1. I need a mug to heat for cabinet. A mug is often on countertop, so I look on "
        "countertop 1 next.",
        "I see no mug on countertop 1. I need a mug to heat for cabinet. A mug is sometimes in microwave, so I look "
        "in microwave 1 next.",
        "microwave 1 is closed. I need a mug, so I open microwave 1.",
        "I see nothing in microwave 1. I need a mug to heat for cabinet. A mug is sometimes in cabinet, so I look in "
        "cabinet 1 next.",
        "cabinet 1 is closed. I need a mug, so I open cabinet 1.",
        "I see no mug in cabinet 1. I need a mug to heat for cabinet. A mug is sometimes in cabinet, so I look in "
        "cabinet 2 next.",
        "I see no mug in cabinet 2. I need a mug to heat for cabinet. The usual places are done, so I look in "
        "garbagecan 1 next.",
    ]


def test_the_expert_uses_the_lamp_within_reach():
    """After it has seen two lamps, it uses the one at its location."""
    expert = household.HouseholdExpert(
        "You see a desk 1, and a sidetable 1.\nYour task is to: examine the pen with the desklamp."
    )
    actions = []
    for answer in (
        "",
        "On the desk 1, you see a desklamp 1.",
        "On the sidetable 1, you see a desklamp 2, and a pen 1.",
        "You pick up the pen 1 from the sidetable 1.",
    ):
        actions.append(expert.act(answer).action)
    assert actions == ["go to desk 1", "go to sidetable 1", "take pen 1 from sidetable 1", "use desklamp 2"]
