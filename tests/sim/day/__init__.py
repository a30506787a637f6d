"""One day of a fleet that makes a billion deliveries: whole workers of it, each a real engine, in virtual time.

A fleet of W workers is W times the same thing, as workers meet in the store only. So some of them are lived through
whole, at their true rate, with their true number of tenants, endpoints and rows, and what is counted is multiplied by
what was left out (`fleet.py`). `life.py` is such a worker around tests/engine/driver; `watch.py` counts; `scenarios.py`
are the stories, with what must hold; `plots.py` draws. docs/scale.md tells what came of it.
"""
