"""Errors that are the input's fault; the command line prints them as one line and exits with code 2."""


class InputError(ValueError):
    """Something given by the user cannot be used; the message says what, where, and what to do."""
