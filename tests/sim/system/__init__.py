"""The whole system in one process and in virtual time: real ingest, workers and maintenance on the store in memory."""
