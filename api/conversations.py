"""Conversations that turns of chats have made: listed, read and forgotten; a turn is a chat completion."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, ConfigDict

from api.dependencies import ServicesOf, require
from api.errors import problems
from api.pages import Page, PageNumber, PageSize
from api.wire import Time
from domain.gateway import Caller, Conversation, check_session_id

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

_EXAMPLE: dict[str, Any] = {
    "session": "course-7:li",
    "messages": 46,
    "summary": "Li asked how TCP opens a connection; the assistant explained the three segments.",
    "summarised": 26,
    "busy": False,
    "created_at": "2026-01-02T03:04:05+00:00",
    "updated_at": "2026-01-02T04:05:06+00:00",
}
_MESSAGE: dict[str, Any] = {
    "seq": 1,
    "message": {"role": "user", "content": "How does TCP open a connection?"},
}

Session = Annotated[
    str,
    Path(description="The conversation's name, as `session` of a chat completion.", examples=["course-7:li"]),
]
Reader = Annotated[Caller, Depends(require("model", "read"))]
Speaker = Annotated[Caller, Depends(require("model"))]


class ConversationView(BaseModel):
    """A conversation; `summarised` of its messages stand in the summary, `busy` while a turn is under way."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    session: str
    messages: int
    summary: str
    summarised: int
    busy: bool
    created_at: Time
    updated_at: Time


class MessageView(BaseModel):
    """A message as OpenAI's protocol has it, and its number in the conversation, from 1 without gaps."""

    model_config = ConfigDict(json_schema_extra={"examples": [_MESSAGE]})

    seq: int
    message: dict[str, Any]


def _view(conversation: Conversation) -> ConversationView:
    return ConversationView(
        session=conversation.session_id,
        messages=conversation.last_seq,
        summary=conversation.summary,
        summarised=conversation.summary_seq,
        busy=conversation.busy,
        created_at=conversation.created_at,
        updated_at=conversation.updated_at,
    )


@router.get(
    "",
    summary="List conversations",
    description="The tenant's conversations, the last changed first.",
    responses=problems(401, 403, 422, 503),
)
async def list_conversations(
    caller: Reader, services: ServicesOf, page: PageNumber = 1, page_size: PageSize = 20
) -> Page[ConversationView]:
    """One page of them."""
    listed, total = await services.conversations.list_of_tenant(caller.tenant_id, page, page_size)
    return Page(items=[_view(each) for each in listed], page=page, page_size=page_size, total=total)


@router.get(
    "/{session}",
    summary="Read a conversation",
    description="How far it is and what its summary says; its messages have a route of their own.",
    responses=problems(401, 403, 404, 422, 503),
)
async def read_conversation(session: Session, caller: Reader, services: ServicesOf) -> ConversationView:
    """The conversation."""
    return _view(await services.conversations.read(caller.tenant_id, check_session_id(session)))


@router.get(
    "/{session}/messages",
    summary="Read a conversation's messages",
    description="Everything that was said, in order; also what stands in the summary by now.",
    responses=problems(401, 403, 404, 422, 503),
)
async def list_messages(
    session: Session, caller: Reader, services: ServicesOf, page: PageNumber = 1, page_size: PageSize = 20
) -> Page[MessageView]:
    """One page of them."""
    conversation = await services.conversations.read(caller.tenant_id, check_session_id(session))
    # their numbers have no gaps
    after = (page - 1) * page_size
    messages = await services.conversations.messages(caller.tenant_id, session, after=after, limit=page_size)
    items = [MessageView(seq=seq, message=dict(each)) for seq, each in enumerate(messages, start=after + 1)]
    return Page(items=items, page=page, page_size=page_size, total=conversation.last_seq)


@router.delete(
    "/{session}",
    status_code=204,
    summary="Forget a conversation",
    description="Its messages and its summary are deleted. The reply of a turn under way is not appended; "
    "what calls have cost stays in the ledger.",
    responses=problems(401, 403, 404, 422, 503),
)
async def delete_conversation(session: Session, caller: Speaker, services: ServicesOf) -> None:
    """Nothing more is there."""
    await services.conversations.delete(caller.tenant_id, check_session_id(session))
