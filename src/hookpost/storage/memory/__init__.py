"""A store in memory, for the simulator: the promises of the contract without a disk, a connection or a wait.

Nothing outlives the process. That it keeps the promises is shown by the suite that PostgreSQL passes, too.
"""
