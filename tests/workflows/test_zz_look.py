import json
from tests.workflows.plant import *
from gateway.scripted import Rule
async def test_look(resources):
    batch = await open_batch(resources, {n: a_submission(answers_to(2)) for n in names(1)}, exam=exam_of(2))
    [file] = await files_of(resources, batch)
    model = WatchedModel()
    async with running(orchestration(resources), cognition(resources, model)):
        await start(resources, batch)
        await all_ended(resources, batch)
    for r in await resources.postgres.rows("select checkpoint_id, parent_checkpoint_id, checkpoint, metadata from checkpoints order by checkpoint_id"):
        print(r["checkpoint_id"], r["parent_checkpoint_id"]); print(json.dumps(r["checkpoint"])); print(json.dumps(r["metadata"]))
    for r in await resources.postgres.rows("select checkpoint_id, task_id, task_path, idx, channel, type, length(blob) l, blob from checkpoint_writes order by checkpoint_id, task_path, idx"):
        print({**r, "blob": bytes(r["blob"])[4:80]})
    for r in await resources.postgres.rows("select channel, version, type, blob from checkpoint_blobs"):
        print({**r, "blob": bytes(r["blob"])[4:80]})
    for r in await resources.postgres.rows("select * from langgraph_checkpoints"): print(r)
