"""The teacher's top-k log-probabilities on disk, which training reads instead of running the teacher.

`options` declares the options of `sad cache`, and `make` runs the command. `metadata` identifies a cache. `rows` computes
the values per token and packs them into bytes, `storage` keeps them in files, `writer` and `reader` write and read a cache.
"""
