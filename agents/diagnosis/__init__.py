"""The diagnosis agent: what is the matter with a batch of logs, with lines that show it."""
