"""The engine: a pure state machine, the only place that decides what happens next.

It is told of journal rows, backlog rows, outcomes, configuration and the time, and answers with what to send, what to
fetch and what to settle. It never waits, reads no clock, knows no SQL and no socket; the worker does what it says.

`engine` is what the worker speaks to: it takes in rows and outcomes, and decides. Below it, each relying only on those
named before it: `work` (the values that go in and out), `progress` and `shard` (what of a shard is done), `lanes` and
`turns` (who may go next), `outage` (of our own) and `gates` (may it start), `timers`, `books` (where each delivery is,
what is to be settled), `findings` (what was learnt about endpoints), `roster` (who is known), `operations` (on single
deliveries), `backlog` (which rows are wanted), `spill` (what leaves memory when it is full).
"""
