"""Lists a page at a time."""

from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel

Item = TypeVar("Item", bound=BaseModel)

MAX_PAGE = 1_000_000
MAX_PAGE_SIZE = 100

PageNumber = Annotated[int, Query(ge=1, le=MAX_PAGE, description="The page, counted from 1.", examples=[1])]
PageSize = Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE, description="Items on a page.", examples=[20])]


class Page(BaseModel, Generic[Item]):
    """One page of a list, and how many items the whole list has."""

    items: list[Item]
    page: int
    page_size: int
    total: int
