"""The search attributes by which the Temporal Web UI finds workflows: ids, states, amounts, never names."""

from temporalio.common import SearchAttributeKey

TENANT = SearchAttributeKey.for_keyword("AssayTenant")
BATCH = SearchAttributeKey.for_keyword("AssayBatch")
KIND = SearchAttributeKey.for_keyword("AssayKind")
STAGE = SearchAttributeKey.for_keyword("AssayStage")
#: nano-dollars that the graded files have cost
SPENT = SearchAttributeKey.for_int("AssaySpentNanodollars")
NEEDS_INTERVENTION = SearchAttributeKey.for_bool("AssayNeedsIntervention")
