"""The demonstration: two exams, their classes' answers and reference marks, and what is made of them."""
