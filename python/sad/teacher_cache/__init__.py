"""The teacher's likeliest tokens on disk: written by one pass of the teacher, read in place of it when the student trains.

`rows` are the numbers of one token, `packed` their bytes, `shard` files of them, `index` their list, `folder` their place.
`teacher` and `writer` make a cache, `reader` and `loss` train from one; `make` is the command.
"""
