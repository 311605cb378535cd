"""Bugs to be noticed: each ``*.patch`` here breaks itemstore, and a scenario or a test must fail.

A patch is a unified diff for ``patch -p1`` in the tree, below a header of lines such as

    # bug: answers at commit before PostgreSQL has committed
    # scenario: kill_commit
    # rounds: 4
    # seed: 1                             (optional)
    # environment: QUEUE_MAX_ITEMS=100    (optional; several, separated by blanks)
    # test: tests/test_races.py -k load   (instead of scenario and rounds: pytest's arguments)
"""
