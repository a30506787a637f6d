"""`make torture`: the real processes on a real PostgreSQL, under load and under attack, and a judge who was not there.

- `schedule`   what happens when, from a seed (pure);  `books` what happened, by its witnesses
- `judge`      compares the books, and finds for every repetition the fault that explains it (pure)
- `witnesses`  producers and receiver;  `system` the processes;  `network` islands with wires to cut
- `rig`        a whole run;  `report` its last lines;  `skewed` a worker on a machine whose clock is wrong
"""
