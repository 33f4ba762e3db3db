"""What is told about a run: one object, and its JSON, text and HTML (docs/report.md)."""
