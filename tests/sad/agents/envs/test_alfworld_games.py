"""ALFWorld's own games in this engine, answer for answer as the official engine gave them."""

from __future__ import annotations

import pytest

import sad
from sad.agents.envs.household.env import HouseholdEnv
from sad.agents.envs.household.expert import play_expert
from sad.agents.envs.household.goal import LIGHT, Goal
from sad.agents.envs.household.pddl import game_from_pddl

from .kitchen import read_gz


@pytest.fixture(scope="module")
def games(shared_data):
    rows = list(read_gz(shared_data / "alfworld" / "games_valid_seen.jsonl.gz"))
    games = {row["gamefile"]: game_from_pddl(row["pddl_problem"], row["task"], row["gamefile"]) for row in rows}
    assert [game.goal.type for game in games.values()] == [row["task_type"] for row in rows]
    return games


def test_the_official_transcripts_are_reproduced_word_for_word(games, shared_data):
    env = HouseholdEnv(games.values(), loc_prefix=True)
    different, count = [], 0
    for record in read_gz(shared_data / "alfworld" / "official_engine_valid_seen_expert.jsonl.gz"):
        _, name, trial, _ = record["game"].split("/")
        first, *turns = record["text"].split("\n> ")
        expected = first.removeprefix("-= Welcome to TextWorld, ALFRED! =-\n\n").replace("\n\n", "\n")
        answers = [("reset", expected, env.reset(games[f"{name}/{trial}"].task))]
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


def test_the_expert_solves_the_official_games(games):
    env = HouseholdEnv(games.values())
    solved = [play_expert(env, task, max_steps=50).success for task in env.tasks]
    assert sum(solved) >= 0.98 * len(solved)


def test_a_small_problem_becomes_a_scene():
    problem = """(define (problem p) (:init
        (receptacleType Desk_bar_1 DeskType) (receptacleType Drawer_bar_2 DrawerType) (openable Drawer_bar_2)
        (receptacleAtLocation Desk_bar_1 loc_bar_1) (receptacleAtLocation Drawer_bar_2 loc_bar_2)
        (atLocation agent1 loc_bar_3)
        (objectType Book_bar_1 BookType) (objectType Book_bar_2 BookType) (objectType DeskLamp_bar_1 DeskLampType)
        (pickupable Book_bar_1) (pickupable Book_bar_2) (toggleable DeskLamp_bar_1) (canContain DeskType BookType)
        (inReceptacle Book_bar_1 Drawer_bar_2) (inReceptacle Book_bar_2 Desk_bar_1) (inReceptacle DeskLamp_bar_1 Desk_bar_1))
        (:goal (and (exists (?l - object) (and (objectType ?l DeskLampType) (isToggled ?l)))
                    (exists (?o - object) (and (objectType ?o BookType) (holds ?a ?o))))))"""
    game = game_from_pddl(problem, "Your task is to: examine the book with the desklamp.", "lamp")
    assert game.goal == Goal(LIGHT, "book", "desklamp")
    env = HouseholdEnv([game], loc_prefix=True)
    assert env.reset(game.task).endswith(
        "you see a desk 1, and a drawer 1.\nYour task is to: examine the book with the desklamp."
    )
    # numbers count down along the sorted ids, those of the standing spots too
    assert env.step("go to desk 1").observation == "You arrive at loc 3. On the desk 1, you see a book 1, and a desklamp 1."
    env.step("take book 1 from desk 1")
    assert env.step("use desklamp 1").info["won"]


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("(define (problem p))", "g: problem: expected a PDDL problem with :init and :goal"),
        (
            "(define (:init (atLocation agent1 loc_bar_1)) (:goal (and (opened ?r))))",
            "g: goal: expected one of the six goals",
        ),
    ],
)
def test_problems_that_are_not_games(problem, message):
    with pytest.raises(sad.InputError, match=message):
        game_from_pddl(problem, "do it.", "g")
