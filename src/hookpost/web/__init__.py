"""The HTTP side: problems, authentication, the API's routes and the ASGI application."""
