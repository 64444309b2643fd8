"""Conversations on a call's way: the earlier messages before it, its own appended after it (O4).

The pipeline calls `load` before the route is chosen, sends `said(request, loaded)` to the upstream and prices
it, and hashes the request as its caller sent it; then either `append` once the reply is settled (also for one
that was replayed) or, whatever else happened, `give_back`.
"""

from dataclasses import dataclass, replace

from domain.completion import CompletionRequest
from domain.gateway import Conversations
from gateway.context import Appended, Context, ConversationLoaded


@dataclass(frozen=True)
class Window:
    """How much of the earlier conversation is said to a model, the summary aside."""

    messages: int = 40
    bytes: int = 64 * 1024


def said(request: CompletionRequest, loaded: ConversationLoaded | None) -> CompletionRequest:
    """The request as the upstream gets it and as it is priced: with everything that was loaded.

    Not what `request_hash` is taken from: a call is told from others by what its caller sent, and a repeated
    call finds another conversation than it did at first.
    """
    if request.chat is None or loaded is None or loaded.turn is None:
        return request
    return replace(request, chat=replace(request.chat, messages=loaded.messages))


class ConversationStep:
    """The steps `load_conversation` and `append_conversation`."""

    def __init__(self, conversations: Conversations, window: Window | None = None) -> None:
        self._conversations = conversations
        self._window = window or Window()

    async def load(self, context: Context) -> ConversationLoaded:
        """Takes the session's turn, and answers all that is said to the model; nothing without a session.

        Waits for the turn under way until the call's patience ends, counted from its arrival, or refuses at
        once where the chat says so; raises `ConversationBusy`, and `InvalidInput` for a session id that is none.
        """
        raise NotImplementedError

    async def append(self, context: Context) -> Appended:
        """Appends what is new and the reply, once for a call, and ends the turn; raises `ConversationBusy`."""
        raise NotImplementedError

    async def give_back(self, context: Context) -> None:
        """Ends the turn of a call that failed, without a message; never raises, and may come after `append`."""
        raise NotImplementedError
