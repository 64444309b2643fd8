"""The exams that `assay exam new` begins one with, a language each."""
