"""A teacher's top-k log-probabilities or hidden states on disk, which training reads instead of running the teacher.

`options` declares the options of `sad cache`, and `make` runs the command. `metadata` identifies a cache. `rows` computes
the log-probabilities per token and packs them into bytes, `hidden_rows` the hidden states, and `head` stores the head that
belongs to these. `storage` keeps them in files, `writer` and `reader` write and read a cache.

`outside` makes a cache of a teacher that runs elsewhere: `endpoint` requests its values from a server in one of the forms
of `answers`, `importing` reads them from a file. `toplists` checks them, `filling` adds their rows to a cache.
"""
