"""What happens to acknowledged writes when things break: real processes, real faults, a checker.

A round starts a real server over a real PostgreSQL, has clients in a process of their own write to
it and note what they were told (``clients``), does something bad at a random moment
(``scenarios``), lets everything recover, and compares the notes with what is left (``checker``).

    python -m tests.faults                          a short version of every scenario
    python -m tests.faults --full --json FILE       the whole campaign
    python -m tests.faults --only NAME --rounds N   one scenario
    python -m tests.faults.bugs                     does the harness notice bugs that were put in?
"""
