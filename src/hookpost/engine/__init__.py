"""The engine: a pure state machine, the only place that decides what happens next.

It is told of journal rows, backlog rows, outcomes, configuration and the time, and answers with what to send, what to
fetch and what to settle. It never waits, reads no clock, knows no SQL and no socket; the worker does what it says.

`work` holds the values that go in and out, `progress` what of a shard is done, `lanes` who may go next,
`engine` ties them together.
"""
