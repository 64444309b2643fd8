// Text logs of the layout `TIME LEVEL message`; numbers in a message are what its lines differ in.

import { createHash } from 'node:crypto';
import type { Level, ParsedLog, TemplateCount } from './contract.js';

const MAX_TEMPLATES = 5_000;
const MAX_EXAMPLES = 3;
const MAX_TEXT_LENGTH = 2_000;
const LINE = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d))?\s*([A-Za-z]+)?\s*(.*)$/;
const LEVELS: Record<string, Level> = {
  FATAL: 'fatal', ERROR: 'error', WARN: 'warning', WARNING: 'warning', INFO: 'info', DEBUG: 'debug', TRACE: 'trace',
};

export class Parsing {
  private readonly templates = new Map<string, TemplateCount>();
  private readonly levels: Partial<Record<Level, number>> = {};
  private firstAt = '';
  private lastAt = '';
  private bytes = 0;
  lines = 0;
  private left = 0;

  take(line: string): void {
    this.lines += 1;
    this.bytes += Buffer.byteLength(line) + 1;
    const [, at = '', word = '', rest = ''] = LINE.exec(line) ?? [];
    const level = LEVELS[word.toUpperCase()] ?? null;
    const message = level === null ? `${word} ${rest}`.trim() : rest;
    if (at) {
      this.firstAt ||= at;
      this.lastAt = at;
    }
    if (level !== null) this.levels[level] = (this.levels[level] ?? 0) + 1;
    this.count(message.replace(/\d+/g, '<*>').slice(0, MAX_TEXT_LENGTH), level, at, line);
  }

  private count(text: string, level: Level | null, at: string, line: string): void {
    let template = this.templates.get(text);
    if (template === undefined) {
      if (this.templates.size >= MAX_TEMPLATES) {
        this.left += 1;
        return;
      }
      const template_id = createHash('sha256').update(text).digest('hex').slice(0, 16);
      template = { template_id, text, count: 0, level, first_at: at, last_at: at, examples: [] };
      this.templates.set(text, template);
    }
    template.count += 1;
    template.first_at ||= at;
    template.last_at = at || template.last_at;
    if (template.examples.length < MAX_EXAMPLES) {
      template.examples.push({ line: this.lines, text: line.slice(0, MAX_TEXT_LENGTH) });
    }
  }

  document(sizeBytes: number): ParsedLog {
    return {
      version: 1,
      parser: 'typescript-example/1',
      format: 'text',
      size_bytes: sizeBytes,
      expanded_bytes: this.bytes,
      lines: this.lines,
      parsed_lines: this.lines - this.left,
      first_at: this.firstAt,
      last_at: this.lastAt,
      levels: this.levels,
      templates: [...this.templates.values()],
      signals: [],
      incomplete: this.left ? `${this.left} lines follow none of the first ${MAX_TEMPLATES} templates` : '',
    };
  }
}
