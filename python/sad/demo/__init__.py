"""The demo: trains a small teacher, distills a student, and reports on both."""
