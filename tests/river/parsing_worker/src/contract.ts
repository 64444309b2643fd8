// The payloads and the document of docs/parsing-workers.md, as this worker uses them.

export interface ParseInput {
  tenant_id: string;
  batch_id: string;
  file_id: string;
  generation: number;
  name: string;
  object_key: string;
  size_bytes: number;
  parsed_key: string;
  trace_id: string;
  written_at: string;
}

export interface ParseResult {
  parsed_key: string;
  parsed_sha256: string;
  lines: number;
  parsed_lines: number;
  format: string;
}

export type Level = 'fatal' | 'error' | 'warning' | 'info' | 'debug' | 'trace';

export interface Quote {
  line: number;
  text: string;
}

export interface TemplateCount {
  template_id: string;
  text: string;
  count: number;
  level: Level | null;
  first_at: string;
  last_at: string;
  examples: Quote[];
}

export interface ParsedLog {
  version: 1;
  parser: string;
  format: 'text';
  size_bytes: number;
  expanded_bytes: number;
  lines: number;
  parsed_lines: number;
  first_at: string;
  last_at: string;
  levels: Partial<Record<Level, number>>;
  templates: TemplateCount[];
  signals: [];
  incomplete: string;
}
