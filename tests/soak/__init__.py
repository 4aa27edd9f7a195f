"""Random attacks on whole commands: `python -m tests.soak --minutes 30 --seed 1`.

`attacks` lists the attacks, which have one module per kind. `commands` runs `sad` in forked processes, `mutate` damages
files, and `cli` prints the table. A case depends on the seed, the attack and its number alone.
"""
