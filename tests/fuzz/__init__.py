"""Fuzzing of the API by its own OpenAPI document, against a running server: a small batch in the tests, more by the hour."""
