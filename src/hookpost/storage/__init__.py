"""Where everything is kept: the contract that all drivers fulfil, and the drivers."""
