"""The simulator: the real engine against a store in memory, in virtual time, under seeded chaos."""
