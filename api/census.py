"""How many batches and files are in each state right now, beside the diagrams of `assay states`."""

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from api.dependencies import Reader, ServicesOf
from api.errors import problems

router = APIRouter(prefix="/v1/census", tags=["batches"])


class Census(BaseModel):
    """Counts by state; a state without any is left out."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"batch": {"completed": 3}, "file": {"completed": 120, "failed": 2}}]}
    )

    batch: dict[str, int]
    file: dict[str, int]


@router.get(
    "",
    summary="Count batches and files by state",
    description="The tenant's batches and files, by the state that each is in.",
    responses=problems(401, 403, 422, 503),
)
async def read_census(caller: Reader, services: ServicesOf) -> Census:
    """The tenant's census."""
    batches, files = await services.batches.census(caller.tenant_id)
    return Census(batch=batches, file=files)
