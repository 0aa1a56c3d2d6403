"""The command line: one file per verb, each a thin question to the client and a plain answer.

Belongs here: reading arguments, laying out answers for people and for programs, and saying what to do next. Never here:
a rule, a decision, or anything that the Python client cannot also do.

Every import that costs is late, inside the verb that needs it: `--help` must stay instant on a small machine. Output is
plain text; colour only decorates words that are there anyway, and only at a terminal.
"""
