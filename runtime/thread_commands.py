"""`assay thread …`: the history of a submission's agents: listed, shown, compared, gone on from."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from runtime.client import local_client
from runtime.watching import PARTIAL_STATES

thread_commands = typer.Typer(
    name="thread",
    help="The history of a submission's agents, checkpoint by checkpoint.\n\n"
    "Example: assay thread list 0197c1de-…",
    no_args_is_help=True,
)
