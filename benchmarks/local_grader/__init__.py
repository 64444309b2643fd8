"""The embedded grader, fitted on public data and measured on questions that it never saw."""
