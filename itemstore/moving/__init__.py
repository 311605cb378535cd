"""Moving in and out: the commands ``import`` and ``export``.

    source ──records──► mapping ──rows──► target        a part at a time, in order
                          └──rejected──► the report      the checkpoint follows what is confirmed

Of a source of any size only three parts are in memory: the one being read, in a thread, and the two
on their way into the target. A row goes in again without harm: its id is the same, and equal data
is no change.
"""
