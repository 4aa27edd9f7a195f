"""The PDDL parser of ALFWorld games, and its errors."""

from __future__ import annotations

import pytest

import sad
from sad.envs.alfworld.pddl import game_from_pddl
from sad.envs.household.env import HouseholdEnv
from sad.envs.household.game import ALFWORLD_TEXTS, LIGHT, Goal

PROBLEM = """(define (problem p) (:init
    (receptacleType Desk_bar_1 DeskType) (receptacleType Drawer_bar_2 DrawerType) (openable Drawer_bar_2)
    (receptacleAtLocation Desk_bar_1 loc_bar_1) (receptacleAtLocation Drawer_bar_2 loc_bar_2)
    (atLocation agent1 loc_bar_3)
    (objectType Book_bar_1 BookType) (objectType Book_bar_2 BookType) (objectType DeskLamp_bar_1 DeskLampType)
    (pickupable Book_bar_1) (pickupable Book_bar_2) (toggleable DeskLamp_bar_1) (canContain DeskType BookType)
    (inReceptacle Book_bar_1 Drawer_bar_2) (inReceptacle Book_bar_2 Desk_bar_1) (inReceptacle DeskLamp_bar_1 Desk_bar_1))
    (:goal (and (exists (?l - object) (and (objectType ?l DeskLampType) (isToggled ?l)))
                (exists (?o - object) (and (objectType ?o BookType) (holds ?a ?o))))))"""


def test_a_small_problem_becomes_a_scene():
    game = game_from_pddl(PROBLEM, "Your task is to: examine the book with the desklamp.", "lamp")
    assert game.goal == Goal(LIGHT, "book", "desklamp")
    env = HouseholdEnv([game._replace(texts=ALFWORLD_TEXTS)])
    assert env.reset(game.task).endswith(
        "you see a desk 1, and a drawer 1.\nYour task is to: examine the book with the desklamp."
    )
    # numbers decrease along the sorted ids, also those of locations
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
        (PROBLEM.replace("(isToggled ?l)", "(isToggled ?x)"), "g: goal: expected one of the six goals"),
        (PROBLEM.replace("(atLocation agent1 loc_bar_3)", ""), "g: problem: expected a complete scene in :init"),
        (
            PROBLEM.replace("(receptacleAtLocation Desk_bar_1 loc_bar_1)", ""),
            "g: problem: expected a complete scene in :init",
        ),
    ],
)
def test_invalid_problems_are_refused(problem, message):
    with pytest.raises(sad.InputError, match=message):
        game_from_pddl(problem, "do it.", "g")
