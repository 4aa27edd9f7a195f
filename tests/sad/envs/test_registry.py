"""`sad.envs` as a module and as an attribute, and the registry of environments."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sad


@pytest.mark.parametrize("code", ["import sad.envs", "import sad", "from sad import envs; import sad"])
def test_envs_can_be_imported_in_each_way(code):
    code += "; print(sad.envs.__name__, len(sad.envs.make('household', tasks=1).tasks))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "sad.envs 1\n"


def test_the_built_in_envs_are_registered():
    assert {"household", "alfworld", "alfworld-official", "webshop", "hotpotqa"} <= set(sad.envs.names())


def test_register_adds_an_env():
    @sad.envs.register("empty")
    class Empty:
        def __init__(self, root, split, seed, floor="bare"):
            self.arguments = (root, split, seed, floor)

    assert sad.envs.make("empty", "here", "valid", 3, floor="tiled").arguments == ("here", "valid", 3, "tiled")
    with pytest.raises(sad.InputError, match="'empty'"):
        sad.envs.register("empty")(Empty)
