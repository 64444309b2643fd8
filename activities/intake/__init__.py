"""Intake: a submitted file of whatever format read as answers; documents in a confined child process."""
