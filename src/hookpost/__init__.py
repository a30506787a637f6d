"""Hookpost delivers webhooks: accepted once, delivered at least once.

The flow, and where it lives::

    POST /v1/events      web.events       form, limits, the answer
      match, append      ingest           group commit into the journal, then 202
      journal            storage          one row: the payload and the endpoints it is owed to
      lease, read        worker           owns shards, feeds the engine, does what it says
      may it start?      engine           lanes, gates, progress; pure
      sign, send         policy.request, transport
      what now?          engine, policy.retry
      settle             storage          attempts, backlog, dead letters, progress: one fenced transaction
    GET /v1/…            web.accepted, …  reads events, attempts, backlog, dead letters

`app` puts the pieces together: settings, processes, commands.
"""

__version__ = "0.1.0"
