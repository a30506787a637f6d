"""Several nodes on one PostgreSQL, each on a host of its own: network namespaces on one bridge, and real processes."""
