"""The rules, as pure functions: no clock, no sockets, no randomness of their own."""
