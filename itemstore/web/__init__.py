"""Speaks HTTP. A handler parses, calls the store once and answers; it decides nothing, and it
raises: the middleware in ``app.py`` is the one place where an error becomes an answer."""
