"""Random attacks on whole commands: `python -m tests.soak --minutes 30 --seed 1`.

`attacks` lists the attacks, `commands` runs `sad` in forked processes, `mutate` damages files, `cli` prints the table. A
case depends on the seed, the attack and its number alone.
"""
