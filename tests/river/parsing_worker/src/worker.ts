// A worker of the queue `parsing`: ASSAY_TEMPORAL__ADDRESS, ASSAY_TEMPORAL__NAMESPACE,
// ASSAY_TEMPORAL__PARSING_QUEUE and ASSAY_OBJECTS__URL (a folder) say where and what.

import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, rename, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { ApplicationFailure, Context } from '@temporalio/activity';
import { NativeConnection, Worker } from '@temporalio/worker';
import type { ParseInput, ParseResult } from './contract.js';
import { Parsing } from './parsing.js';

const LINES_BETWEEN_HEARTBEATS = 5_000;

function setting(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set`);
  return value;
}

const objects = fileURLToPath(setting('ASSAY_OBJECTS__URL'));

async function parse_log(input: ParseInput): Promise<ParseResult> {
  const context = Context.current();
  const parsing = new Parsing();
  // from the first moment on, also while no line has been read
  const beating = setInterval(() => context.heartbeat({ lines: parsing.lines }), 1_000);
  try {
    const bytes = createReadStream(join(objects, input.object_key));
    for await (const line of createInterface({ input: bytes, crlfDelay: Infinity })) {
      parsing.take(line);
      if (parsing.lines % LINES_BETWEEN_HEARTBEATS === 0) {
        context.heartbeat({ lines: parsing.lines });
        // lets timers run, and a cancellation through
        await new Promise(setImmediate);
        context.cancellationSignal.throwIfAborted();
      }
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') {
      throw ApplicationFailure.nonRetryable(`There is no object ${input.object_key}.`, 'not_found');
    }
    throw error;
  } finally {
    clearInterval(beating);
  }
  const document = parsing.document(input.size_bytes);
  const parsed_sha256 = await write(input.parsed_key, JSON.stringify(document));
  const { lines, parsed_lines, format } = document;
  return { parsed_key: input.parsed_key, parsed_sha256, lines, parsed_lines, format };
}

/** Whole or not at all; answers the digest in hex. */
async function write(key: string, text: string): Promise<string> {
  const path = join(objects, key);
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  const unfinished = `${path}#${process.pid}`;
  await writeFile(unfinished, text, { mode: 0o600 });
  await rename(unfinished, path);
  return createHash('sha256').update(text).digest('hex');
}

const connection = await NativeConnection.connect({ address: setting('ASSAY_TEMPORAL__ADDRESS') });
const worker = await Worker.create({
  connection,
  namespace: setting('ASSAY_TEMPORAL__NAMESPACE'),
  taskQueue: setting('ASSAY_TEMPORAL__PARSING_QUEUE'),
  activities: { parse_log },
});
await worker.run();
await connection.close();
