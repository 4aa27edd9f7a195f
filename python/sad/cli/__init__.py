"""The command line: one file per command; the only place where training and agents meet."""
