"""The demo: a small teacher, a distilled student, and a report on both."""
